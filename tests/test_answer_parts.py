"""An answer is told apart while it is generated: reasoning, tool calls, and the rest."""

import pytest

from minimind_sft.inference.answer_parts import answer_parts, described_calls


def parts(*pieces: str, starts_thinking: bool = False) -> list[tuple[str, str]]:
    """Returns (kind, text) with neighbouring text of one kind joined; tags stand alone, as (kind!, tag)."""
    found: list[tuple[str, str]] = []
    for part in answer_parts(iter(pieces), lambda: starts_thinking):
        kind = f"{part.kind}!" if part.is_tag else part.kind
        if found and found[-1][0] == kind and not part.is_tag:
            found[-1] = (kind, found[-1][1] + part.text)
        else:
            found.append((kind, part.text))
    return found


ANSWER = "<think>\nhm\n</think>\n\nSo:<tool_call>\n{}\n</tool_call> done"
EXPECTED = [("thinking!", "<think>"), ("thinking", "\nhm\n"), ("thinking!", "</think>"), ("text", "\n\nSo:"),
            ("call!", "<tool_call>"), ("call", "\n{}\n"), ("call!", "</tool_call>"), ("text", " done")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_tags_are_found_however_the_tokens_cut_them(size):
    assert parts(*(ANSWER[start:start + size] for start in range(0, len(ANSWER), size))) == EXPECTED


def test_the_prompt_may_have_opened_the_reasoning():
    assert parts("hm", "</think>", "yes", starts_thinking=True) == [
        ("thinking!", "<think>\n"), ("thinking", "hm"), ("thinking!", "</think>"), ("text", "yes")]


@pytest.mark.parametrize("text", ["", "a < b", "a <", "<thin", "</think>", "</tool_call>", "<THINK>", "<<",
                                  "1<2<think"])
def test_other_text_is_text(text):
    assert "".join(part for _, part in parts(*text)) == text
    assert {kind for kind, _ in parts(*text)} <= {"text"}


def test_text_is_not_held_back():
    given = iter(["Hello", " <", "b> ", "end"])
    shown = answer_parts(given, lambda: False)
    assert [next(shown).text for _ in range(4)] == ["Hello", " ", "<b> ", "end"]


@pytest.mark.parametrize(("text", "described"), [
    ('{"name": "weather", "arguments": {"city": "罗马", "days": 2}}', ['weather(city="罗马", days=2)']),
    ('{"name": "now"}', ["now()"]),
    ('[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": null}}]', ["a()", "b(x=null)"]),
    ('{"name": "a", "arguments": "x"}', ["a: not a call: its arguments are not a JSON object"]),
    ('{"name": 1}', ["not a call: expected JSON with name and arguments"]),
    ("{'name': 'a'}", ["not a call: expected JSON with name and arguments"]),
    ("[]", ["not a call: expected JSON with name and arguments"]),
    ("[" * 100_000, ["not a call: expected JSON with name and arguments"]),
])
def test_calls_are_described(text, described):
    assert described_calls(f"<tool_call>\n{text}\n</tool_call>") == described


def test_a_call_that_is_cut_short_is_not_described():
    assert described_calls('<tool_call>{"name": "a", "arg') == []
