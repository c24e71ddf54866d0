"""Chat templates that are none: broken, deep and large sources, and odd values where tokenizer files have a template.

Half of the tries are listed here, half are real templates with changes at random.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from templates import bundled_templates, trl_templates

from hostile.template_limits import CHATML, SECONDS
from hostile.tries import Try
from minimind_sft.data.tokenizer_choice import FOLDER

KIND = "broken templates"

MIB = 2**20
ODD: tuple[Any, ...] = (5, -1, 0.5, True, "", "\0", "\ud800", "\x1b[2J", "{", [], {}, [5], [[]], [{}], {"a": 5},
                        {"a": None}, [None], [{"name": "default"}], [{"template": "x"}], [{"name": 5, "template": "x"}],
                        {"default": []})
NAMES = ("default", "tool_use", "", "a/b", "../x", "\x1b[2J\u202e", "x" * 300)
TAGS = ("{{", "}}", "{%", "%}", "{#", "#}", "{{-", "-%}", "{% if %}", "{% endif %}", "{% for m in messages %}",
        "{% endfor %}", "{% break %}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% raw %}",
        "{% autoescape true %}", "{{ cycler() }}", "{{ self }}", "{{ loop }}", "{{ messages.x.y }}", "{{ [] + 1 }}",
        "{{ 1 / 0 }}", "{{ {}[[]] }}", "{{ raise_exception(messages) }}", "{{ range }}", "{{ ''.__class__ }}",
        "{{ '\ud800' }}", "{{ '\U000F0002' }}", "\U000F0002", "\ud800", "\x1b[2J", "{% generation %}",
        "{% set messages = 5 %}", "{% set eos_token = '' %}", "{{ messages|map('x') }}", "{{ 'x' is x }}",
        "{{ x(**5) }}", "{{ x(*5) }}", "{% macro %}", "{% call x() %}")


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    row = {"conversations": [{"role": "user", "content": "x <|im_end|> é"}, {"role": "assistant", "content": "a"}]}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    shutil.copytree(FOLDER, folder / "tokenizer", ignore=shutil.ignore_patterns("*.py"))
    yield _with_source(folder, "a plain template", CHATML, "accepted")
    listed = {**broken_sources(), **{f"{tag!r} at the start": tag + CHATML for tag in TAGS},
              **{f"{tag!r} at the end": CHATML + tag for tag in TAGS}}
    for name in random.sample(sorted(listed), min(len(listed), count // 3)):
        yield _with_source(folder, name, listed[name], "either")
    values = odd_values()
    for value in random.sample(values, min(len(values), count // 4)):
        yield _in_configuration(folder, value)
    sources = [*(template.source for template in bundled_templates()), *trl_templates().values()]
    for _ in range(count - count // 3 - count // 4):
        yield _with_source(folder, "a changed template", _changed(random.choice(sources), random), "either")


def broken_sources() -> dict[str, str]:
    """Returns deep, large and unfinished sources by name."""
    return {
        "nested ifs": "{% if 1 %}" * 300 + "{% endif %}" * 300,
        "nested loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "nested brackets": "{{ " + "[" * 9999 + "]" * 9999 + " }}",
        "nested calls": "{{ " + "(a" * 9999 + ")" * 9999 + " }}",
        "many nots": "{{ " + "not " * 9999 + "1 }}",
        "a long sum": "{{ " + "1 + " * 9999 + "1 }}",
        "many minuses": "{{ " + "-" * 9999 + "1 }}",
        "many filters": "{{ 'a'" + "|e" * 9999 + " }}",
        "many attributes": "{{ x" + ".a" * 9999 + " }}",
        "many tildes": "{{ " + "1~" * 20_000 + "1 }}",
        "many elifs": "{% if 0 %}" + "{% elif 0 %}" * 4000 + "{% endif %}",
        "a long number": "{{ " + "9" * 9999 + " }}",
        "a hexadecimal number": "{{ 0x" + "f" * 50_000 + " }}",
        "many digits": "{{ 1" + "_1" * 20_000 + " }}",
        "an open string": "{{ '" + "\\" * 50_000,
        "many braces": "{{" * 20_000,
        "an open comment": "{#" * 20_000,
        "many blanks": " " * 90_000 + "{%",
        "many quotes": "{{ " + "'" * 50_000,
        "many macros": "{% macro f() %}{% endmacro %}" * 4000,
        "a megabyte": " " * MIB,
        "100 megabytes": " " * (100 * MIB),
        "100 megabytes of expressions": "{{ 1 }}" * (15 * MIB),
    }


def odd_values() -> list[Any]:
    """Returns values for chat_template in tokenizer_config.json."""
    plain, bad = {"name": "default", "template": CHATML}, "{{ 'a' * 10**10 }}"
    return [*ODD, *({name: bad} for name in NAMES), *([{"name": name, "template": bad}] for name in NAMES), [plain],
            [plain, plain], {"default": CHATML, "tool_use": bad}, {"default": CHATML, "x": "y" * MIB}, "x" * (3 * MIB),
            {"default": CHATML, "tool_use": CHATML.replace("|im_end|", "|endoftext|")},
            {str(number): CHATML for number in range(9999)}]


def _in_configuration(folder: Path, value: Any) -> Try:
    config = json.loads((Path(FOLDER) / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": value}))
    return Try(f"chat_template in tokenizer_config.json: {json.dumps(value)[:60]}",
               ["scripts/inspect_data.py", str(folder / "data.jsonl"), "--tokenizer_path", str(folder / "tokenizer")],
               "either", seconds=SECONDS)


def _changed(source: str, random: Random) -> str:
    """Returns a template with a few pieces removed, doubled, swapped or replaced."""
    pieces = re.findall(r"\{[%{#].*?[%}#]\}|[\w.]+|\s+|.", source, re.DOTALL)
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = random.randrange(len(pieces)), random.randrange(len(pieces))
        change = random.randrange(5)
        if change == 0:
            pieces[at] = ""
        elif change == 1:
            pieces[at] *= random.choice((2, 30))
        elif change == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif change == 3:
            pieces[at] = random.choice(TAGS)
        else:
            cut = random.randrange(len(pieces[at]) + 1)
            pieces[at] = pieces[at][:cut] + random.choice("{}%#|()[]'\"~.0- \n") + pieces[at][cut:]
    return "".join(pieces)


def _with_source(folder: Path, name: str, source: str, expected: str) -> Try:
    (folder / "chat.jinja").write_bytes(source.encode("utf-8", "surrogatepass"))
    return Try(name, ["scripts/inspect_data.py", str(folder / "data.jsonl"), "--chat_template",
                      str(folder / "chat.jinja")], expected, seconds=SECONDS)
