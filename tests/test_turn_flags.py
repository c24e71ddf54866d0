"""Flags of a turn are applied or refused, never ignored."""

import pytest
from chats import BUNDLED, supervised_texts

from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.turn_flags import EXPECTED, PLAIN_FIELDS, looks_like_flag
from minimind_sft.errors import UserError


def row(flags: dict, user_flags: dict | None = None) -> dict:
    """Returns a row of two questions and answers with flags in the first pair."""
    return {"messages": [{"role": "user", "content": "x", **(user_flags or {})},
                         {"role": "assistant", "content": "y", **flags},
                         {"role": "user", "content": "x2"}, {"role": "assistant", "content": "y2"}]}


def refusal(row: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_conversation(row, "a.jsonl:7")
    return str(error.value).removeprefix("a.jsonl:7: ")


@pytest.mark.parametrize("name", ["train", "training", "trainable", "weight", "loss_weight", "loss_scale", "loss"])
@pytest.mark.parametrize(("value", "learned"), [
    (False, ["y2<|im_end|>"]), (0, ["y2<|im_end|>"]), (0.0, ["y2<|im_end|>"]),
    (True, ["y<|im_end|>", "y2<|im_end|>"]), (1, ["y<|im_end|>", "y2<|im_end|>"]),
    (None, ["y<|im_end|>", "y2<|im_end|>"]),
])
def test_an_answer_is_learned_as_its_flag_says(name, value, learned):
    assert supervised_texts(BUNDLED, parse_conversation(row({name: value}), "a:1")) == learned


def test_sharegpt_turns_may_have_flags():
    said = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "loss": False},
            {"from": "human", "value": "x2"}, {"from": "gpt", "value": "y2", "loss": True}]
    assert supervised_texts(BUNDLED, parse_conversation({"conversations": said}, "a:1")) == ["y2<|im_end|>"]


def test_flags_may_repeat_but_not_contradict_each_other():
    flags = {"train": False, "weight": 0, "loss": 0.0}
    assert parse_conversation(row(flags), "a:1").messages[1] == {"role": "assistant", "content": "y", "train": False}
    assert refusal(row({"train": True, "weight": 0})) == (
        "messages[1].weight: expected the same as messages[1].train, found 0")
    assert refusal(row({"loss": True, "loss_scale": 0})) == (
        "messages[1].loss: expected the same as messages[1].loss_scale, found true")


def test_a_flag_in_the_prompt_decides_whether_an_earlier_answer_is_learned():
    for name in ("loss", "trainable", "weight"):
        prompt = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", name: 1},
                  {"role": "user", "content": "x2"}]
        chat = parse_conversation({"prompt": prompt, "completion": "y2"}, "a:1")
        assert supervised_texts(BUNDLED, chat) == ["y<|im_end|>", "y2<|im_end|>"]


@pytest.mark.parametrize(("flags", "message"), [
    ({"loss_scale": 0.5}, "messages[1].loss_scale: expected 0 or 1, as an answer is learned or not, found 0.5"),
    ({"weight": 2}, "messages[1].weight: expected 0 or 1, as an answer is learned or not, found 2"),
    ({"loss": 2.31}, "messages[1].loss: expected true, false, 1 or 0, as an answer is learned or not, found 2.31"),
    ({"train": "no"}, 'messages[1].train: expected true or false, found "no"'),
    ({"trainable": "false"}, 'messages[1].trainable: expected true or false, found "false"'),
    ({"loss": []}, "messages[1].loss: expected true, false, 1 or 0, as an answer is learned or not, "
                   "found an empty list"),
    ({"mask": True}, 'messages[1].mask: expected a flag with a clear meaning ("train": false for an answer that '
                     "should not be learned), found true"),
    ({"masked": 0}, 'messages[1].masked: expected a flag with a clear meaning ("train": false for an answer that '
                    "should not be learned), found 0"),
    ({"train_detail": [{"begin_offset": 0}]},
     'messages[1].train_detail: expected a flag with a clear meaning ("train": false for an answer that should '
     "not be learned), found a list"),
])
def test_unclear_flags_are_refused(flags, message):
    assert refusal(row(flags)) == message


@pytest.mark.parametrize("name", ["train", "trainable", "loss"])
def test_only_answers_can_be_learned(name):
    assert refusal(row({}, {name: True})) == (
        f"messages[0].{name}: expected only an assistant turn to be learned, found a user turn")
    assert parse_conversation(row({}, {name: False}), "a:1") == parse_conversation(row({}), "a:1")


def test_a_multiplier_of_one_is_accepted_in_a_user_turn():
    flags = {"weight": 1, "loss_weight": 1.0, "loss_scale": 1}
    assert parse_conversation(row({}, flags), "a:1") == parse_conversation(row({}), "a:1")
    assert refusal(row({}, {"mask": False})).startswith("messages[0].mask: expected a flag with a clear meaning")


def test_looks_like_flag_recognises_names_of_flags():
    assert all(map(looks_like_flag, ["mask", "loss_mask", "lossWeight", "Train", "is_trained", "token-weights",
                                     "trainOnTurn", "no_loss", "supervised", "learnable", "masks"]))
    assert not any(map(looks_like_flag, ["name", "glossary", "id", "restrained", "lossless", "constraint", "weighty",
                                         "damask", "learner_id", ""]))


def test_plain_fields_do_not_look_like_flags():
    assert not any(map(looks_like_flag, PLAIN_FIELDS)) and PLAIN_FIELDS.isdisjoint(EXPECTED)


def test_axolotl_s_training_is_a_flag():
    assert supervised_texts(BUNDLED, parse_conversation(row({"training": False}, {"training": False}), "a:1")) == [
        "y2<|im_end|>"]
    assert refusal(row({"train_detail": [{"begin_offset": 0}]})).startswith("messages[1].train_detail: expected a flag")
