"""The bytes of single tokens, which may be parts of characters."""

import re

from minimind_sft.data.tokenizer import Tokenizer

BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""A byte as SentencePiece's vocabularies spell it."""


class TokenBytes:
    """Knows the bytes that each token adds to a text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.added_tokens)
        decoder = tokenizer.state.get("decoder") or {}
        self._is_byte_level = any(step.get("type") == "ByteLevel" for step in (decoder, *decoder.get("decoders", ())))
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """Returns the bytes of a token inside a text; none for an id that has no token."""
        if token_id not in self._known:
            self._known[token_id] = self._find(token_id)
        return self._known[token_id]

    def _find(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._added:
            return (token or "").encode()
        if self._is_byte_level and all(character in BYTES for character in token):
            return bytes(BYTES[character] for character in token)
        if byte := BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        decode = self._tokenizer.decode  # of two, as decoders may treat the first token of a text differently
        return decode([token_id, token_id])[len(decode([token_id])):].encode()


def _byte_characters() -> dict[str, int]:
    """Returns the byte of each character in byte-level vocabularies: printable Latin-1 characters are themselves, and
    the other bytes are the characters from U+0100 on, as in GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_characters()
