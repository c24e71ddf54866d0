"""Fields that would change what is learned are refused; other unread fields are listed."""

import json

import pytest

from minimind_sft.data.conversation import parse_row
from minimind_sft.data.fields import ignored_fields
from minimind_sft.errors import UserError

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
DROP = "(scripts/convert_data.py --drop_fields {name} leaves the field out)"


def refusal(row: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_row(row, "a.jsonl:7")
    return str(error.value).removeprefix("a.jsonl:7: ")


@pytest.mark.parametrize("row", [{"messages": TURNS}, {"prompt": "q", "completion": "a"},
                                 {"question": "q", "answer": "a"}])
@pytest.mark.parametrize(("name", "value", "message"), [
    ("images", ["a.png"], "images: expected nothing, as these models read only text, found a list"),
    ("image", "a.png", 'image: expected nothing, as these models read only text, found "a.png"'),
    ("audios", [{}], "audios: expected nothing, as these models read only text, found a list"),
    ("weight", 0.5, "weight: expected this flag in a turn, found 0.5 for the whole row"),
    ("train", False, "train: expected this flag in a turn, found false for the whole row"),
    ("loss", 0, "loss: expected this flag in a turn, found 0 for the whole row"),
    ("mask", "User", 'mask: expected this flag in a turn, found "User" for the whole row'),
    ("loss_mask", [0, 1], "loss_mask: expected this flag in a turn, found a list for the whole row"),
])
def test_unsupported_fields_of_a_row_are_refused(row, name, value, message):
    assert refusal({**row, name: value}) == f"{message} {DROP.format(name=name)}"


def test_media_in_a_turn_are_refused():
    row = {"messages": [{**TURNS[0], "images": ["a.png"]}, TURNS[1]]}
    assert refusal(row) == "messages[0].images: expected nothing, as these models read only text, found a list"


@pytest.mark.parametrize(("row", "name", "value"), [
    ({"prompt": "q", "completion": "a"}, "label", False), ({"prompt": "q", "completion": "a"}, "label", 0),
    ({"prompt": "q", "completion": "a"}, "label", "False"), ({"prompt": "q", "response": "a"}, "label", 0),
    ({"prompt": "q", "response": "a"}, "label", "0"), ({"prompt": "q", "response": "a"}, "label", 0.0),
    ({"messages": TURNS}, "label", False), ({"messages": TURNS}, "kto_tag", False),
])
def test_an_answer_labelled_as_bad_is_refused(row, name, value):
    message = refusal({**row, name: value})
    assert message == (f"{name}: expected an answer to learn, found {json.dumps(value)}, which marks an answer to "
                       "avoid")
    assert parse_row({**row, name: True}, "p") == parse_row(row, "p")


def test_neutral_values_of_unsupported_fields_are_accepted():
    plain = parse_row({"messages": TURNS}, "p")
    for fields in ({"images": [], "audio": None, "video": ""}, {"weight": 1, "train": True, "loss": 1.0},
                   {"weight": "1", "train": "True", "loss": ""}, {"label": "0"}, {"label": "1"},
                   {"mask": None}, {"label": "sports"}, {"label": 0}, {"train_id": 7}):
        assert parse_row({"messages": TURNS, **fields}, "p") == plain
    # every token of running text is learned, whatever its other fields say
    assert parse_row({"text": "t", "images": ["a.png"], "loss": 2.3, "label": False}, "p") == "t"


@pytest.mark.parametrize(("row", "fields"), [
    ({"messages": TURNS}, []),
    ({"messages": TURNS, "id": 1, "source": "web", "kind": "k", "system": "s", "tools": [{"name": "f"}]},
     ["id", "source"]),
    ({"messages": TURNS, "note": None, "tags": [], "meta": {}, "title": "", "score": 0}, ["score"]),
    ({"messages": [{**TURNS[0], "name": "Ann", "id": 3}, {**TURNS[1], "id": 4, "refusal": None, "train": True,
                                                         "thinking": "hm"}]}, ["messages[].id", "messages[].name"]),
    ({"messages": [*TURNS, {"role": "tool", "content": "r", "name": "f", "tool_call_id": "c"}, TURNS[1]]}, []),
    ({"conversations": [{"from": "human", "value": "q", "lang": "en"}, {"from": "gpt", "value": "a"}], "text": "qa"},
     ["conversations[].lang", "text"]),
    ({"messages": '[{"role": "user", "content": "q", "id": 1}, {"role": "assistant", "content": "a"}]'},
     ["messages[].id"]),
    ({"instruction": "q", "input": "i", "output": "a", "context": "c", "history": [["x", "y"]]}, ["context"]),
    ({"instruction": "q", "context": "i", "response": "a", "category": "c"}, ["category"]),
    ({"messages": TURNS, "question": "q", "label": True}, ["label", "question"]),
    ({"text": "t", "kind": "k", "url": "u"}, ["url"]),
])
def test_unread_fields_are_listed(row, fields):
    assert sorted(ignored_fields(row, as_text="text" in row and "conversations" not in row)) == fields


def test_pretraining_reads_only_the_text():
    assert ignored_fields({"text": "t", "messages": TURNS}, as_text=True) == {"messages"}
