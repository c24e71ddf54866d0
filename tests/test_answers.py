"""The tokens of an answer become what a client receives: reasoning, content up to a stop string, probabilities."""

import pytest
from chats import TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_sft.data.token_bytes import BYTES
from minimind_sft.inference.request import Token
from minimind_sft.serving.answers import AnswerReader, Delta

BYTE_TOKENS = {byte: TOKENIZER.token_to_id(character) for character, byte in BYTES.items()}


def by_bytes(text: str | bytes) -> list[int]:
    """Returns a token for each byte."""
    return [BYTE_TOKENS[byte] for byte in (text.encode() if isinstance(text, str) else text)]


def splits(text: str) -> list[list[int]]:
    """Returns the ids of a text in several ways: as the model would write it, and cut everywhere."""
    return [TOKENIZER.encode(text), TOKENIZER.encode_ordinary(text), by_bytes(text)]


def read(reader: AnswerReader, ids, at_once: int = 1, finish: str = "stop") -> list[Delta]:
    """Returns the deltas of an answer that arrives some tokens at a time."""
    deltas = []
    for start in range(0, len(ids), at_once):
        deltas += reader.push([Token(token_id) for token_id in ids[start:start + at_once]])
    return deltas + reader.end(finish)


def joined(deltas: list[Delta]) -> tuple[str, str]:
    """Returns (reasoning, content)."""
    return "".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
@pytest.mark.parametrize(("text", "thinking", "expected"), [
    ("Hello 你好 🙂", False, ("", "Hello 你好 🙂")),
    ("", False, ("", "")),
    (" \n x", False, ("", " \n x")),
    ("<think>\nhm 1 < 2\n\n</think>\n\nyes\n", False, ("hm 1 < 2", "yes\n")),
    ("\n<think>hm</think>yes", False, ("hm", "yes")),
    ("hm\n</think>\n\nyes", True, ("hm", "yes")),
    ("<think>\nhm\n</think>yes", True, ("hm", "yes")),
    ("</think>yes", True, ("", "yes")),
    ("\n\n</think>\n\n", True, ("", "")),
    ("never ends\n", True, ("never ends", "")),
    ("\n", True, ("", "")),
    ("cut </thi", True, ("cut </thi", "")),
    ("<thin", False, ("", "<thin")),
    ("a <think>b</think>", False, ("", "a <think>b</think>")),
    ("a</think>b", False, ("", "a</think>b")),
    ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
    ("<think>a</think>b", None, ("", "<think>a</think>b")),
])
def test_reasoning_and_content(text, thinking, expected, at_once):
    for ids in splits(text):
        assert joined(read(AnswerReader(TOKENIZER, thinking), ids, at_once)) == expected


@pytest.mark.parametrize(("text", "thinking", "count"), [
    ("<think>a b</think> c d", False, 3), ("a b</think> c d", True, 2), ("a b c", True, 3), ("a b c", False, 0),
    ("<think>a</think>", None, 0)])
def test_tokens_of_reasoning_are_counted(text, thinking, count):
    """The tag that opens it is one of them, and the one that ends it is not."""
    reader = AnswerReader(TOKENIZER, thinking)
    read(reader, TOKENIZER.encode(text), 1)
    assert reader.reasoning_tokens == count


@pytest.mark.parametrize("at_once", [1, 2, 1000])
@pytest.mark.parametrize(("text", "stops", "expected"), [
    ("one two three", ["two"], "one "),
    ("one two three", ["four"], "one two three"),
    ("one tw", ["two"], "one tw"),
    ("aaaab", ["aab"], "aa"),
    ("你好，世界", ["，世"], "你好"),
    ("你好", ["好"], "你"),
    ("abcdefgh", ["abcdef", "cd"], "ab"),
    ("abcdefgh", ["cd", "bcd"], "a"),
    ("a\n\nb", ["\n\n"], "a"),
    ("stop", ["stop"], ""),
    ("User: x", ["<|im_end|>", "User:"], ""),
])
def test_a_stop_string_ends_the_content_in_every_split(text, stops, expected, at_once):
    for ids in splits(text):
        reader = AnswerReader(TOKENIZER, False, stops=stops)
        assert joined(read(reader, ids, at_once, "length")) == ("", expected)
        assert reader.stopped == (len(expected) < len(text))
        assert reader.finish_reason == ("stop" if reader.stopped else "length")


def test_nothing_is_read_after_a_stop_string():
    reader = AnswerReader(TOKENIZER, False, stops=["b"])
    assert joined(reader.push([Token(token_id) for token_id in by_bytes("abc")])) == ("", "a")
    assert reader.stopped and reader.push([Token(token_id) for token_id in by_bytes("def")]) == []
    assert reader.end("cancelled") == [] and reader.finish_reason == "stop"


def test_stop_strings_are_not_looked_for_in_reasoning():
    reader = AnswerReader(TOKENIZER, True, stops=["\n"])
    assert joined(read(reader, by_bytes("a\nb</think>\n\nc\nd"))) == ("a\nb", "c")


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
    reader = AnswerReader(TOKENIZER, False, stops=["END", "</s>"])
    shown = [joined(reader.push([Token(token_id)]))[1] for token_id in by_bytes("a EN</d")]
    assert shown == ["a", " ", "", "", "EN", "", "</d"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "<think>", "</think>", "<", "\n", " ", "你"]), max_size=20).map("".join),
       st.lists(st.text("ab<\n你", min_size=1, max_size=3), max_size=3), st.sampled_from([None, False, True]),
       st.integers(1, 4))
def test_the_split_does_not_matter(text, stops, thinking, at_once):
    whole = AnswerReader(TOKENIZER, thinking, stops=stops)
    expected = joined(read(whole, by_bytes(text), 1000))
    pieces = AnswerReader(TOKENIZER, thinking, stops=stops)
    assert joined(read(pieces, by_bytes(text), at_once)) == expected
    assert pieces.stopped == whole.stopped
    if thinking is None:
        end = min(((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text), default=None)
        assert expected == ("", text[:end[1]] if end else text)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80))
def test_broken_characters_are_replaced_and_nothing_else_is_lost(data):
    """Random bytes have no long runs of incomplete characters."""
    assert joined(read(AnswerReader(TOKENIZER, None), by_bytes(data)))[1] == data.decode(errors="replace")


def test_a_character_that_is_cut_off_is_replaced():
    assert joined(read(AnswerReader(TOKENIZER, False), by_bytes("a" + "你")[:-1], finish="length"))[1] == "a\ufffd"


def test_endless_broken_characters_come_out_as_they_arrive():
    reader = AnswerReader(TOKENIZER, False)
    shown = joined(reader.push([Token(token_id) for token_id in by_bytes(b"\xff" * 1000)]))[1]
    assert 900 < len(shown) <= 1000 and set(shown) == {"\ufffd"}
    assert len(shown + joined(reader.end("length"))[1]) == 1000


def test_logprobs_have_the_bytes_of_each_token():
    reader = AnswerReader(TOKENIZER, False, stops=["!"], logprobs=True)
    ids = by_bytes("你a")
    deltas = [reader.push([Token(token_id, -0.5, [(token_id, -0.5), (ids[-1], -2.0)])]) for token_id in ids]
    assert [len(found) for found in deltas] == [0, 0, 1, 1]
    (first,), (second,) = deltas[2:]
    assert [one.chosen.bytes for one in first.logprobs] == [(0xe4,), (0xbd,), (0xa0,)]
    assert second.logprobs[0].chosen == ("a", (0x61,), -0.5)
    assert [text.token for text in first.logprobs[0].best] == ["\ufffd", "a"]
    assert reader.end("length") == []


def test_logprobs_of_tokens_without_text_come_at_the_end():
    reader = AnswerReader(TOKENIZER, False, logprobs=True)
    newline = by_bytes("\n")[0]
    assert reader.push([Token(newline, -1.0)]) == []
    (delta,) = reader.end("stop")
    assert delta.content == "\n" and len(delta.logprobs) == 1
    assert reader.finish_reason == "stop"
