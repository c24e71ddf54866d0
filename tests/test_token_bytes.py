"""The bytes that single tokens add to a text."""

import json

import pytest
import tokenizers
from chats import TOKENIZER

from minimind_sft.data.token_bytes import TokenBytes
from minimind_sft.data.tokenizer import TextStream, Tokenizer

SPACE = "\u2581"
TEXTS = ["Hello, world", "你好，世界", "a  b\n\nc", "🙂é", " leading", "<think>"]


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """A small tokenizer in the manner of SentencePiece, with byte fallback."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner.train_from_iterator(["Hello world hello a b c leading"] * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, min_frequency=1, show_progress=False))
    state = json.loads(learner.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] in special[:3]]
    state["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return Tokenizer(state, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_those_of_the_text(text, sentencepiece):
    for tokenizer in (TOKENIZER, sentencepiece):
        known = TokenBytes(tokenizer)
        ids = tokenizer.encode_ordinary(text, inside=True)
        assert b"".join(known.of(token_id) for token_id in ids) == text.encode()
        stream = TextStream(tokenizer, before=tokenizer.encode_ordinary("x"))
        assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_single_tokens(sentencepiece):
    known = TokenBytes(sentencepiece)
    tokens = ("<0xE4>", "</s>", SPACE, f"{SPACE}Hello")
    spelled = {token: known.of(sentencepiece.token_to_id(token)) for token in tokens}
    assert spelled == {"<0xE4>": b"\xe4", "</s>": b"</s>", SPACE: b" ", f"{SPACE}Hello": b" Hello"}
    assert known.of(10**6) == b""
    assert TokenBytes(TOKENIZER).of(TOKENIZER.token_to_id("<think>")) == b"<think>"
