"""Chat templates that compute too much: each operator, method, filter and test with huge numbers, and values that grow.

Half of the tries are known to ask for too much, half are expressions at random.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from hostile.tries import Try

KIND = "templates that compute too much"

SECONDS = 10.0
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

NUMBERS = ("0", "1", "-1", "3", "60", "9999", "10**6", "10**9", "10**10", "-10**10", "2**63", "10**30", "1.5", "1e308",
           "true", "none")
TEXTS = ("'a'", "''", "'%s'", "'%5d'", "'%(a)s'", "'%1000000000d'", "'%*d'", "'{}'", "'{0:>9}'", "'{0:>1000000000}'",
         "'{:{}}'", "' a b '", "'<|im_end|>'", "'&#983042;'", "'\\n'", "'\\t'", "'-'", "'é'", "'\U0001F600'",
         "'\\ud800'", "'a@b.c '", "'<!--'", "'utf-8'", "'idna'", "'unicode_escape'", "'content'", "'a.b.c'", "'upper'",
         "'random'")
VALUES = ("messages", "messages[0]", "messages[0].content", "tools", "loop", "ns", "missing", "range(9999)", "[1, 2]",
          "(1, 'a')", "{'a': 1}", "dict", "range", "cycler", "raise_exception", "x", "x", "x", "y")
METHODS = sorted({name for kind in (str, bytes, list, tuple, dict, int, float, range) for name in dir(kind)
                  if not name.startswith("_")})
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or")
GROWING = ("x + x", "x * 2", "x * x", "x ** 2", "x ~ x", "[x, x]", "(x, x)", "{'a': x, 'b': x}", "[x]", "x|string ~ x",
           "'%s%s' % (x, x)", "'{0}{0}'.format(x)", "x.replace('a', 'aa')", "x|replace('a', 'aa')", "[x, x]|join",
           "''.join([x, x])", "x.join(['a', x, 'a'])", "x|tojson", "(x ~ x)|e|string", "(x ~ ' ')|urlencode",
           "x|indent(99, true, true)", "(x ~ '\\t').expandtabs(99)", "x|map('string')", "x|batch(9)|list", "x|list",
           "x.encode('unicode_escape').decode() ~ x", "x.translate({97: 'aa'})", "x|pprint ~ x",
           "x.center(x|length * 2)", "x.zfill(x|length * 2)", "x|reverse ~ x", "dict(a=x, b=x)", "namespace(a=x)",
           "x.upper() ~ x", "x[:] + x[:]", "x|slice(9)|list", "x|groupby('a')", "x.splitlines() + [x]",
           "x|wordwrap(1) ~ x", "[x.index, x]", "[x].copy")
USES = ("", "{{ x }}", "{{ x|tojson }}", "{{ x == x|list }}", "{{ x in [x|list] }}", "{{ {x: 1} }}", "{{ x|sort }}",
        "{{ [x]|unique|list }}", "{{ '%s' % [x] }}", "{{ x|pprint }}", "{{ raise_exception(x) }}", "{{ x|length }}",
        "{% for y in x %}{% for z in x %}{{ z }}{% endfor %}{% endfor %}", "{{ x|list|join|length }}",
        "{{ x.find(x) }}", "{{ x.rfind('b' ~ x) }}", "{{ x.split('a')|length }}", "{{ x is eq y }}", "{{ x < y < x }}",
        "{{ x|striptags }}", "{{ x|urlize }}", "{{ x|wordwrap }}", "{{ x|wordcount }}", "{{ x|title }}",
        "{{ x|int(base=16) }}", "{{ x|float }}")
STARTS = ("'a'", "'<'", "'\\n'", "'é '", "[1]", "(1,)", "{'a': 1}", "3", "1.5", "messages", "messages[0].content")

TOO_MUCH = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if i is none %}{% for j in range(99999) %}{% endfor %}{% endfor %}" * 9,
    "{% for i in range(9999) %}{{ range(99999)|select('none')|list }}{% endfor %}",
    "{% for i in range(9999) %}{{ range(99999)|map(attribute='a', default=0)|list|length }}{% endfor %}",
    "{% for i in range(99999) %}" + "{% if i == 'x' %}{% endif %}" * 2000 + "{% endfor %}",
    "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}",
    "{{ 'a' * 10**10 }}", "{{ 10**10 * 'a' }}", "{{ [1] * 10**10 }}", "{{ 2**(10**10) }}", "{{ 10**5000 }}",
    "{{ 9**99999 * 9**99999 }}", "{{ '%1000000000d' % 5 }}", "{{ '%*d' % (10**9, 5) }}", "{{ '%.1000000000f' % 5 }}",
    "{{ '%1000000000d'|format(5) }}", "{{ '%((a))1000000000d' % {'(a)': 5} }}", "{{ '{:>1000000000}'.format(5) }}",
    "{{ '{:>{w}}'.format(5, w=10**9) }}", "{{ '%1000000000d' is even }}", "{{ '%1000000000d' is divisibleby(5) }}",
    "{{ ['%1000000000d']|select('odd')|list }}", "{{ 'a'.center(10**10) }}", "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.rjust(10**10) }}", "{{ 'a'.zfill(10**10) }}", "{{ '\t'.expandtabs(10**9) }}", "{{ 'a'|center(10**10) }}",
    "{{ 'a'|indent(10**10, true) }}", "{{ [1]|tojson(indent=10**10) }}", "{{ [1]|batch(10**10, 0)|list }}",
    "{{ [1]|slice(10**10)|list }}", "{{ 5|round(-10**9) }}", "{{ (1).to_bytes(10**10, 'big') }}",
    "{% for i in range(999) %}{{ lipsum(n=9999) }}{% endfor %}", "{{ lipsum() }}", "{{ ['a', 'b']|random }}",
    "{{ strftime_now('%s') }}", "{{ strftime_now('%c') }}", "{{ strftime_now('%99999999d') }}",
    "{% set a = 'a' * 99999 %}{% for i in range(9999) %}{{ (a ~ i).rfind('b' ~ a) }}{% endfor %}",
    "{% set a = 'a' * 99999 %}{% for i in range(9999) %}{{ a == a ~ i }}{% endfor %}",
    "{% set a = '<' * 99999 %}{% for i in range(9999) %}{{ (a ~ i)|striptags }}{% endfor %}",
    "{{ ('a@' * 99999)|urlize }}", "{{ ('a-' * 99999)|wordwrap(1, true, '-' * 9999) }}",
    "{{ ('é' * 99999).encode('ascii', 'namereplace') * 99 }}", "{{ ('a.' * 99999).encode('idna') }}",
)
"""Templates that take too long, too much memory or another way each time."""


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    row = {"conversations": [{"role": "user", "content": "x %s <b> é"}, {"role": "assistant", "content": "a"}]}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    yield _inspected(folder, "", "accepted")
    known = [*TOO_MUCH, *(_grown(start, expression, use) for start, expression, use in DOUBLED)]
    for source in random.sample(known, min(len(known), count // 2)):
        yield _inspected(folder, source, "refused")
    for _ in range(count - count // 2):
        yield _inspected(folder, random_source(random), "either")


DOUBLED = [(start, expression, use) for start, expressions, use in (
    ("'a'", ("x + x", "x * 2", "x ~ x", "'%s%s' % (x, x)", "'{0}{0}'.format(x)", "x.replace('a', 'aa')",
             "x|replace('a', 'aa')", "[x, x]|join", "''.join([x, x])", "x.translate({97: 'aa'})", "x|reverse ~ x",
             "x.upper() ~ x", "x[:] + x[:]", "x|tojson ~ x"), "{{ x }}"),
    ("[1]", ("[x, x]", "(x, x)", "{'a': x, 'b': x}", "x|list + x|list"), "{{ x }}"),
    ("[1]", ("[x, x]",), "{{ x|tojson }}"), ("[1]", ("[x, x]",), "{{ x == x|list }}"),
    ("[1]", ("[x, x]",), "{{ x in [x|list] }}"), ("(1,)", ("(x, x)",), "{{ {x: 1} }}"),
    ("[1]", ("[x, x]",), "{{ [x, x|list]|sort }}"), ("(1,)", ("(x, x)",), "{{ [x]|unique|list }}"),
    ("[1]", ("[x, x]",), "{{ '%s' % [x] }}"), ("[1]", ("[x, x]",), "{{ raise_exception(x) }}"),
    ("3", ("x * x",), "{{ x }}"),
) for expression in expressions]


def random_source(random: Random) -> str:
    """Returns statements at random."""
    parts = []
    for _ in range(random.randint(1, 3)):
        shape = random.randrange(6)
        if shape == 0:
            parts.append(f"{{{{ {expression(random)} }}}}")
        elif shape == 1:
            parts.append(f"{{% set y = {expression(random)} %}}")
        elif shape == 2:
            inner = f"{{{{ {expression(random)} }}}}{{% set x = {expression(random)} %}}"
            parts.append(f"{{% for x in {expression(random)} %}}{inner}{{% endfor %}}")
        else:
            parts.append(_grown(random.choice(STARTS), random.choice([*GROWING, expression(random)]),
                                random.choice([*USES, f"{{{{ {expression(random)} }}}}"]),
                                random.choice((3, 30, 300, 9999))))
    return "".join(parts)


def expression(random: Random, depth: int = 3) -> str:
    """Returns an expression at random."""
    def part() -> str:
        return expression(random, depth - 1)

    shape = random.randrange(10) if depth else random.randrange(3)
    if shape < 3:
        return random.choice((NUMBERS, TEXTS, VALUES)[shape])
    if shape == 3:
        return f"({part()} {random.choice(OPERATORS)} {part()})"
    if shape in (4, 5):
        arguments = ", ".join(part() for _ in range(random.randrange(3)))
        return f"({part()}).{random.choice(METHODS)}({arguments})"
    if shape in (6, 7):
        arguments = ", ".join(part() for _ in range(random.randrange(3)))
        return f"({part()}|{random.choice(sorted(FILTERS))}{f'({arguments})' if arguments else ''})"
    if shape == 8:
        name = random.choice([name for name in TESTS if name.isalpha()])
        return f"({part()} is {name}{f'({part()})' if random.random() < 0.5 else ''})"
    shapes = ("[{}, {}]", "({}, {})", "{{{}: {}}}", "({})[{}]", "({})[{}:{}]", "({} if {} else {})", "({})({})")
    return random.choice(shapes).format(part(), part(), part())


def _grown(start: str, expression: str, use: str, times: int = 60) -> str:
    """Returns statements that replace x by an expression of x many times, and use it."""
    return (f"{{% set ns = namespace(x={start}) %}}{{% for i in range({times}) %}}{{% set x = ns.x %}}"
            f"{{% set ns.x = {expression} %}}{{% endfor %}}{{% set x = ns.x %}}{use}")


def _inspected(folder: Path, source: str, expected: str) -> Try:
    """Inspects the row with a template that computes something before it writes the chat."""
    (folder / "chat.jinja").write_text(source + CHATML, encoding="utf-8")
    return Try(source[:120] or "a plain template", ["scripts/inspect_data.py", str(folder / "data.jsonl"),
                                                    "--chat_template", str(folder / "chat.jinja")],
               expected, seconds=SECONDS)
