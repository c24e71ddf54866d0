"""The formats that conversation data come in."""

import json

import pytest
from chats import BUNDLED, TOKENIZER
from turns_and_rows import TOOL, assistant, refusal, user

from minimind_sft.data.conversation import Conversation, canonical_row, parse_conversation, parse_row
from minimind_sft.data.formats import form_name
from minimind_sft.data.reading import read_rows

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "罗马"}}}


def messages(row: dict) -> tuple[dict, ...]:
    parsed = parse_conversation(row, "a.jsonl:7")
    # Its canonical row parses to the same conversation.
    assert parse_conversation(json.loads(json.dumps(canonical_row(parsed))), "a.jsonl:7") == parsed
    return parsed.messages


def test_sharegpt_with_tools_a_call_and_its_result():
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


def test_prompt_and_completion_may_be_text_or_messages():
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
def test_alpaca_instruction_and_input(given, question):
    assert messages({**given, "output": "3", "text": "a rendering of it all"}) == (user(question), assistant("3"))


def test_alpaca_with_a_system_turn_and_history():
    row = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
    assert messages(row) == ({"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d"))


@pytest.mark.parametrize(("fields", "said"), [
    ({"prompt": "q", "response": "a"}, ("q", "a")),
    ({"question": "q", "answer": " a"}, ("q", " a")),
    ({"query": "q", "response": "a"}, ("q", "a")),
    ({"question": "q", "response": "a", "context": "", "input": None}, ("q", "a")),
    ({"instruction": "q", "response": "a", "context": "some text", "category": "closed_qa"}, ("q\nsome text", "a")),
    ({"instruction": "q", "response": "a", "input": "some text"}, ("q\nsome text", "a")),
    ({"instruction": "q", "response": "a", "context": ""}, ("q", "a")),
    ({"input": "q", "output": "a"}, ("q", "a")),
])
def test_a_question_and_its_answer_under_their_usual_names(fields, said):
    assert messages(fields) == (user(said[0]), assistant(said[1]))
    assert messages({**fields, "system": "s"})[0] == {"role": "system", "content": "s"}


def test_form_name_lists_the_fields_of_a_question_and_answer():
    assert form_name({"answer": "a", "question": "q"}) == "question, answer"
    assert form_name({"prompt": [user("q")], "response": "a"}) == "prompt, response (role, content)"


def test_history_holds_the_earlier_turns():
    row = {"query": "c", "response": "d", "history": [["a", "b"]], "system": "s"}
    said = ({"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d"))
    assert messages(row) == said
    assert messages({**row, "history": '[["a", "b"]]'}) == said  # the cell of a table


def test_a_prompt_of_messages_with_a_response():
    row = {"prompt": [user("a"), assistant("b"), user("c")], "response": "d"}
    assert messages(row) == (user("a"), assistant("b", train=False), user("c"), assistant("d"))


def test_main_forms_take_precedence_over_question_and_answer_fields():
    assert messages({"instruction": "q", "output": "a", "answer": "42"}) == (user("q"), assistant("a"))
    assert messages({"messages": [user("q"), assistant("a")], "question": "x", "answer": "y"})[0] == user("q")


def test_messages_may_be_a_json_string():
    turns = [user("x"), assistant("y")]
    for name in ("messages", "conversations"):
        row = {name: json.dumps(turns)}
        assert messages(row) == (user("x"), assistant("y"))
        assert form_name(row) == f"{name} (JSON in a string)"


@pytest.mark.parametrize(("role", "canonical"), [
    ("User", "user"), ("human", "user"), ("Human", "user"), ("Assistant", "assistant"), ("gpt", "assistant"),
    ("GPT", "assistant"), ("SYSTEM", "system"), ("Developer", "system"), ("function", "tool"), ("ipython", "tool"),
    ("environment", "tool"), ("observation", "tool"), ("Tool", "tool"),
])
@pytest.mark.parametrize(("said_by", "text"), [("role", "content"), ("from", "value")])
def test_other_names_and_capitals_of_roles_are_understood(role, canonical, said_by, text):
    before = {"system": [], "user": [], "assistant": [user("a")], "tool": [user("a"), assistant("b")]}[canonical]
    after = {"system": [user("d"), assistant("e")], "user": [assistant("e")]}.get(canonical, [])
    row = {"messages": [*before, {said_by: role, text: "c"}, *after]}
    assert messages(row) == (*before, {"role": canonical, "content": "c"}, *after)


@pytest.mark.parametrize("given", [{}, {"arguments": ""}, {"arguments": " "}, {"arguments": None}, {"arguments": "{}"},
                                   {"arguments": "null"}, {"arguments": {}}])
def test_a_call_may_lack_arguments(given):
    call = {"id": "c", "type": "function", "function": {"name": "now", **given}}
    expected = {"id": "c", "type": "function", "function": {"name": "now", "arguments": {}}}
    assert messages({"messages": [user("q"), assistant("", tool_calls=[call])]})[1]["tool_calls"] == [expected]
    bare = {"conversations": [user("q"), {"from": "function_call", "value": json.dumps({"name": "now", **given})}]}
    assert messages(bare)[1]["tool_calls"] == [{"type": "function", "function": {"name": "now", "arguments": {}}}]


def test_openai_s_older_functions_render_like_tools():
    call = {"name": "now", "arguments": "{}"}
    older = {"functions": [TOOL], "messages": [
        user("time?"), {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "now", "content": "12"}, assistant("12")]}
    newer = {"tools": [{"type": "function", "function": TOOL}], "messages": [
        user("time?"), {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "now", "content": "12"}, assistant("12")]}
    twins = [parse_conversation(row, "p") for row in (older, newer)]
    assert twins[0] == twins[1] and twins[0].tools == [{"type": "function", "function": TOOL}]
    ids = [BUNDLED.encode(twin)[0].input_ids.tolist() for twin in twins]
    assert ids[0] == ids[1]
    rendered = '{"type": "function", "function": {"name": "weather", "description": "of a city"}}'
    assert rendered in TOKENIZER.decode(ids[0])
    for functions in (json.dumps([TOOL]), [{"type": "function", "function": TOOL}]):
        assert parse_conversation({**older, "functions": functions}, "p") == twins[0]
    in_turn = {"messages": [{"role": "system", "content": "s", "functions": [TOOL]}, user("a"), assistant("b")]}
    assert parse_conversation(in_turn, "p").tools == [{"type": "function", "function": TOOL}]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_field_equal_to_the_system_turn_is_one_system_turn(name):
    for turn in ({"role": "system", "content": "s"}, {"from": "system", "value": "s"},
                 {"role": "developer", "content": [{"type": "text", "text": "s"}]}):
        row = {name: "s", "messages": [turn, user("x"), assistant("y")]}
        assert messages(row) == ({"role": "system", "content": "s"}, user("x"), assistant("y"))
    without = {name: "s", "messages": [user("x"), assistant("y")]}
    assert messages(without)[0] == {"role": "system", "content": "s"}


CALL_NOW = {"id": "c", "type": "function", "function": {"name": "now", "arguments": {}}}
CASES = {
    "legacy_functions": [user("time?"), assistant("", tool_calls=[
        {"type": "function", "function": {"name": "now", "arguments": {}}}]),
        {"role": "tool", "content": "12", "name": "now"}, assistant("12")],
    "args_empty_string": [user("time?"), assistant("", tool_calls=[CALL_NOW]), {"role": "tool", "content": "12"},
                          assistant("12")],
    "args_missing": [user("time?"), assistant("", tool_calls=[CALL_NOW]), {"role": "tool", "content": "12"},
                     assistant("12")],
    "from_function": [user("x"), assistant("y"), {"role": "tool", "content": "z"}, assistant("w")],
    "messages_json_string": [user("x"), assistant("y")],
    "prompt_response": [user("q"), assistant("a")],
    "question_answer": [user("q"), assistant("a")],
    "role_caps": [user("x"), assistant("y")],
    "role_human_gpt_in_role": [user("x"), assistant("y")],
    "role_ipython": [user("x"), assistant("y"), {"role": "tool", "content": "z"}, assistant("w")],
    "swift_loss": [user("x"), assistant("y", train=False), user("x2"), assistant("y2")],
    "system_row_and_turn": [{"role": "system", "content": "a"}, user("x"), assistant("y")],
}


@pytest.mark.parametrize("name", CASES)
def test_rows_from_public_bug_reports(shared, name):
    ((place, row),) = read_rows(shared / f"cases/rows/{name}.jsonl")
    assert parse_conversation(row, place).messages == tuple(CASES[name])


def test_a_text_row_is_running_text():
    assert parse_row({"text": "一 ", "id": 5}, "a:1") == "一 "


def test_train_and_weight_flags_of_a_turn():
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


def test_calls_in_separate_turns_are_merged_into_one_turn():
    """ms-swift writes each parallel call as a turn, and the words before the calls as another turn."""
    call = json.dumps({"name": "weather", "arguments": {"city": "罗马"}}, ensure_ascii=False)
    calls, results = [{"role": "tool_call", "content": call}] * 2, [{"role": "tool_response", "content": "晴"}] * 2
    read = (assistant("", tool_calls=[CALL, CALL]), *[{"role": "tool", "content": "晴"}] * 2, assistant("fine"))
    assert messages({"messages": [user("q"), *calls, *results, assistant("fine")]}) == (user("q"), *read)
    worded = {"messages": [user("q"), assistant("Let me see."), *calls, *results, assistant("fine")]}
    assert messages(worded) == (user("q"), {**read[0], "content": "Let me see."}, *read[1:])
    assert parse_conversation(worded, "").names == tuple(f"messages[{index}]" for index in (0, 1, 4, 5, 6))
    assert messages({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "Let me see."},
                                       {"from": "function_call", "value": call}]})[1:] == (
        assistant("Let me see.", tool_calls=[CALL]),)


def test_a_learned_call_is_not_merged_with_an_untrained_turn():
    call = {"role": "tool_call", "content": '{"name": "f"}'}
    read = messages({"prompt": [user("q"), assistant("earlier")], "completion": [call]})
    assert [message.get("train", True) for message in read] == [True, False, True]
    read = messages({"messages": [user("q"), {**call, "loss": False}, {**call, "loss": True}]})
    assert [message.get("train", True) for message in read] == [True, False, True]


def test_an_error_in_one_of_several_calls_names_its_turn():
    calls = [{"role": "tool_call", "content": '{"name": "f"}'}, {"role": "tool_call", "content": '{"name": 1}'}]
    assert refusal({"messages": [user("q"), *calls]}) == (
        "messages[2].content[0].name: expected the name of a function, found 1")


@pytest.mark.parametrize("row", [
    {"conversations": [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}]},
    {"conversations": [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}]},
    {"messages": [{"from": "prompter", "value": "q"}, {"role": "assistant", "content": "a", "value": 0.5}]},
    {"messages": [{"role": "Human", "content": "q"}, {"role": "AI", "content": "a"}]},
    {"messages": [{"role": "User", "content": "q"}, {"role": "Chatbot", "content": "a"}]},
    {"messages": [user("q"), {"role": "bot", "content": "a"}]},
])
def test_role_and_content_are_read_under_any_of_their_names(row):
    assert messages(row) == (user("q"), assistant("a"))


def test_an_error_names_the_turn_s_own_keys_and_role():
    assert refusal({"messages": [{"role": "user", "value": "q"}, {"role": "assistant", "value": ["a"]}]}) == (
        'messages[1].value[0]: expected a part {"type": "text", "text": ...}, found "a"')
    assert refusal({"conversations": [{"from": "human"}]}) == (
        "conversations[0].value: expected a string, found nothing")
    assert form_name({"conversations": [{"role": "user", "value": "q"}]}) == "conversations (role, value)"


def test_reasoning_under_two_names_must_be_equal():
    said = assistant("a", reasoning="hm", reasoning_content="hm")
    assert messages({"messages": [user("q"), said]})[1] == assistant("a", reasoning_content="hm")
    assert refusal({"messages": [user("q"), {**said, "reasoning": "oh"}]}) == (
        "messages[1].reasoning: expected the same text as messages[1].reasoning_content, found another")


@pytest.mark.parametrize("turns", [
    [user("q"), assistant("a"), user("q2"), assistant("a2")],
    [{"human": "q", "assistant": "a"}, {"human": "q2", "assistant": "a2"}],
    [{"input": "q", "output": "a"}, {"input": "q2", "output": "a2"}],
])
def test_the_field_conversation_has_turns_or_pairs(turns):
    """LMSYS-Chat-1M and WildChat use turns; ms-swift and XTuner use pairs of a question and its answer."""
    row = {"conversation": turns, "language": "English"}
    read = (user("q"), assistant("a"), user("q2"), assistant("a2"))
    assert messages(row) == read
    assert messages({**row, "system": "s"}) == ({"role": "system", "content": "s"}, *read)


def test_errors_in_a_pair_name_the_field():
    assert refusal({"conversation": [{"human": "q"}]}) == "conversation[0].assistant: expected a string, found nothing"
    assert refusal({"conversation": [{"human": "q", "assistant": 5}]}) == (
        "conversation[0].assistant: expected a string, found 5")
    assert refusal({"conversation": [{"human": "q", "assistant": "a"}, user("b")]}) == (
        "conversation[1]: expected an object with human and assistant, found an object")
    assert refusal({"conversation": [{"human": "q", "assistant": "a", "loss_mask": 1}]}) == (
        'conversation[0].loss_mask: expected a flag with a clear meaning ("train": false for an answer that should '
        'not be learned), found 1')
    assert form_name({"conversation": [{"human": "q", "assistant": "a"}]}) == "conversation (human, assistant)"


def test_a_system_text_in_the_first_pair_is_the_system_turn():
    row = {"conversation": [{"system": "s", "input": "q", "output": "a"}, {"input": "q2", "output": "a2"}]}
    assert messages(row)[:2] == ({"role": "system", "content": "s"}, user("q"))


def test_empty_fields_are_ignored_when_the_form_is_determined():
    """In a table that combines several sources every row has all columns."""
    read = (user("q"), assistant("a"))
    turns = [user("q"), assistant("a")]
    assert messages({"messages": turns, "conversations": [], "prompt": "", "completion": "", "instruction": ""}) == read
    assert messages({"messages": [], "question": "q", "answer": "a", "response": ""}) == read
    assert messages({"prompt": "", "instruction": "q", "response": "a", "answer": "", "text": ""}) == read
    assert parse_row({"messages": [], "question": "", "answer": "", "text": "t"}, "p") == "t"
    assert messages({"question": "q", "answer": "a", "text": ""}) == read
    assert parse_row({"text": "", "question": "q"}, "p") == ""
    assert refusal({"messages": [], "question": "", "answer": ""}) == (
        "messages: expected a list of turns, found an empty list")


def test_text_beside_a_question_and_its_answer_is_refused():
    row = {"text": "t", "question": "q", "response": "a"}
    assert refusal(row) == (
        "text: expected running text or a question with its answer, found question and response too "
        "(scripts/convert_data.py --drop_fields text leaves the text out)")
    assert parse_row({**row, "response": ""}, "p") == "t"
