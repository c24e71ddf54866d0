"""Text whose characters have origins: it is the text that it would be without, and data never gains an origin."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_sft.data.traced_text import (
    DATA,
    GAP_AFTER,
    GAP_BEFORE,
    TAG,
    TEMPLATE,
    TEMPLATE_RUN,
    TracedText,
    concat,
    format_traced,
    is_of_template,
    modulo,
    of_template,
    origins_of,
    plain,
    untraced,
    with_tags,
)

OWN, OTHERS = "<|>aAbB %sS{}0nNmMeE", "[]xXyYß\n"
"""Characters that only the template has, and others that only the data have, in either case."""

CONSTANTS = st.text(OWN, max_size=4)
DATA_TEXTS = st.text(OTHERS, max_size=4)
TEXTS = st.one_of(CONSTANTS.map(of_template), DATA_TEXTS,
                  st.lists(st.one_of(CONSTANTS.map(of_template), DATA_TEXTS), max_size=4).map(concat))
NUMBERS = st.one_of(st.none(), st.integers(-4, 4))


def shown(text: str) -> str:
    """Returns the origins as letters; `<` or `>` beside one is a gap."""
    return "".join("<" * bool(origin & GAP_BEFORE) + "dtg"[origin & 3] + ">" * bool(origin & GAP_AFTER)
                   for origin in origins_of(text))


def check(result: object, expected: object) -> None:
    """Checks that a result is what ordinary strings give, and that no character of the data is the template's."""
    if isinstance(expected, list | tuple):
        assert isinstance(result, type(expected)) and len(result) == len(expected)
        for part, expected_part in zip(result, expected, strict=True):
            check(part, expected_part)
        return
    assert result == expected
    if isinstance(result, str):
        assert len(origins_of(result)) == len(result)
        for character, origin in zip(result, origins_of(result), strict=True):
            assert not origin & TEMPLATE or plain(character) in OWN


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS, st.sampled_from([None, -1, 1, 2]))
def test_results_are_those_of_ordinary_strings_and_data_stays_data(text, other, third, start, stop, step):
    ours, theirs = (text, other, third), (plain(text), plain(other), plain(third))
    count = stop if stop is not None else -1
    for operation in (
        lambda a, b, c: a + b + c,
        lambda a, b, c: (a + b) * max(count, 0),
        lambda a, b, c: a[start:stop:step],
        lambda a, b, c: list(a),
        lambda a, b, c: a.join([b, c, a]),
        lambda a, b, c: a.replace(b, c, count),
        lambda a, b, c: (a.strip(b), a.lstrip(c), a.rstrip(), a.strip()),
        lambda a, b, c: (a.removeprefix(b), a.removesuffix(c)),
        lambda a, b, c: a.split(b, count) if b else a.split(None, count),
        lambda a, b, c: a.rsplit(b, count) if b else a.rsplit(None, count),
        lambda a, b, c: (a.splitlines(), a.splitlines(True)),
        lambda a, b, c: (a.partition(b), a.rpartition(b)) if b else (),
        lambda a, b, c: (a.upper(), a.lower(), a.title(), a.capitalize(), a.swapcase(), a.casefold()),
        lambda a, b, c: (a == b, a < b, b in a, len(a), a.find(b), hash(a), a.startswith(b), a.isalpha()),
        lambda a, b, c: (a.center(9, "<"), a.zfill(9), a.expandtabs(), a.encode().decode()),
        lambda a, b, c: json.dumps({a: [b, c]}, ensure_ascii=False),
        lambda a, b, c: {b: c}.get(a, a),
    ):
        check(operation(*ours), operation(*theirs))
    check(concat(ours), "".join(theirs))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["<", "|", "%s", "%%", "%", "{}", "{0}", "{name}", "{", "}", "{{", "a"]), max_size=5),
       TEXTS, TEXTS)
def test_filling_in_keeps_the_origins_of_both(parts, first, second):
    pattern = of_template("".join(parts))
    for values in (first, (first,), (first, second), {"name": first}):
        outcomes = []
        for fill in (lambda text, values: text % values,
                     lambda text, values: format_traced(text, plain(text).format, *as_tuple(values), name=second)
                     if type(text) is TracedText else text.format(*as_tuple(values), name=plain(second))):
            for text, given_values in ((pattern, values), (plain(pattern), as_plain(values))):
                try:
                    outcomes.append(fill(text, given_values))
                except (TypeError, ValueError, LookupError) as error:
                    outcomes.append(type(error).__name__)
        for ours, theirs in (outcomes[:2], outcomes[2:]):
            check(ours, theirs)


def as_tuple(values: object) -> tuple:
    return values if isinstance(values, tuple) else (values,)


def as_plain(values):
    if isinstance(values, tuple):
        return tuple(map(plain, values))
    return {name: plain(value) for name, value in values.items()} if isinstance(values, dict) else plain(values)


@pytest.mark.parametrize("text, origins", [
    (of_template("<|") + "x" + of_template("|>"), "ttdtt"),
    ("x" + of_template("|>"), "dtt"),
    (of_template("<|%s|>") % "x", "ttdtt"),
    (of_template("%s%%") % of_template("x"), "tt"),
    (of_template("<|%s|%s") % (of_template("user"), "x"), "ttttttt" + "d"),
    (of_template("%c") % "x", "d"),
    (of_template("ab").join(["x", of_template("<")]), "dttt"),
    (of_template("ab").join(["x", "y"]), "dddd"),
    (of_template("a%b").replace(of_template("%"), "x"), "tdt"),
    (("x" + of_template("ab")).replace(of_template("x"), of_template("<>")), "dd<tt"),
    (of_template("ab").replace("a", ""), "d"),
    ((of_template(" ab") + "x ").strip(), "ttd"),
    (of_template("ab").strip("a"), "d"),
    ((of_template("a,b") + "x").split(of_template(","))[1], "td"),
    (of_template("a,b").split(",")[1], "d"),
    (of_template("ab")[::-1], "tt"),
    ((of_template("a") + "x")[::-1], "dd"),
    (of_template("ab") + "" + of_template("c"), "tt>t"),
    (of_template("ab") + of_template("") + of_template("c"), "ttt"),
    (concat([of_template("a"), "", of_template("b")]), "t><t"),
    (of_template("a%sb") % "", "t><t"),
    ((of_template("ab") + "#").rstrip(of_template("#")) + of_template("c"), "tt>t"),
    (of_template("a") + ("#" + of_template("bc")).lstrip(of_template("#")), "t<tt"),
    ((of_template("ab") + " ").strip(), "tt>"),
    (of_template("ab ").strip(), "tt"),
    ((of_template("a") + "#" + of_template("b")).replace(of_template("#"), of_template("")), "t><t"),
    ((of_template("a") + "#" + of_template("b")).partition(of_template("#"))[0], "t>"),
    (of_template("").join((of_template("a") + "#" + of_template("b")).split(of_template("#"))), "t><t"),
    (of_template("ab").join((of_template("a") + "#" + of_template("b")).split(of_template("#"))), "t>dd<t"),
    ((of_template("a") + "#" + of_template("b"))[2], "<t"),
    ((of_template("aa") + "ß").upper(), "dddd"),
    (of_template("ab").upper(), "tt"),
    (TracedText(of_template("ab")), "dd"),
    (str(of_template("ab")), "tt"),
    (with_tags("a<b>c", re.compile("<b>")), "dgggd"),
    (with_tags("a<b>c", re.compile("<b>")).split(of_template("<b>"))[1], "d"),
])
def test_origins_written_out(text, origins):
    assert shown(text) == origins


@pytest.mark.parametrize("left, right, origins", [
    ("%s", of_template("<|>"), "ddd"), ("%s", (of_template("<|>"),), "ddd"), (of_template("%s"), "x", "d"),
    (of_template("%") + "s", of_template("<|>"), "ddd"), (of_template("%s"), of_template("x"), "t"),
])
def test_text_of_the_data_passes_no_origins_on(left, right, origins):
    """Python returns the argument itself for a lone `%s`."""
    assert shown(modulo(left, right)) == origins


def test_what_a_method_of_the_data_returns_is_data():
    assert [*map(shown, untraced("a<b".partition(of_template("<"))))] == ["d", "d", "d"]
    assert [*map(shown, ("x" + of_template("<")).partition("x" + of_template("<")))] == ["", "dd", ""]


def test_a_run_of_the_template_ends_at_a_gap():
    runs = [found[0] for found in re.finditer(TEMPLATE_RUN, bytes([1, 1, 5, 1, 0, 9, 1, 1, 9, 5, 13, 1, 2, 1]))]
    assert list(map(list, runs)) == [[1, 1, 5], [1], [9, 1, 1], [9, 5], [13], [1], [1]]


def test_what_counts_as_the_template_s():
    tag = with_tags("<b>", re.compile("<b>"))
    assert is_of_template(of_template("a")) and not any(map(is_of_template, ("a", "", tag, of_template("a") + "b", 1)))
    assert (DATA, TEMPLATE, TAG) == (0, 1, 2) and shown(tag) == "ggg"


def test_a_name_in_a_format_is_not_taken_for_what_the_data_put_there():
    filled = of_template("%s%(<|a|>)s") % {"<|a|>": "%(<|a|>)s"}
    assert filled.endswith("}%(<|a|>)s") and not is_of_template(filled[-len("<|a|>)s"):])
