"""Calls found in answers, their scores, and the validity of JSON."""

import pytest
from chats import BUNDLED, CALL, TOOLS, conversation

from minimind_sft.evaluation.tool_calls import (
    Call,
    Calls,
    call_scores,
    calls_in,
    canonical,
    expected_calls,
    json_scores,
)

ROME = Call("weather", '{"city": "Rome"}')


def tagged(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


@pytest.mark.parametrize(("answer", "expected"), [
    ("It rains.", Calls([], 0)),
    (tagged('{"name": "weather", "arguments": {"city": "Rome"}}'), Calls([ROME], 0)),
    ("Let me look.\n" + tagged('{"name": "weather", "arguments": {"city": "Rome"}}'), Calls([ROME], 0)),
    ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}', Calls([ROME], 0)),
    (tagged('{"name": "weather", "arguments": {"city": "Rome"}}', '{"name": "weather", "arguments": {"city"'),
     Calls([ROME], 1)),
    (tagged('{"name": "weather"}', '["weather"]', "null", '{"name": "", "arguments": {}}'), Calls([], 4)),
    (tagged('{"name": "weather", "arguments": {"city": NaN}}'), Calls([], 1)),
    (tagged("[" * 10_000), Calls([], 1)),
    ("<tool_call>", Calls([], 1)),
    ('{"name": "weather", "parameters": {"city": "Rome"}}', Calls([ROME], 0)),
    ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', Calls([ROME], 0)),
    ("[TOOL_CALLS] weather", Calls([], 1)),
    ('{"name": "Rome", "people": 3}', Calls([], 0)),
    ("[]", Calls([], 0)),
])
def test_calls_in_an_answer(answer: str, expected: Calls):
    assert calls_in(answer) == expected


def test_what_the_template_writes_is_found():
    chat = conversation(("user", "?"), ("assistant", "", {"tool_calls": CALL}), tools=TOOLS)
    written = BUNDLED.render(chat.messages, chat.tools).rpartition("<|im_start|>assistant\n")[2]
    written = written.replace("<think>\n\n</think>\n\n", "").removesuffix("<|im_end|>\n")
    assert calls_in(written) == Calls(expected_calls(chat.messages[1]), 0)
    assert expected_calls(chat.messages[1]) == [Call("weather", '{"city": "罗马"}')]
    assert expected_calls(chat.messages[0]) == []


@pytest.mark.parametrize(("answer", "scores"), [
    (tagged('{"arguments": {"city": "Rome"}, "name": "weather"}'), (1, 1, 1, 1)),
    (tagged('{"name": "weather", "arguments": {"city": "Roma"}}'), (1, 1, 1, 0)),
    (tagged('{"name": "time", "arguments": {"city": "Rome"}}'), (1, 1, 0, 0)),
    (tagged('{"name": "weather", "arguments": {"city": "Rome"}}') * 2, (1, 1, 0, 0)),
    (tagged('{"name": "weather", "arguments": {"city": "Rome"}}', "oops"), (1, 0, 0, 0)),
    ("Rain.", (0, 0, 0, 0)),
])
def test_scores_of_an_expected_call(answer: str, scores: tuple[int, ...]):
    found = call_scores(answer, [ROME])
    assert found == dict(zip(("call_made", "call_valid", "call_name", "call_exact"), scores, strict=True))


def test_the_order_of_calls_does_not_matter():
    calls = ['{"name": "a", "arguments": {"x": 1}}', '{"name": "b", "arguments": {}}']
    assert call_scores(tagged(*reversed(calls)), [Call("a", '{"x": 1}'), Call("b", "{}")])["call_exact"] == 1
    swapped = ['{"name": "a", "arguments": {}}', '{"name": "b", "arguments": {"x": 1}}']
    found = call_scores(tagged(*swapped), [Call("a", '{"x": 1}'), Call("b", "{}")])
    assert (found["call_name"], found["call_exact"]) == (1, 0)


def test_a_needless_call():
    assert call_scores("Rain.", []) == {"needless_call": 0.0}
    assert call_scores("<tool_call>", []) == {"needless_call": 1.0}


def test_equal_values_are_equal_texts():
    assert canonical({"b": [5.0, True], "a": None}) == canonical({"a": None, "b": [5, True]})
    assert canonical(True) != canonical(1) != canonical("1")
    assert canonical(0.5) != canonical(0)


@pytest.mark.parametrize(("answer", "expected", "scores"), [
    ('{"b": 1, "a": 2.0}', '{"a": 2, "b": 1}', {"json_valid": 1, "json_equal": 1}),
    ("[1, 2]", "[2, 1]", {"json_valid": 1, "json_equal": 0}),
    ('{"a": 2', '{"a": 2}', {"json_valid": 0, "json_equal": 0}),
    ('```json\n{"a": 2}\n```', '{"a": 2}', {"json_valid": 0, "json_equal": 0}),
    ("null", '{"a": 2}', {"json_valid": 1, "json_equal": 0}),
    ("5", "5", {}),
    ("Rome", "Rome", {}),
])
def test_scores_where_json_is_expected(answer: str, expected: str, scores: dict[str, int]):
    assert json_scores(answer, expected) == scores
