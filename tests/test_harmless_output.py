"""Nothing from data, models or names reaches the terminal as a control character, whoever prints it."""

import ast
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from programs import CHAT, REPOSITORY, refuse

from minimind_sft import output
from minimind_sft.terminal import aligned, harmless, in_one_line, painted, say, say_json, say_painted, say_piece

EVIL = "\x1b[2J\x1b]0;title\x07\r\x08\x9b31m\u202e\u2066\u061c\U000e0041"
ESCAPED = r"\u001b[2J\u001b]0;title\u0007\u000d\u0008\u009b31m\u202e\u2066\u061c\U000e0041"
WRITERS = {"minimind_sft/terminal.py", "minimind_sft/output.py"}
SOURCES = sorted(path for pattern in ("minimind_sft/**/*.py", "trainer/*.py", "scripts/*.py", "eval_llm.py")
                 for path in REPOSITORY.glob(pattern))


@contextmanager
def printed() -> Iterator[Callable[[], str]]:
    """Prepares standard output and error as the programs do; yields a function that returns what was written to both.

    Not a fixture: pytest sets both streams between the fixtures of a test and the test.
    """
    held = io.BytesIO()
    plain = io.TextIOWrapper(held, encoding="utf-8", newline="")
    with mock.patch.multiple(sys, stdout=plain, stderr=plain):
        output.prepare_output()
        yield lambda: (sys.stdout.flush(), sys.stderr.flush(), held.getvalue().decode("utf-8"))[-1]


def prints(source: str) -> list[str]:
    """Lists the calls and imports in a module's source that print without `terminal.say`, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            to_stream = "sys.std" in text or "sys.__std" in text
            writes = (called in ("print", "pprint")
                      or (to_stream and called.rpartition(".")[2] in ("write", "writelines")))
        else:
            writes = isinstance(node, ast.Import | ast.ImportFrom) and "tqdm" in text
        if writes:
            found.append(f"{node.lineno}: {text[:60]}")
    return found


def test_no_other_module_prints():
    found = [f"{path.relative_to(REPOSITORY)}:{place}" for path in SOURCES
             if path.relative_to(REPOSITORY).as_posix() not in WRITERS
             for place in prints(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", [
    "print(1)", "sys.stdout.write('a')", "sys.stderr.buffer.write(b'a')", "sys.__stdout__.writelines('a')",
    "from tqdm import tqdm", "import tqdm.auto", "os.write(sys.stderr.fileno(), b'a')"])
def test_the_check_above_finds_all_ways_to_print(line):
    assert prints(line)


def test_control_characters_are_escaped():
    assert harmless(EVIL) == ESCAPED and harmless(ESCAPED) == ESCAPED
    assert harmless("a\nb é 你好 👩\u200d💻 ‹x›") == "a\nb é 你好 👩\u200d💻 ‹x›"
    assert in_one_line("a\n\x07") == "a\\n\\u0007"


def test_say_and_its_companions_let_none_through():
    with printed() as written:
        say(EVIL)
        say_piece(f"a\tb{EVIL}")
        say_piece("call\n", "36")
        say_painted("shown " + painted("31", EVIL) + "\x1b[2J")
        say_json({"text": EVIL, "del": "\\\x7f"})
        assert written() == (
            f"{ESCAPED}\na\tb{ESCAPED}\x1b[36mcall\n\x1b[0mshown \x1b[31m{ESCAPED}\x1b[0m\\u001b[2J\n"
            '{\n "text": "\\u001b[2J\\u001b]0;title\\u0007\\r\\b\\u009b31m\\u202e\\u2066\\u061c\\udb40\\udc41",\n'
            ' "del": "\\\\\\u007f"\n}\n')


def test_what_libraries_print_is_escaped():
    with printed() as written:
        print(f"print {EVIL}", file=sys.stderr)
        logging.lastResort.emit(logging.LogRecord("a", logging.WARNING, "file.py", 1, "logged %s", (EVIL,), None))
        sys.__excepthook__(ValueError, ValueError(f"raised {EVIL}"), None)  # loggers replace sys.excepthook for good
        said = written()
    assert said.count(ESCAPED.replace("\\u000d", "\r")) == 3 and "\x1b" not in said


def test_cells_of_tables_are_escaped_before_they_are_measured():
    assert aligned([["a\nb\x07", "c"], ["d", "e"]]) == ["a\\nb\\u0007  c", "d           e"]


def test_a_line_feed_in_a_name_makes_no_second_line_of_an_error(tmp_path):
    folder = tmp_path / "a\nerror: b\x1b[2J"
    assert refuse(CHAT, "--weight", folder / "no.pth", "--prompt", "a").startswith(
        f"error: --weight {tmp_path}{os.sep}a\\nerror: b\\u001b[2J{os.sep}no.pth")
