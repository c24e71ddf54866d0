"""Rows are bounded by what they take: in characters, messages, renderings and tokens."""

import json
from datetime import datetime

import numpy as np
import pytest
from chats import BUNDLED, TOKENIZER, conversation
from turns_and_rows import assistant, refusal, user

from minimind_sft.data import chat_template, pieces, samples
from minimind_sft.data import conversation as conversations
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.lines import RawRow
from minimind_sft.data.pieces import Piece
from minimind_sft.data.row_size import json_characters, row_bytes
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.errors import UserError

CALL = {"tool_calls": [{"name": "f", "arguments": {"x": "y" * 900}}]}
LAST_REASONING_ONLY = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize("value", ["text", "", 7, -1.5, None, [], {}, {"a": [1, "b", {"c": True}]}, ["x"] * 50,
                                   {"key": {"key": {"key": "value"}}}, 10**100])
def test_the_size_of_a_value_is_about_that_of_its_json(value):
    text = json.dumps(value)
    assert len(text) <= json_characters(value) <= 3 * len(text) + 60


def test_values_of_parquet_have_a_size_too_at_any_depth():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert json_characters(deep) > 10_000
    assert json_characters({b"k": b"x" * 100, "t": datetime(2026, 1, 1)}) > 100


def test_an_unparsed_row_counts_its_text_or_its_values():
    assert row_bytes(RawRow("a:1", b"12345")) == 5
    assert row_bytes(RawRow("a:1", UserError("no row"))) == 6
    assert row_bytes(RawRow("a:1", {"text": "x" * 1000})) > 1000


@pytest.mark.parametrize("row", [
    {"messages": [user("q"), assistant("a" * 1000)]},
    {"messages": [user("q"), assistant("a", reasoning_content="r" * 1000)]},
    {"messages": [user("q"), assistant("", **CALL)]},
    {"messages": [user("q"), assistant("", tool_calls=[{"name": "f" * 1000, "arguments": {}}])]},
    {"messages": [user("q"), assistant("a")], "tools": [{"name": "f", "description": "d" * 1000}]},
    {"messages": [user("q"), assistant("a"), {"role": "tool", "content": "t", "name": "n" * 1000}, assistant("a")]},
    {"messages": [user("q"), assistant("a")], "system": "s" * 1000},
])
def test_everything_that_a_conversation_renders_counts(row, monkeypatch):
    monkeypatch.setattr(conversations, "MAX_CHARACTERS", 900)
    assert refusal(row).startswith("messages: expected at most 900 characters, found ")


def test_the_characters_of_tools_count_for_each_answer(monkeypatch):
    monkeypatch.setattr(conversations, "MAX_RENDERED", 9000)
    row = {"messages": [user("q"), assistant("a")] * 10, "tools": [{"name": "f", "description": "d" * 1000}]}
    assert refusal(row).startswith("messages: expected a shorter conversation: answers x characters may be 9,000, ")


def test_the_number_of_messages_is_bounded_and_counts_for_each_answer(monkeypatch):
    row = {"messages": [user("q"), *[assistant("", train=False)] * 2000, assistant("a")]}
    assert refusal(row).endswith("answers x messages may be 1,000,000, found 2,001 x 2,002")
    monkeypatch.setattr(conversations, "MAX_MESSAGES", 2000)
    assert refusal(row) == "messages: expected at most 2,000 turns, found 2,002"


def test_a_long_conversation_is_rendered_a_few_answers_at_a_time(monkeypatch):
    chat = conversation(*[("user", "1+1"), ("assistant", "2", {"reasoning_content": "3"})] * 9)
    for template in (BUNDLED, ChatTemplate(TOKENIZER, LAST_REASONING_ONLY)):
        monkeypatch.undo()
        whole = template.encode(chat)
        monkeypatch.setattr(chat_template, "RENDERED_AT_ONCE", 1500)
        in_parts = template.encode(chat)
        assert len(whole) == len(in_parts)
        for one, other in zip(whole, in_parts, strict=True):
            assert np.array_equal(one.input_ids, other.input_ids) and np.array_equal(one.supervised, other.supervised)


def test_text_that_is_only_in_some_renderings_of_a_long_conversation_is_no_control_token(monkeypatch):
    """The reasoning holds marks of control tokens that would be chosen for the later text alone."""
    spelled = "".join(TOKENIZER.marks("\U000f0000").of_token.values())
    chat = conversation(("user", "a"), ("assistant", "b", {"reasoning_content": spelled}),
                        ("user", "\U000f0000"), ("assistant", "c"))
    template = ChatTemplate(TOKENIZER, LAST_REASONING_ONLY)
    whole = template.encode(chat)
    monkeypatch.setattr(chat_template, "RENDERED_AT_ONCE", 1)
    for one, other in zip(whole, template.encode(chat), strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
    assert TOKENIZER.encode_ordinary(spelled)[0] in whole[0].input_ids
    assert whole[0].input_ids.tolist().count(template.end_of_turn_id) == 2


def test_sequences_that_repeat_the_conversation_are_bounded(monkeypatch):
    chat = conversation(*[("user", "1+1"), ("assistant", "2", {"reasoning_content": "3"})] * 9)
    monkeypatch.setattr(chat_template, "MAX_IN_SEQUENCES", 1000)
    BUNDLED.encode(chat)
    with pytest.raises(UserError, match=r"a\.jsonl:3: expected a shorter conversation: the chat template"):
        ChatTemplate(TOKENIZER, LAST_REASONING_ONLY).encode(chat)


def test_a_text_that_is_tokenized_in_one_call_is_bounded_in_characters_and_bytes(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_CHARACTERS", 100)
    monkeypatch.setattr(pieces, "MAX_BYTES", 300)
    assert not pieces.too_long([Piece("a" * 100, True), Piece("中" * 100, True)])
    for text in ("a" * 101, "😀" * 76):
        assert pieces.too_long([Piece(text, True)]).startswith("expected at most 100 characters (300 bytes)")
        with pytest.raises(UserError, match=r"a\.jsonl:3: expected at most 100 characters"):
            BUNDLED.encode(conversation(("user", text), ("assistant", "a")))


def test_pieces_are_tokenized_a_few_at_a_time_with_the_same_ids(monkeypatch):
    chat = conversation(*[("user", "How many are 1+1?"), ("assistant", "They are two.")] * 9)
    (whole,) = BUNDLED.encode(chat)
    monkeypatch.setattr(pieces, "LONG", 3)
    monkeypatch.setattr(pieces, "_batches", lambda texts: ([text] for text in texts))
    assert np.array_equal(BUNDLED.encode(chat)[0].input_ids, whole.input_ids)
    monkeypatch.undo()
    assert list(pieces._batches(["a" * 600_000, "b" * 400_000, "c", "d" * 2_000_000])) == [
        ["a" * 600_000, "b" * 400_000], ["c"], ["d" * 2_000_000]]


def test_parts_of_running_text_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(samples, "MAX_CHARACTERS", 100)
    monkeypatch.setattr(samples, "MAX_BYTES", 300)
    parts = list(samples.text_parts("😀" * 150 + "中" * 150))
    assert "".join(parts) == "😀" * 150 + "中" * 150
    assert max(len(part.encode()) for part in parts) <= 300 and max(map(len, parts)) <= 100


def test_truncation_by_turns_tries_few_runs_and_a_bounded_number(monkeypatch):
    row = {"conversations": [user("one two"), assistant("one two")] * 200}
    encoder, tried = SFTEncoder(BUNDLED, 400, "turns"), []
    encode = ChatTemplate.encode

    def counted(self, run, *arguments):
        tried.append(len(run.messages))
        return encode(self, run, *arguments)

    monkeypatch.setattr(ChatTemplate, "encode", counted)
    (encoded,) = encoder.encode([("a:1", row)])
    assert encoded.was_cut and len(encoded.samples) == 1
    assert len(tried) < 220 and max(tried) < 200
    monkeypatch.setattr(samples, "MAX_RENDERED_RUNS", 100_000)
    (error,) = encoder.encode([("a:1", row)])
    assert str(error).startswith("a:1: expected a shorter conversation: --truncation turns would render too many runs")
