import json
import re

import pytest

from minimind_sft.data.conversation import Conversation, parse_conversation, parse_text, read_tools
from minimind_sft.errors import UserError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "罗马"}}}


def parse(*turns, **row):
    return parse_conversation({"conversations": list(turns), **row}, "a.jsonl:7")


def refusal(row: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_conversation(row, "a.jsonl:7")
    return str(error.value)


def test_a_plain_conversation_is_parsed():
    system = {"role": "system", "content": "be kind"}
    assert parse(system, USER, ASSISTANT, unknown=1) == Conversation((system, USER, ASSISTANT), None, "a.jsonl:7")


def test_empty_extras_and_unknown_keys_of_a_turn_are_left_out():
    turn = {**ASSISTANT, "reasoning_content": "", "tools": "", "tool_calls": None, "id": 5}
    assert parse(USER, turn, USER).messages == (USER, ASSISTANT, USER)


def test_reasoning_is_kept():
    turn = {**ASSISTANT, "reasoning_content": "they greet"}
    assert parse(USER, turn).messages == (USER, turn)


@pytest.mark.parametrize("form", [lambda tools: tools, json.dumps])
def test_tools_may_be_a_list_or_json_in_the_row_or_its_system_turn(form):
    system = {"role": "system", "content": ""}
    assert parse(USER, ASSISTANT, tools=form([TOOL])).tools == [TOOL]
    conversation = parse({**system, "tools": form([TOOL])}, USER, ASSISTANT)
    assert conversation.tools == [TOOL]
    assert conversation.messages[0] == system
    assert parse(USER, ASSISTANT, tools=form([])).tools is None


@pytest.mark.parametrize("calls", [
    [CALL],
    json.dumps([CALL]),
    [{"name": "weather", "arguments": {"city": "罗马"}}],
    [{"name": "weather", "arguments": '{"city": "罗马"}'}],
])
def test_tool_calls_in_every_form_become_one_form(calls):
    turn = {"role": "assistant", "content": None, "tool_calls": calls}
    result = {"role": "tool", "content": "sunny"}
    assert parse(USER, turn, result, result, ASSISTANT).messages == (
        USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, result, result, ASSISTANT)


@pytest.mark.parametrize("row, message", [
    ({"text": "a"}, "conversations: expected a conversation, found a row of running text"),
    ({"conversations": []}, "conversations: expected a list of turns, found an empty list"),
    ({"conversations": "hi"}, 'conversations: expected a list of turns, found "hi"'),
    ({"conversations": [USER, ASSISTANT], "tools": "["},
     "tools: expected a list or the JSON of one, found broken JSON at column 2: Expecting value"),
    ({"conversations": [USER, ASSISTANT], "tools": 3}, "tools: expected a list or the JSON of one, found 3"),
    ({"conversations": [USER, ASSISTANT], "tools": ["f"]},
     'tools[0]: expected an object that describes a function, found "f"'),
    ({"conversations": [{"role": "system", "content": "", "tools": [TOOL]}, USER, ASSISTANT], "tools": [TOOL]},
     "conversations[0].tools: expected tools once, in the row or in its system turn"),
])
def test_bad_rows_are_refused_naming_the_field(row, message):
    assert refusal(row) == f"a.jsonl:7: {message}"


@pytest.mark.parametrize("turns, message", [
    (["hi"], '[0]: expected an object with role and content, found "hi"'),
    ([USER, {"content": "x"}], "[1].role: expected system, user, assistant or tool, found nothing"),
    ([USER, {"role": "robot", "content": "x"}], '[1].role: expected system, user, assistant or tool, found "robot"'),
    ([USER, {"role": ["user"], "content": "x"}], "[1].role: expected system, user, assistant or tool, found a list"),
    ([USER, {"role": "system", "content": "x"}],
     '[1].role: expected a system turn only as the first, found one elsewhere'),
    ([ASSISTANT, USER], '[0].role: expected a user turn before the first assistant turn, found an assistant turn'),
    ([USER, {"role": "tool", "content": "x"}, ASSISTANT],
     '[1].role: expected a tool turn only after an assistant or a tool turn, found one elsewhere'),
    ([USER, USER], ": expected at least one assistant turn, found none"),
    ([USER, {"role": "assistant"}], "[1].content: expected a string, found nothing"),
    ([{"role": "user", "content": None}, ASSISTANT], "[0].content: expected a string, found nothing"),
    ([{"role": "user", "content": 5}, ASSISTANT], "[0].content: expected a string, found 5"),
    ([USER, {**ASSISTANT, "reasoning_content": {}}], "[1].reasoning_content: expected a string, found an object"),
    ([{**USER, "reasoning_content": "hm"}, ASSISTANT],
     "[0].reasoning_content: expected only in an assistant turn, found in a user turn"),
    ([{**USER, "tool_calls": [CALL]}, ASSISTANT],
     "[0].tool_calls: expected only in an assistant turn, found in a user turn"),
    ([{**USER, "tools": [TOOL]}, ASSISTANT],
     "[0].tools: expected tools once, in the row or in its system turn"),
    ([USER, {**ASSISTANT, "tool_calls": {}}], "[1].tool_calls: expected a list or the JSON of one, found an object"),
    ([USER, {**ASSISTANT, "tool_calls": ["f"]}],
     '[1].tool_calls[0]: expected an object with name and arguments, found "f"'),
    ([USER, {**ASSISTANT, "tool_calls": [{"function": "f"}]}],
     '[1].tool_calls[0].function: expected an object with name and arguments, found "f"'),
    ([USER, {**ASSISTANT, "tool_calls": [{"arguments": {}}]}],
     "[1].tool_calls[0].name: expected the name of a function, found nothing"),
    ([USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": [1]}]}],
     "[1].tool_calls[0].arguments: expected a JSON object, found a list"),
    ([USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
     "[1].tool_calls[0].function.arguments: expected a JSON object, found a list"),
    ([USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "x"}]}],
     "[1].tool_calls[0].arguments: expected a JSON object, found broken JSON at column 1: Expecting value"),
])
def test_bad_turns_are_refused_naming_the_field(turns, message):
    assert refusal({"conversations": turns}) == f"a.jsonl:7: conversations{message}"


def test_parse_text():
    assert parse_text({"text": "一 ", "id": 1}, "a.jsonl:1") == "一 "
    with pytest.raises(UserError, match=r"^a\.jsonl:1: text: expected a string, found 5$"):
        parse_text({"text": 5}, "a.jsonl:1")
    with pytest.raises(UserError, match=r"^a\.jsonl:1: text: expected a string, found a row with conversations$"):
        parse_text({"conversations": []}, "a.jsonl:1")


def test_the_examples_in_dataset_readme_are_valid_rows(repository):
    page = (repository / "dataset/README.md").read_text(encoding="utf-8")
    examples = [json.loads(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
                if block.lstrip().startswith('{"conversations"')]  # fmt: skip
    plain, with_tools = (parse_conversation(row, "README.md") for row in examples)
    assert [m["role"] for m in plain.messages] == ["user", "assistant"]
    assert [m["role"] for m in with_tools.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert with_tools.messages[2]["reasoning_content"] == "I must look it up."
    assert with_tools.messages[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert with_tools.tools[0]["function"]["name"] == "weather"


BAD_TOOLS = {
    "an object": ('{"a": 1}', r"tools\.json: tools: expected a list or the JSON of one, found an object"),
    "a number": ("[1]", r"tools\.json: tools\[0\]: expected an object that describes a function, found 1"),
    "nothing": ("[]", r"tools\.json: expected a list of functions, found an empty one"),
    "no JSON": ("[", r"tools\.json: tools: expected a list of functions, found broken JSON"),
    "no UTF-8": (b"\xff", r"tools\.json: not valid UTF-8 \(byte 1\)"),
}


@pytest.mark.parametrize("fault", BAD_TOOLS)
def test_an_unusable_tools_file_is_named(tmp_path, fault):
    content, message = BAD_TOOLS[fault]
    path = tmp_path / "tools.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_tools(path)


def test_a_tools_file_is_read_like_the_tools_of_a_row(tmp_path):
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    path = tmp_path / "tools.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(tools).encode())
    row = {"tools": tools, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    assert read_tools(path) == tools == parse_conversation(row, "a:1").tools
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        read_tools(tmp_path / "nowhere")
