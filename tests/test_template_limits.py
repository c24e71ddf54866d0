"""Chat templates run within a budget that depends on nothing but themselves and the conversation."""

import json

import jinja2
import pytest
from chats import TOKENIZER
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.template_budget import MAX_STEPS, Budget, TooMuchWork
from minimind_sft.data.template_sandbox import MAX_SOURCE, make_environment, render_parts
from minimind_sft.data.template_tracing import TracingEnvironment
from minimind_sft.errors import UserError

MESSAGES = [{"role": "user", "content": "Wer ß sagt, <b>muss</b> auch\n\n  SS sagen. "},
            {"role": "assistant", "content": "a, b & c", "calls": [{"name": "f", "arguments": {"x": [1, 2.5, None]}}]}]
TWICE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = GROWN %}{% endfor %}"
STEPS = "steps for a conversation of this size"
WIDTH = "a width of more than 10,000"
BITS = "a number of more than 14,000 bits"


def render(source: str, messages: list[dict] = MESSAGES, **variables) -> str:
    template = make_environment(TracingEnvironment).template(source)
    return "".join(render_parts(template, messages=messages, tools=None, **variables))


def refusal(source: str, messages: list[dict] = MESSAGES) -> str:
    with pytest.raises((jinja2.TemplateError, TooMuchWork)) as refused:
        render(source, messages)
    message = str(refused.value)
    assert len(message) < 400
    return message


def grown(start: str, expression: str, used: str) -> str:
    """Returns a template that replaces a value 60 times by a larger one, and uses it."""
    return TWICE.replace("START", start).replace("GROWN", expression) + used


@pytest.mark.parametrize("source", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if i is none %}{% endfor %}",
    "{% for i in range(99999)|select('none') %}{% endfor %}",
    "{% for i in range(99999)|map(attribute='real') %}{% endfor %}", "{{ range(6000)|map(attribute='real')|list }}",
    "{{ 'a' * 10**10 }}", "{{ 10**9 * 'a' }}", "{{ [1] * 10**10 }}", "{{ (1, 2) * 10**9 }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    grown("'a'", "ns.x + ns.x", "{{ ns.x }}"), grown("'a'", "ns.x ~ ns.x", ""),
    grown("'a'", "ns.x.replace('a', 'aa')", ""), grown("'a'", "ns.x|replace('a', 'aa')", ""),
    grown("'a'", "[ns.x, ns.x]|join", ""), grown("'a'", "''.join([ns.x, ns.x])", ""),
    grown("'a'", "'%s%s' % (ns.x, ns.x)", ""), grown("'a'", "'%s%s'|format(ns.x, ns.x)", ""),
    grown("'a'", "'{0}{0}'.format(ns.x)", ""), grown("'<'", "(ns.x ~ ns.x)|e|string", ""),
    grown("'a'", "(ns.x ~ '\t').expandtabs(9000)", ""), grown("'\n'", "ns.x|indent(9000, true, true)", ""),
    grown("'a'", "ns.x|tojson ~ ns.x|tojson", ""), grown("'a'", "ns.x.translate({97: 'aaaa'})", ""),
    grown("[1]", "[ns.x, ns.x]", "{{ ns.x }}"), grown("[1]", "[ns.x, ns.x]", "{{ ns.x|tojson }}"),
    grown("[1]", "[ns.x, ns.x]", "{{ ns.x == ns.x|list }}"), grown("[1]", "[ns.x, ns.x]", "{{ ns.x in [ns.x|list] }}"),
    grown("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"), grown("(1,)", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    grown("(1,)", "(ns.x, ns.x)", "{{ {}.get(ns.x) }}"), grown("(1,)", "(ns.x, ns.x)", "{{ [ns.x]|unique|list }}"),
    grown("[1]", "[ns.x, ns.x]", "{{ [ns.x, ns.x|list]|sort }}"), grown("[1]", "[ns.x, ns.x]", "{{ ns.x is eq [] }}"),
    grown("[1]", "[ns.x, ns.x]", "{{ raise_exception(ns.x) }}"), grown("[1]", "[ns.x, ns.x]", "{{ '%s' % [ns.x] }}"),
    grown("[1]", "[ns.x, ns.x]", "{% if 1 < ns.x < 2 %}{% endif %}"), grown("[1]", "ns.x + ns.x", ""),
    grown("[1]", "[ns.x, ns.x]", "{{ ns.x|pprint }}"),
    "{% set a = 'a' * 90000 %}{% for i in range(9999) %}{{ (a ~ i).rfind('b' ~ a) }}{% endfor %}",
    "{% set a = 'a' * 90000 %}{% for i in range(9999) %}{% if 'b' in a ~ 'c' %}{% endif %}{% endfor %}",
    "{% set a = 'a' * 90000 %}{{ a|urlize }}{{ a|wordwrap(1) }}",
    "{% for i in range(9999) %}" + "{% if i %}{% endif %}" * 500 + "{% endfor %}",
    "{% for i in range(9999) %}" + "x" * 5000 + "{% endfor %}",
    "{{ ('ab' * 14000).replace('a', '') }}", "{{ ('ab' * 14000).split('a') }}", "{{ ','.join('ab' * 9000) }}",
    "{% set x = 'ab' * 9000 %}{{ x|list }}", "{% set x = 'ab' * 9000 %}{{ x|join(',') }}",
    "{% set x = '\n' * 40000 %}{{ x|indent(1) }}",
    "{{ ('\n' * 12000).splitlines() }}", "{{ ('{0}' * 9000).format('a') }}",
    "{{ ('x'|safe).join(['<' * 90000, '<' * 90000]) }}", "{{ ('%s%s'|safe) % ('<' * 40000, '<' * 40000) }}",
    "{{ ('&lt;' * 40000)|striptags }}{{ (('&lt;' * 40000)|safe).unescape() }}",
    "{% set x = 'a b ' * 15000 %}{{ x|title }}",
    "{% for i in range(6000) %}{{ i.real }}{% endfor %}",
])
def test_work_that_the_conversation_does_not_justify_is_refused(source):
    assert STEPS in refusal(source)


@pytest.mark.parametrize("source, because", [
    ("{{ 2**99999 }}", BITS), ("{{ 10**5000 }}", BITS), ("{{ 9**4000 * 9**4000 }}", BITS),
    ("{{ ('9' * 4290)|int * 10**30 }}", BITS), ("{{ ('f' * 9000)|int(base=16) }}", BITS),
    (grown("3", "ns.x * ns.x", ""), BITS),
    ("{{ '%1000000000d' % 5 }}", WIDTH), ("{{ '%*d' % (10**9, 5) }}", WIDTH), ("{{ '%.1000000000f' % 5 }}", WIDTH),
    ("{{ '%((a))1000000000d' % {'(a)': 5} }}", WIDTH), ("{{ '{:>1000000000}'.format(5) }}", WIDTH),
    ("{{ '{:>{w}}'.format(5, w=10**9) }}", WIDTH), ("{{ '{:.1000000000f}'.format(5.5) }}", WIDTH),
    ("{{ 'a'.center(10**10) }}", WIDTH), ("{{ 'a'.ljust(10**10) }}", WIDTH), ("{{ 'a'.rjust(10**10, 'x') }}", WIDTH),
    ("{{ 'a'.zfill(10**10) }}", WIDTH), ("{{ 'a'|center(10**10) }}", WIDTH), ("{{ 'a'|indent(10**10) }}", WIDTH),
    ("{{ [1]|tojson(indent=10**10) }}", WIDTH), ("{{ [1]|batch(10**10, 0)|list }}", WIDTH),
    ("{{ [1]|slice(10**10)|list }}", WIDTH), ("{{ 5|round(-10**9) }}", WIDTH), ("{{ '\t'.expandtabs(10**9) }}", WIDTH),
    ("{{ '%1000000000d' is even }}", "expected a number"), ("{{ '%1000000000d' is divisibleby(5) }}", "a number"),
    ("{{ ['%1000000000d']|select('odd')|list }}", "expected a number"),
    ("{{ (1).to_bytes(10**10, 'big') }}", "no method to_bytes"), ("{{ 'a'.encode('idna') }}", "encode as UTF-8"),
    ("{{ range(10**9) }}", "Range too big"), ("{{ dict.fromkeys('ab') }}", "no method fromkeys"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "more than 100 calls inside each other"),
    ("{% block a %}{{ self.a() }}{% endblock %}", "more than 100 calls inside each other"),
    ("{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}", "more than 100 calls inside each other"),
    (grown("[1]", "[ns.x]", "") .replace("60", "200") + "{{ ns.x|tojson }}", "nests lists deeper than 128"),
    (grown("[1]", "ns.x|map('string')", "{{ ns.x|list }}"), "more than 16 filters wait for each other"),
])
def test_numbers_that_ask_for_too_much_are_refused(source, because):
    assert because in refusal(source)


@pytest.mark.parametrize("source, because", [
    ("{{ [1, 2]|random }}", "No filter named 'random'"), ("{{ lipsum() }}", "'lipsum' is undefined"),
    ("{{ [1, 2]|map('random')|list }}", "No filter named 'random'"),
    ("{{ strftime_now('%s') }}", "strftime_now('%s')"), ("{{ strftime_now('%c') }}", "strftime_now('%c')"),
    ("{{ strftime_now('%Ey') }}", "strftime_now('%Ey')"), ("{{ strftime_now('%9999999d') }}", "strftime_now('%999"),
    ("{{ messages|map('upper') }}", "has no text of its own"), ("{{ [raise_exception] }}", "has no text of its own"),
    ("{{ 'a' ~ cycler(1) }}", "has no text of its own"), ("{{ ['a']|join(attribute='upper') }}", "no text of its own"),
])
def test_what_differs_from_run_to_run_is_refused(source, because):
    assert because in refusal(source)


def test_the_date_is_the_same_everywhere():
    assert render("{{ strftime_now('%d %b %Y, %A %-d %%') }}") == "01 Jan 2026, Thursday 1 %"


@pytest.mark.parametrize("source, because", [
    ("{% if 1 %}" * 300 + "{% endif %}" * 300, "nests"), ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nests"),
    ("{{ " + "[" * 300 + "]" * 300 + " }}", "nests"), ("{{ " + "not " * 5000 + "1 }}", "nests"),
    ("{{ " + "1 + " * 5000 + "1 }}", "nests"), ("{{ x" + ".a" * 5000 + " }}", "nests"),
    ("{% for i in [] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
    ("x" * (MAX_SOURCE + 1), "expected at most 100,000 characters, found 100,001"),
    ("{{x~1}}" * 9_000, "expected at most 15,000 expressions and tags"),
    ("{% break %}", "outside loop"), ("{{ " + "9" * 5000 + " }}", "Exceeds the limit"),
    ("{{ 0x" + "f" * 9000 + " // 3 }}", "Exceeds the limit"),
    ("{% autoescape true %}{% endautoescape %}", "autoescape"), ("{% include 'x' %}", "loader"),
    ("{{ cycler() }}", "at least one item"), ("{{ '\\ud800' }}", "a lone surrogate"), ("a\ud800", "a lone surrogate"),
    ("{{ messages|indent }}", "expected text"), ("{{ {[1]: 2} }}", "unhashable"), ("{{ raise_exception(1) }}", "1"),
    ("{{ raise_exception('x' * 9999) }}", "xxx"), ("{{ {}['x' * 9999].y }}", "no attribute"),
])
def test_whatever_jinja_raises_is_a_template_error(source, because):
    assert because in refusal(source)


def test_a_filter_does_not_change_the_conversation():
    messages = [{"role": "user", "content": "q", "calls": ["a"]}]
    refusal("{{ messages[0].calls|indent }}", messages)
    assert messages == [{"role": "user", "content": "q", "calls": ["a"]}]


@pytest.mark.parametrize("expression", [
    "1 + 2 * 3 - 4 / 5", "7 // 2 ~ 7 % 3 ~ 2 ** 3", "-1 ~ +1", "'a' * 3 + 'b'", "[1] + [2] * 2", "(1,) + (2,)",
    "'%s-%05d-%(x)s'", "'%s %05d' % ('a', 3)", "'%(a)s' % {'a': 1}", "'%d%%' % 3", "'{} {0.x}'",
    "'{:>5}|{!r}'.format(1, 'a')",
    "messages[0].content.split(' ')[1:]", "messages[0].content[::-1]", "messages[0]['content'].splitlines()",
    "messages[0].content.partition('ß')", "messages[0].content.rsplit(maxsplit=2)",
    "messages[0].content.upper().title()",
    "messages[0].content.strip('W .').startswith(('er', 'x'))", "'a-b'.replace('-', '+', 1).zfill(9).center(11, '.')",
    "'a\tb'.expandtabs(4)", "'ab'.encode().decode()", "'a'.encode('unicode_escape')",
    "'abc'.find('c') ~ 'abc'.count('b')",
    "messages|map(attribute='role')|join(', ')", "messages|selectattr('role', 'equalto', 'user')|list|length",
    "messages|rejectattr('calls', 'defined')|map('tojson')|list", "messages|groupby('role')",
    "messages|first|items|list",
    "(messages|selectattr('role', 'eq', 'x')) and 'a generator is true'", "[3, 1, 2]|sort(reverse=true)|join",
    "[1, [2]]|string",
    "['b', 'A', 'b']|unique|list", "['b', 'A']|sort|first ~ ['b', 'A']|max", "{'b': 1, 'a': [2]}|dictsort",
    "[1, 2, 3]|sum",
    "[[1], [2]]|sum(start=[])", "[1, 2, 3]|batch(2, 0)|list", "[1, 2, 3]|slice(2)|list", "'abc'|list|reverse|list",
    "messages[1]|tojson(indent=2)", "messages|tojson(separators=(',', ':'), sort_keys=true)",
    "'é'|tojson(ensure_ascii=true)",
    "messages[0].content|striptags|wordcount", "messages[0].content|escape",
    "messages[0].content|trim|capitalize|title",
    "messages[0].content|truncate(12) ~ 'a b'|wordwrap(1)", "messages[0].content|indent(2, true)",
    "messages[0].content|urlize",
    "{'a': 'b c', 'd': 1}|urlencode ~ 'ä/b'|urlencode", "{'a': 'b'}|xmlattr", "'a'|center(9) ~ '%s!'|format('x')",
    "'7'|int + '1.5'|float + 2.567|round(2) + -3|abs", "'ff'|int(base=16) ~ 1000|filesizeformat",
    "[1, {'a': 'b'}]|pprint",
    "none|default('x', true) ~ missing|default('y')", "'x' in 'xyz' and 1 in [1] and 'role' in messages[0]",
    "1 < 2 <= 2 < 3",
    "messages[0] == messages[0]|items|list|length", "messages[0].content == messages[1].content",
    "[1] == [1] and (1,) != [1]",
    "3 is odd and 4 is even and 6 is divisibleby 3", "'a' is lower and 'A' is upper and 'a' is in 'abc' and 2 is gt 1",
    "dict(a=1).get('b', 2) ~ {'a': 1}.items()", "range(3)|list ~ range(1, 9, 3)", "namespace(a=1).a",
    "joiner(', ')()", "missing",
    "cycler(1, 2).next()", "none ~ true ~ 1.0 ~ 1e100 ~ -0.0", "messages[-1].calls[0].arguments.x|tojson",
    "'a'|e|safe ~ '<'",
])
def test_within_the_limits_templates_render_as_in_plain_jinja(expression):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = lambda value, **given: json.dumps(value, **{"ensure_ascii": False, **given})
    for source in (f"{{{{ {expression} }}}}", f"{{% if {expression} %}}yes{{% endif %}}",
                   f"{{% for x in [{expression}] %}}{{% set y = x %}}{{{{ y }}}}{{% endfor %}}"):
        expected = plain.from_string(source).render(messages=MESSAGES)
        assert render(source) == expected


@pytest.mark.parametrize("source", [
    "{% macro f(a, b='x') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, c=4) }}",
    "{% macro f() %}<{{ caller('x') }}>{% endmacro %}{% call(y) f() %}{{ y }}{% endcall %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% else %}none{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.role }}"
    "{% break %}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop.depth }}{% if x is iterable %}{{ loop(x) }}{% endif %}{% endfor %}",
    "{% set x %}a{{ 1 }}{% endset %}{% filter upper %}{{ x }}b{% endfilter %}{% with y = 2 %}{{ y }}{% endwith %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{{ loop.changed(ns.n) }}{% endfor %}{{ ns.n }}",
    "{% block a %}{{ messages|length }}{% endblock %}{{ self.a() }}",
    "{% set found = messages|selectattr('calls', 'defined') %}{% for m in found %}{{ m.role }}"
    "{% endfor %}{{ found|list }}",
    "{% for a, b in {'x': 1}.items() %}{{ loop.cycle('o', 'e') }}{{ a ~ b }}{{ ',' if not loop.last }}{% endfor %}",
])
def test_statements_render_as_in_plain_jinja(source):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    assert render(source) == plain.from_string(source).render(messages=MESSAGES)


def test_long_conversations_have_larger_budgets():
    source = "{% for m in messages %}{% for n in messages %}{{ n.content if loop.first }}{% endfor %}{% endfor %}"
    long = [{"role": "user", "content": "some words"}] * 600
    assert len(render(source, long)) == 6000
    assert STEPS in refusal("{% for i in range(99999) %}{% endfor %}" * 40, long)


def test_a_budget_ends_at_its_limit():
    budget = Budget()
    budget.start([{"role": "user", "content": "x" * 10**7}], None)
    budget.spend(MAX_STEPS)
    with pytest.raises(TooMuchWork, match="more than 4,000,000 steps"):
        budget.spend(1)


def test_the_budget_of_a_rendering_does_not_depend_on_the_one_before():
    source = "{% for i in range(30000) %}{% endfor %}{{ tools|tojson }}"
    template = make_environment(TracingEnvironment).template(source)
    tools = [{"type": "function"}]
    for _ in range(3):
        assert render_parts(template, messages=MESSAGES, tools=tools) == ['[{"type": "function"}]']


@pytest.mark.parametrize("source, because", [
    ("{{ 'a' * 10**10 }}", f"chat template: line 2: it takes more than 50,{{}} {STEPS}"),
    ("{{ '%1000000000d' % 5 }}", WIDTH), ("{{ [1]|random }}", "chat template: No filter named 'random'."),
])
def test_a_template_that_asks_for_too_much_is_one_line(source, because):
    with pytest.raises(UserError) as refused:
        ChatTemplate(TOKENIZER, "{# a comment #}\n" + source + TOKENIZER.chat_template)
    message = str(refused.value)
    assert all(part in message for part in because.split("{}"))
    assert "\n" not in message


def test_a_row_that_takes_too_much_is_named():
    loop = "{% for i in range(messages[0].content|length * 9999) %}{% endfor %}"
    source = f"{{% if messages[0].content == 'long' %}}{loop}{loop}{{% endif %}}{TOKENIZER.chat_template}"
    template = ChatTemplate(TOKENIZER, source)
    with pytest.raises(UserError, match=f"^the conversation: chat template: line 1: it takes more than .* {STEPS}$"):
        template.render([{"role": "user", "content": "long"}])
