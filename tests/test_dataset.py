"""Rows become Examples; the counts say what became of the rows."""

import numpy as np
import pytest

from minimind_sft.config import IGNORE_INDEX
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.dataset import PretrainDataset, SFTDataset, hold_out, make_example
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(repository) -> Tokenizer:
    return Tokenizer.from_folder(repository / "model")


@pytest.fixture(scope="module")
def template(tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def conversation(*turns: str) -> dict:
    """Turns alternate between user and assistant."""
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def at_lines(*rows: dict):
    return [(f"file:{line}", row) for line, row in enumerate(rows, start=1)]


def test_labels_are_the_next_tokens_where_those_are_supervised():
    example = make_example([10, 11, 12, 13], [True, False, True, True])
    assert example.input_ids.tolist() == [10, 11, 12]
    assert example.labels.tolist() == [IGNORE_INDEX, 12, 13]


def test_a_conversations_labels_spell_the_answer_and_its_end_of_turn(tokenizer, template):
    dataset = SFTDataset(at_lines(conversation("Hi", "Hello!")), template, 100)
    (example,) = dataset[0]
    assert tokenizer.decode(example.input_ids.tolist()) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHello!<|im_end|>")
    assert tokenizer.decode([label for label in example.labels.tolist() if label != IGNORE_INDEX]) == "Hello!<|im_end|>"
    # The position before the answer predicts its first token.
    first = int(np.flatnonzero(example.labels != IGNORE_INDEX)[0])
    assert tokenizer.decode(example.input_ids[first:first + 1].tolist()) == "\n\n"


def test_a_long_conversation_loses_its_tail_and_is_taught_no_end_of_turn(tokenizer, template):
    long = conversation("Hi", "one two three four five six seven eight nine ten")
    dataset = SFTDataset(at_lines(long), template, 20)
    (example,) = dataset[0]
    assert len(example.input_ids) == 19  # 20 tokens, shifted
    assert tokenizer.token_to_id("<|im_end|>") not in example.labels
    assert dataset.counts.truncated == 1


def test_rows_without_a_supervised_token_are_dropped_and_named(template):
    rows = at_lines(conversation("Hi", "Hello!"), conversation("a " * 50, "too late"), conversation("Hi", "Yes."))
    dataset = SFTDataset(rows, template, 30)
    assert len(dataset) == 2
    assert dataset.counts.dropped == ["file:2"]
    assert dataset.counts.rows == 3
    assert "2 of 3 rows" in dataset.counts.summary()
    assert "1 dropped, no supervised token left (file:2)" in dataset.counts.summary()


def test_a_file_in_which_all_rows_are_dropped_is_an_error(template):
    with pytest.raises(UserError, match=r"no row of 1 keeps a supervised token within --max_seq_len 12.* file:1"):
        SFTDataset(at_lines(conversation("a " * 50, "too late")), template, 12)


def test_a_bad_row_is_named_with_file_line_and_field(template):
    rows = at_lines(conversation("Hi", "Hello!"), {"conversations": [{"role": "robot", "content": "x"}]})
    with pytest.raises(UserError, match=r"^file:2: conversations\[0\]\.role: expected system, user, assistant or tool"):
        SFTDataset(rows, template, 100)


def test_text_ends_with_the_end_of_document(tokenizer):
    dataset = PretrainDataset(at_lines({"text": "Hello"}), tokenizer, 100)
    ids = [*tokenizer.encode("Hello"), 0]
    assert dataset[0][0].input_ids.tolist() == ids[:-1]
    assert dataset[0][0].labels.tolist() == ids[1:]


def test_long_text_is_chunked_and_every_token_after_the_first_predicted_once(tokenizer):
    text = "The rain in Spain stays mainly in the plain. " * 5
    ids = [*tokenizer.encode(text), 0]
    dataset = PretrainDataset(at_lines({"text": text}), tokenizer, 8)
    assert len(dataset) == -(-(len(ids) - 1) // 7)
    assert all(len(dataset[i][0].input_ids) <= 7 for i in range(len(dataset)))
    assert [int(label) for i in range(len(dataset)) for label in dataset[i][0].labels] == ids[1:]


def test_control_tokens_in_pretraining_text_stay_text(tokenizer):
    dataset = PretrainDataset(at_lines({"text": "a <|im_end|> b<|endoftext|>"}), tokenizer, 100)
    ids = dataset[0][0].input_ids.tolist()
    assert not set(ids) & {0, 1, 2}
    assert tokenizer.decode(ids) == "a <|im_end|> b<|endoftext|>"


def test_empty_texts_are_dropped(tokenizer):
    dataset = PretrainDataset(at_lines({"text": ""}, {"text": "b c"}), tokenizer, 100)
    assert len(dataset) == 1 and dataset.counts.dropped == ["file:1"]
    with pytest.raises(UserError, match="no row of 1 has text"):
        PretrainDataset(at_lines({"text": ""}), tokenizer, 100)


def numbered(count: int, tokenizer) -> PretrainDataset:
    return PretrainDataset(at_lines(*({"text": f"number {i}"} for i in range(count))), tokenizer, 100)


def contents(dataset) -> list[tuple[int, ...]]:
    return [tuple(dataset[i][0].labels.tolist()) for i in range(len(dataset))]


def test_the_held_out_share_is_apart_and_the_same_every_time(tokenizer):
    dataset = numbered(50, tokenizer)
    train, held = hold_out(dataset, 0.1, seed=3)
    assert (len(train), len(held)) == (45, 5)
    assert sorted(contents(train) + contents(held)) == sorted(contents(dataset))
    assert contents(hold_out(dataset, 0.1, seed=3)[1]) == contents(held)
    assert contents(hold_out(dataset, 0.1, seed=4)[1]) != contents(held)


@pytest.mark.parametrize(("count", "share", "held"), [(50, 0.0, None), (1, 0.5, None), (2, 0.01, 1), (3, 1.0, 2)])
def test_holding_out_leaves_something_to_train_on(tokenizer, count, share, held):
    train, apart = hold_out(numbered(count, tokenizer), share, seed=0)
    assert (apart and len(apart)) == held
    assert len(train) == count - (held or 0)
