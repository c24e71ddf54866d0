"""JSON that arrives in pieces: where a value ends, and the first character that no JSON could have."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_sft.serving.json_scanner import BrokenJson, JsonScanner

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) |
                      st.text(max_size=6), lambda inner: st.lists(inner, max_size=3) |
                      st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)


def scan(text: str) -> tuple[int, bool]:
    """Reads a text character by character; returns how far, and whether the value ended there."""
    scanner = JsonScanner()
    for at in range(len(text)):
        end, is_done = scanner.scan(text[:at + 1], at)
        assert end == at + 1 or text[at] in " \t\n\r"
        if is_done:
            return at + 1, True
    return len(text), False


@settings(max_examples=80, deadline=None)
@given(st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.booleans(),
       st.sampled_from([None, 1]))
def test_the_end_of_a_value_is_found(value, in_ascii, indent):
    text = json.dumps(value, ensure_ascii=in_ascii, indent=indent)
    assert scan(f"{text} }}") == JsonScanner().scan(f"{text} }}", 0) == (len(text), True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(list('{}[]:,"\\u1e0-+.tnfaulse \n')), max_size=12).map("".join))
def test_what_is_accepted_is_json(text):
    text = f"[{text}"
    try:
        end, is_done = JsonScanner().scan(text, 0)
    except BrokenJson:
        with pytest.raises(json.JSONDecodeError):
            json.JSONDecoder().raw_decode(text)
        return
    if is_done:
        assert json.JSONDecoder().raw_decode(text)[1] == end
    else:
        with pytest.raises(json.JSONDecodeError):
            json.JSONDecoder().raw_decode(text)


@pytest.mark.parametrize(("text", "broken_at"), [
    ("x", 0), ("1", 0), ('{"a" 1}', 5), ("{a}", 1), ("[1,]", 3), ('{"a": 1,}', 8), ("[}", 1), ("[01]", 2), ("[1.]", 3),
    ("[-]", 2), ("[tru]", 4), ("[True]", 1), ("[NaN]", 1), ('["\n"]', 2), ('["\\x"]', 3), ('["\\u12g4"]', 6),
    ("[1 2]", 3), ("[1e5e]", 4), ("[" * 101, 100), (f"[{'1' * 309}]", 309),
])
def test_the_first_impossible_character(text, broken_at):
    scanner = JsonScanner()
    with pytest.raises(BrokenJson):
        scanner.scan(text, 0)
    assert scanner.broken_at == broken_at
