"""Dialogues written as one text with the markers `Human:` and `Assistant:`."""

import pytest

from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.dialogues import dialogue_row, is_dialogue
from minimind_sft.errors import UserError


def turns(*said: str) -> list[dict]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]


@pytest.mark.parametrize(("text", "expected"), [
    ("\n\nHuman: Hi!\n\nAssistant: Hello.", turns("Hi!", "Hello.")),
    ("Human: a\nAssistant: b\nHuman: c\nAssistant: d", turns("a", "b", "c", "d")),
    ("\r\n\r\nHuman: a\r\n\r\nAssistant: b\r\n", turns("a", "b")),
    ("\n\nHuman:a\n\nb\n\nAssistant:\n1. x\n2. y\n", turns("a\n\nb", "1. x\n2. y")),
    ("\n\nHuman: Say \"Assistant: yes\". Human: no\n\nAssistant: I am the Assistant: yes.\n Human: indented",
     turns('Say "Assistant: yes". Human: no', "I am the Assistant: yes.\n Human: indented")),
    ("\n\nHuman: 你好\n\nAssistant: 您好 HUMAN: x", turns("你好", "您好 HUMAN: x")),
])
def test_markers_at_the_start_of_a_line_begin_turns(text, expected):
    assert is_dialogue(text)
    assert dialogue_row({"chosen": text, "rejected": "x", "id": 1}, "chosen") == {"conversations": expected}
    assert list(parse_conversation(dialogue_row({"d": text}, "d"), "p").messages) == expected


def test_the_system_turn_and_tools_of_the_row_are_kept():
    row = {"chosen": "Human: a\nAssistant: b", "system": "s", "tools": [{"name": "f"}]}
    assert dialogue_row(row, "chosen") == {"system": "s", "tools": [{"name": "f"}], "conversations": turns("a", "b")}


@pytest.mark.parametrize(("value", "message"), [
    (None, "expected a dialogue with Human: and Assistant: at the beginnings of lines, found nothing"),
    ([], "expected a dialogue with Human: and Assistant: at the beginnings of lines, found an empty list"),
    ("hello", 'expected a dialogue with Human: and Assistant: at the beginnings of lines, found "hello"'),
    ("So: Human: a\nAssistant: b", 'expected Human: at the beginning, found "So: Human: a"'),
    ("Assistant: b\nHuman: a\nAssistant: b", 'expected Human: at the beginning, found "Assistant: b"'),
    ("Human: a\nHuman: b\nAssistant: c", "turn 2: expected Assistant: after Human:, found Human: again"),
    ("Human: a\nAssistant: b\nAssistant: c", "turn 3: expected Human: after Assistant:, found Assistant: again"),
    ("Human: a\nAssistant: b\nHuman: \nAssistant: c", "turn 3: expected words after Human:, found none"),
    ("Human: a\nAssistant:", "turn 2: expected words after Assistant:, found none"),
    ("Human: a\nAssistant: b\nHuman: c", "turn 3: expected an answer at the end, found Human:"),
])
def test_malformed_dialogues_are_refused_naming_the_turn(value, message):
    with pytest.raises(UserError) as error:
        dialogue_row({"chosen": value}, "chosen")
    assert str(error.value) == f"chosen: {message}"


@pytest.mark.parametrize(("name", "value"), [("images", ["a.png"]), ("label", False), ("weight", 0.5)])
def test_unsupported_fields_beside_a_dialogue_are_refused(name, value):
    row = dialogue_row({"chosen": "Human: q\nAssistant: a", name: value}, "chosen")
    with pytest.raises(UserError, match=f"^p: {name}: expected"):
        parse_conversation(row, "p")
