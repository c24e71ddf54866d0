"""Checks what a tokenizer makes of text: letters are kept, and text that it cannot spell is no control token."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from minimind_sft.data.bounded_tokenizer import BoundedTokenizer
from minimind_sft.data.tokenizer_state import steps_in
from minimind_sft.errors import UserError

KEPT = "The quick brown fox jumps over the lazy dog, 0123456789 times. Was it 42?"
WORDS = ("quick", "brown", "fox", "42")
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
ALWAYS_NEEDED = (ord("\t"), ord("\n"), *range(32, 127))
SHOWN_AS_THEY_ARE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTES = {**{byte: chr(byte) for byte in SHOWN_AS_THEY_ARE},
         **{byte: chr(256 + index) for index, byte in enumerate(sorted({*range(256)} - {*SHOWN_AS_THEY_ARE}))}}
"""The character by which byte-level tokenizers spell each byte (GPT-2's `bytes_to_unicode`)."""


def check_unknown(state: dict[str, Any], special: dict[str, str], end_of_document: str, place: str) -> Iterator[str]:
    """Refuses a token for unknown text that is missing or also a control token; yields a line if there is none.

    Args:
        special: the strings of `bos_token` and the like.

    Raises:
        UserError: naming the field.
    """
    if spells_everything(state):
        return
    is_list = isinstance(state["model"]["vocab"], list)
    field = f"{place}: model: {'unk_id' if is_list else 'unk_token'}"
    token = unknown_token(state)
    if token is None:
        if is_list:
            raise UserError(f"{field}: missing, and the vocabulary cannot spell every text")
        if not _spells(state, ALWAYS_NEEDED):  # without the other bytes, hardly any text is left out
            yield (f"{place}: the vocabulary cannot spell every text and has no unk_token: the rest of a text is left "
                   "out")
        return
    if not _has(state, token):
        raise UserError(f"{field}: {token!r} is not in the vocabulary, which cannot spell every text")
    roles = [name for name, its in special.items() if its == token and name != "unk_token"]
    if roles or token == end_of_document:
        raise UserError(f"{field}: text that the vocabulary cannot spell becomes {token!r}, which is a control token "
                        f"({', '.join(roles) or 'the end of a document'})")


def unknown_token(state: dict[str, Any]) -> str | None:
    """Returns the token for text that the vocabulary cannot spell; None without one."""
    model = state["model"]
    if isinstance(model.get("unk_token"), str):
        return model["unk_token"] or None
    at = model.get("unk_id")
    return None if at is None else model["vocab"][at][0]


def spells_everything(state: dict[str, Any]) -> bool:
    """Whether the vocabulary has all bytes of UTF-8, so that no text is unknown."""
    return _spells(state, set(range(256)) - NEVER_IN_UTF8)


def _spells(state: dict[str, Any], some: Iterable[int]) -> bool:
    """Whether the vocabulary has these bytes; no vocabulary of characters and words has any."""
    model, added = state["model"], {entry["content"] for entry in state["added_tokens"]}
    if model.get("byte_fallback"):
        needed = {f"<0x{byte:02X}>" for byte in some}
    elif "merges" in model and any(step["type"] == "ByteLevel" for field in ("normalizer", "pre_tokenizer")
                                   for step, _ in steps_in(state, field, "")):
        needed = {BYTES[byte] for byte in some}
    else:
        return False
    vocab = model["vocab"]
    return needed <= (set(vocab) if isinstance(vocab, dict) else {token for token, _ in vocab}) - added


def check_kept(tokenizer: BoundedTokenizer, place: str) -> None:
    """Refuses a tokenizer that loses or changes letters or digits; it may change case.

    Raises:
        UserError: saying where they get lost.
    """
    seen = tokenizer.split(KEPT)
    if _letters(seen) != _letters(KEPT):
        raise UserError(f"{place}: normalizer, pre_tokenizer: letters or digits get lost or changed: {KEPT[:19]!r} "
                        f"becomes {seen[:40]!r}")
    tokenizer.decode([])
    for word in WORDS:
        ids = tokenizer.encode(word)
        spelled = "".join(tokenizer.id_to_token(each) or "" for each in ids)
        if word in spelled and word not in (decoded := tokenizer.decode(ids)).replace(" ", ""):
            raise UserError(f"{place}: decoder: {word!r} becomes {decoded[:40]!r}")


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.casefold())


def _has(state: dict[str, Any], token: str) -> bool:
    vocab = state["model"]["vocab"]
    return (token in vocab if isinstance(vocab, dict) else any(token == pair[0] for pair in vocab)) or any(
        entry["content"] == token for entry in state["added_tokens"])
