"""Rows with a chosen and a rejected answer are refused with advice, or reduced to the chosen answer."""

import pytest

from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.preferences import chosen_row
from minimind_sft.errors import UserError

USER, ANSWER, WORSE = ({"role": role, "content": content} for role, content in
                       (("user", "q"), ("assistant", "good"), ("assistant", "bad")))
HUMAN, GPT, WORSE_GPT = ({"from": role, "value": value} for role, value in
                         (("human", "q"), ("gpt", "good"), ("gpt", "bad")))
SYSTEM = {"role": "system", "content": "s"}
ADVICE = ("expected one answer to learn, found a preference row, with chosen and rejected ones; "
          "scripts/convert_data.py --preference chosen keeps the chosen answer")
ROWS = [
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": "q", "chosen": [ANSWER], "rejected": [WORSE]},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    {"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, WORSE], "score_chosen": 9.0},
    {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    {"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE], "prompt": "q"},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE_GPT},
    {"messages": '[{"role": "user", "content": "q"}]', "chosen": GPT, "rejected": WORSE_GPT},
    {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    {"question": "q", "chosen": "good", "rejected": "bad"},
    {"question": "q", "chosen": GPT, "rejected": WORSE_GPT},
    {"messages": [USER, ANSWER], "rejected_response": "bad"},
    {"messages": [USER, ANSWER], "rejected_messages": [USER, WORSE]},
    {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [WORSE]},
]


def refusal(work, *arguments) -> str:
    with pytest.raises(UserError) as error:
        work(*arguments)
    return str(error.value)


@pytest.mark.parametrize("row", ROWS)
def test_a_preference_row_is_refused_with_advice(row):
    names = ("chosen", "preferred_output", "rejected_response", "rejected_messages")
    name = next(name for name in names if name in row)
    assert refusal(parse_conversation, row, "a:7") == f"a:7: {name}: {ADVICE}"


@pytest.mark.parametrize("row", ROWS)
def test_the_chosen_answer_is_kept(row):
    assert parse_conversation(chosen_row(row), "p").messages == (USER, ANSWER)
    if "system" not in row:
        assert parse_conversation(chosen_row({**row, "system": "s"}), "p").messages == (SYSTEM, USER, ANSWER)


def test_earlier_turns_and_tools_are_kept():
    earlier = [USER, {"role": "assistant", "content": "earlier"}, USER]
    row = {"prompt": earlier, "chosen": [ANSWER], "rejected": [WORSE], "tools": [{"name": "f"}]}
    parsed = parse_conversation(chosen_row(row), "p")
    assert parsed.messages == (USER, {"role": "assistant", "content": "earlier", "train": False}, USER, ANSWER)
    assert parsed.tools == [{"name": "f"}]
    alpaca = {"instruction": "q", "input": "i", "history": [["x", "y"]], "chosen": "good", "rejected": "bad"}
    assert [turn["content"] for turn in parse_conversation(chosen_row(alpaca), "p").messages] == [
        "x", "y", "q\ni", "good"]


def test_other_rows_are_unchanged():
    for row in ({"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER], "rejected": False, "chosen": True},
                {"prompt": "q", "completion": "a", "rejected": "", "chosen": None}):
        assert chosen_row(row) is row
        assert parse_conversation(row, "p").messages[0] == USER


@pytest.mark.parametrize(("row", "message"), [
    ({"chosen": "good", "rejected": "bad"}, "prompt: expected a question beside chosen, found nothing"),
    ({"prompt": "other", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
     "chosen: expected the question of prompt in it, found another"),
    ({"messages": [SYSTEM, USER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
     "chosen: expected it to begin with the turns of messages, found others"),
    ({"question": "q", "chosen": [ANSWER, USER, ANSWER], "rejected": [WORSE]},
     "chosen: expected one answer beside question, found 3 turns"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
     "chosen: expected turns, found a dialogue in one text; --dialogue_field chosen reads it"),
    ({"messages": [USER, ANSWER], "chosen": GPT, "rejected": WORSE_GPT},
     "messages: expected it to end with the question that chosen answers, found an answer"),
    ({"messages": "[]", "chosen": GPT, "rejected": WORSE_GPT},
     "messages: expected a list of turns, found an empty list"),
])
def test_rows_without_a_clear_chosen_answer_are_refused(row, message):
    assert refusal(chosen_row, row) == message


def test_a_dialogue_in_text_gets_its_own_advice():
    row = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
    assert refusal(parse_conversation, row, "a:7") == (
        "a:7: chosen: expected one answer to learn, found a preference row, with chosen and rejected ones; "
        "scripts/convert_data.py --dialogue_field chosen keeps the chosen dialogue")


def test_openai_s_preference_rows_keep_their_tools():
    tool = {"type": "function", "function": {"name": "f"}}
    row = {"input": {"messages": [SYSTEM, USER], "tools": [tool], "parallel_tool_calls": True},
           "preferred_output": [ANSWER], "non_preferred_output": [WORSE]}
    parsed = parse_conversation(chosen_row(row), "p")
    assert parsed.messages == (SYSTEM, USER, ANSWER) and parsed.tools == [tool]
    assert refusal(chosen_row, {**row, "input": "q"}) == "input: expected an object with messages, found \"q\""
