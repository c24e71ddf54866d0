"""Parsing JSON: what the standard leaves to each reader, and what takes too much memory, is refused."""

import json

import pytest

from minimind_sft.errors import UserError
from minimind_sft.strict_json import MAX_DEPTH, MAX_DIGITS, MAX_VALUES, parse_json


@pytest.mark.parametrize("value", [
    None, True, "一😀\\u0000\\ud83d", [], {}, {"": [1, -2.5e-3, {"a": {"a": 1}}]}, 10**307])
def test_plain_json_is_read(value):
    assert parse_json(json.dumps(value), "a") == value


@pytest.mark.parametrize(("text", "problem"), [
    ('{"a": 1, "a": 2}', "a is there twice"),
    ('{"a": 1, "b": 2, "b": 2}', "b is there twice"),
    ('[{"x": {"a\\u001b": 1, "a\\u001b": 1}}]', "a\\x1b is there twice"),
    ('{"' + "b" * 100 + '": 1, "' + "b" * 100 + '": 1}', "b" * 40 + " is there twice"),
    ("NaN", "NaN is not a number in JSON"),
    ("[-Infinity]", "-Infinity is not a number in JSON"),
    ("1e400", "1e400 is too large a number"),
    ("1" * (MAX_DIGITS + 1), "1" * 40 + "... is too large a number"),
    ('"\\ud800"', "a string holds \\ud800, half of a surrogate pair, which is not a character"),
    ('{"\\udfff": 1}', "a string holds \\udfff, half of a surrogate pair, which is not a character"),
    ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "the JSON is nested too deeply"),
    ("[" * 100_000, "the JSON is nested too deeply"),
    ('{"a":' * 100_000, "the JSON is nested too deeply"),
    ("", "expected a list, found broken JSON at column 1: Expecting value"),
    ("[\n1\n2]", "expected a list, found broken JSON at line 3, column 1: Expecting ',' delimiter"),
    ("[1] 2", "expected a list, found broken JSON at column 5: Extra data"),
    ("{'a': 1}", "expected a list, found broken JSON at column 2: Expecting property name enclosed in double quotes; "
                 "is it a Python literal? json.dumps writes JSON"),
    ("[01]", "expected a list, found broken JSON at column 3: Expecting ',' delimiter"),
])
def test_other_text_is_refused(text, problem):
    with pytest.raises(UserError) as error:
        parse_json(text, "a.json", "a list")
    assert str(error.value) == f"a.json: {problem}"


def test_the_number_of_values_is_bounded_but_text_may_have_any_commas():
    assert parse_json('["a, b, c, d, e", 1]', "a", max_values=4) == ["a, b, c, d, e", 1]
    with pytest.raises(UserError, match="a: expected at most 4 values in the JSON"):
        parse_json("[[], [], []]", "a", max_values=4)


def test_the_largest_tokenizers_have_fewer_values():
    assert MAX_VALUES > 262_144 + 3 * 514_906, "Gemma 3's: tokens, and merges as pairs"
