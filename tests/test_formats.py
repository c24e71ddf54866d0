"""Every dress that conversation data come in, and what is said about a row that wears none of them right."""

import json

import pytest

from minimind_sft.data.conversation import Conversation, canonical_row, parse_conversation, parse_row
from minimind_sft.errors import UserError

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "罗马"}}}
TOOL = {"name": "weather", "description": "of a city"}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def messages(row: dict) -> tuple[dict, ...]:
    parsed = parse_conversation(row, "a.jsonl:7")
    # What is parsed once reads the same from its canonical row.
    assert parse_conversation(json.loads(json.dumps(canonical_row(parsed))), "a.jsonl:7") == parsed
    return parsed.messages


def refusal(row: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_row(row, "a.jsonl:7")
    return str(error.value).removeprefix("a.jsonl:7: ")


def test_sharegpt_with_tools_a_call_and_what_it_gave():
    row = {"conversations": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "晴?"},
                             {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "罗马"}}'},
                             {"from": "observation", "value": "晴"}, {"from": "gpt", "value": "It is sunny."}],
           "tools": json.dumps([TOOL])}
    assert messages(row) == (
        {"role": "system", "content": "be kind"}, user("晴?"), assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "晴"}, assistant("It is sunny."))
    assert parse_conversation(row, "").tools == [TOOL]


def test_sharegpt_with_reasoning():
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "thinking": "hm"}]}
    assert messages(row)[1] == assistant("a", reasoning_content="hm")


def test_sharegpt_calls_several_functions_at_once():
    calls = [{"name": "a", "arguments": {}}, {"name": "b", "arguments": '{"x": 1}'}]
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(calls)}]}
    assert [call["function"] for call in messages(row)[1]["tool_calls"]] == [
        {"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": 1}}]


def test_openai_messages_with_parts_calls_and_ids():
    row = {"messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "罗马"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "晴"},
        {"role": "assistant", "content": "fine", "reasoning": "hm", "refusal": None}]}
    assert messages(row) == (
        {"role": "system", "content": "be brief"}, user("ab"), assistant("", tool_calls=[{"id": "c1", **CALL}]),
        {"role": "tool", "content": "晴", "name": "weather", "tool_call_id": "c1"},
        assistant("fine", reasoning_content="hm"))


def test_openai_s_older_function_call():
    row = {"messages": [user("q"), {"role": "assistant", "content": None,
                                    "function_call": {"name": "weather", "arguments": '{"city": "罗马"}'}},
                        {"role": "function", "name": "weather", "content": "晴"}, assistant("sunny")]}
    assert messages(row)[1:3] == (
        assistant("", tool_calls=[CALL]), {"role": "tool", "content": "晴", "name": "weather"})


def test_prompt_and_completion_as_text_and_as_messages():
    assert messages({"prompt": "q", "completion": " a"}) == (user("q"), assistant(" a"))
    earlier = [user("a"), assistant("b"), user("c")]
    for completion in ([assistant("d")], assistant("d")):
        assert messages({"prompt": earlier, "completion": completion}) == (
            user("a"), assistant("b", train=False), user("c"), assistant("d"))
    for flag in ("train", "weight"):  # an exported table has the field in every turn
        empty = [user("a"), assistant("b", **{flag: None}), user("c")]
        assert messages({"prompt": empty, "completion": "d"})[1] == assistant("b", train=False)
    weighted = [user("a"), assistant("b", weight=1), user("c")]
    assert "train" not in messages({"prompt": weighted, "completion": "d"})[1]


@pytest.mark.parametrize("given, question", [
    ({"instruction": "add", "input": "1 2"}, "add\n1 2"),
    ({"instruction": "add", "input": ""}, "add"),
    ({"instruction": " add \n"}, " add \n"),
    ({"instruction": "", "input": "1 2"}, "1 2"),
])
def test_alpaca(given, question):
    assert messages({**given, "output": "3", "text": "a rendering of it all"}) == (user(question), assistant("3"))


def test_alpaca_with_a_system_turn_and_history():
    row = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
    assert messages(row) == ({"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d"))


def test_running_text():
    assert parse_row({"text": "一 ", "id": 5}, "a:1") == "一 "


def test_flags_of_a_turn():
    row = {"messages": [user("a"), assistant("", train=False), {**user("b"), "train": False}, assistant("c", weight=1),
                        user("d"), assistant("e", weight=0), user("f"), assistant("g", train=True)]}
    assert [message.get("train", True) for message in messages(row) if message["role"] == "assistant"] == [
        False, True, False, True]
    assert "train" not in messages(row)[2]


def test_a_mixed_file_is_recognised_row_by_row():
    rows = [{"text": "t"}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"},
            {"messages": [user("q"), assistant("a")], "prompt": "metadata"},
            {"conversations": [{"from": "human", "value": "q"}, assistant("a")]}]
    one = (user("q"), assistant("a"))
    assert [parse_row(row, "p") for row in rows] == ["t", *[Conversation(one, None, "p")] * 4]


@pytest.mark.parametrize("row, message", [
    ({}, "conversations: expected conversations, messages, prompt with completion, instruction with output, or text, "
         "found a row with no fields"),
    ({"question": 1, "answer": 2}, "conversations: expected conversations, messages, prompt with completion, "
                                   "instruction with output, or text, found a row with answer, question"),
    ({"messages": [user("a")], "conversations": [user("a")]},
     "conversations: expected one form of conversation in a row, found conversations and messages"),
    ({"prompt": "a"}, "completion: expected a value, as the row has prompt, found nothing"),
    ({"instruction": "a", "output": None}, "output: expected a value, as the row has instruction, found nothing"),
    ({"text": 5}, "text: expected a string, found 5"),
    ({"messages": {}}, "messages: expected a list of turns, found an object"),
    ({"conversations": [{"from": "humann", "value": "q"}]},
     'conversations[0].from: expected one of system, human, user, gpt, assistant, chatgpt, model, function_call, '
     'observation, tool, function_response, found "humann"'),
    ({"conversations": [{"from": ["human"], "value": "q"}]},
     "conversations[0].from: expected one of system, human, user, gpt, assistant, chatgpt, model, function_call, "
     "observation, tool, function_response, found a list"),
    ({"conversations": [{"from": "human", "value": 3}]}, "conversations[0].value: expected a string, found 3"),
    ({"conversations": [{"from": "gpt", "value": "a"}]},
     'conversations[0].from: expected a user turn before the first assistant turn, found "assistant"'),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "weather()"}]},
     'conversations[1].value: expected a call {"name", "arguments"} or a list of them, in JSON, found broken JSON at '
     "column 1: Expecting value"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "a"}'}]},
     "conversations[1].value[0].arguments: expected a JSON object, found nothing"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": ""}]},
     'conversations[1].value: expected a call {"name", "arguments"} or a list of them, in JSON, found broken JSON at '
     "column 1: Expecting value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, assistant("a")]},
     'messages[0].content[0]: expected a part {"type": "text", "text": ...}, found "image_url"'),
    ({"messages": [{"role": "user", "content": ["a"]}, assistant("a")]},
     'messages[0].content[0]: expected a part {"type": "text", "text": ...}, found "a"'),
    ({"messages": [user("a"), assistant("b", thinking="x", reasoning="y")]},
     "messages[1].thinking: expected the reasoning once, found it in reasoning too"),
    ({"messages": [user("a"), assistant("b", weight=0.5)]}, "messages[1].weight: expected 0 or 1, found 0.5"),
    ({"messages": [user("a"), assistant("b", train="no")]}, 'messages[1].train: expected true or false, found "no"'),
    ({"messages": [user("a"), assistant("b", train=True, weight=0)]},
     "messages[1].weight: expected the same as train says, found 0"),
    ({"messages": [{**user("a"), "train": True}, assistant("b")]},
     "messages[0].train: expected only an assistant turn to be learned, found a user turn"),
    ({"messages": [user("a"), assistant(" \n")]},
     'messages[1].content: expected an answer ("train": false for one that is not to be learned), found " \\n"'),
    ({"instruction": "a", "output": ""},
     'output: expected an answer ("train": false for one that is not to be learned), found ""'),
    ({"instruction": " ", "input": "", "output": "b"}, 'instruction: expected a question, found " "'),
    ({"instruction": ["a"], "output": "b"}, "instruction: expected a string, found a list"),
    ({"instruction": "a", "output": 5}, "output: expected a string, found 5"),
    ({"instruction": "a", "output": "b", "history": "c"},
     'history: expected a list of [question, answer] pairs, found "c"'),
    ({"instruction": "a", "output": "b", "history": [["c"]]},
     "history[0]: expected a pair [question, answer], found a list"),
    ({"instruction": "a", "output": "b", "history": [["c", None]]},
     "history[0][1]: expected a string, found nothing"),
    ({"messages": [{"role": "system", "content": "a"}, user("b"), assistant("c")], "system": "d"},
     'messages[0].role: expected a system turn only as the first, found "system"'),
    ({"messages": [user("a" * 9_000), assistant("b" * 1_000)] * 80},
     "messages: expected a shorter conversation: answers x characters may be 50,000,000, found 80 x 800,000"),
    ({"messages": [user("a" * 2_000_000), assistant("b")]},
     "messages: expected at most 2,000,000 characters, found 2,000,001"),
    ({"messages": [user("a"), assistant("", tool_calls=[{"name": "f", "arguments": {"x": float("nan")}}])]},
     "messages[1].tool_calls[0].arguments: expected only what JSON can hold: Out of range float values are not JSON "
     "compliant"),
    ({"messages": [user("a"), assistant("b")], "tools": [{"name": b"f"}]},
     "tools[0]: expected only what JSON can hold: Object of type bytes is not JSON serializable"),
    ({"prompt": [user("a")], "completion": []}, "completion: expected a list of turns, found an empty list"),
])
def test_rows_that_are_refused_name_the_field_as_the_row_has_it(row, message):
    assert refusal(row) == message
