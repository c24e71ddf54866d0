"""Filters for rows: duplicates, rows that are too long, other languages, answers that are too short."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable

from minimind_sft.data.conversation import Conversation, canonical_row
from minimind_sft.data.samples import SFTEncoder, text_ids
from minimind_sft.languages import LETTERS

Row = Conversation | str
"""A parsed row, as `conversation.parse_row` returns it."""


def row_text(row: Row) -> str:
    """Returns the text of a row, one line per turn."""
    if isinstance(row, str):
        return row
    return "\n".join(message["content"] for message in row.messages if message["content"])


def language_share(text: str, language: str) -> float:
    """Returns the share of a text's letters that the language uses, 0 to 1; 1 for text without letters."""
    letters = re.findall(r"[^\W\d_]", text)
    own = re.compile(f"[{LETTERS[language]}]")
    return sum(bool(own.match(letter)) for letter in letters) / len(letters) if letters else 1.0


def shortest_answer(row: Row) -> int | None:
    """Returns the characters of the shortest learned answer without a tool call; None if there is none."""
    if isinstance(row, str):
        return None
    return min((len(message["content"].strip()) for message in row.messages
                if message["role"] == "assistant" and message.get("train", True) and not message.get("tool_calls")),
               default=None)


def longest_sequence(row: Row, encoder: SFTEncoder) -> int:
    """Returns the tokens of the longest sequence that training makes of the row, before any cut."""
    if isinstance(row, str):
        return len(text_ids(encoder.tokenizer, row, "the text")) + 1
    return max((len(sequence.input_ids) for sequence in encoder.template.encode(row)), default=0)


def not_seen_before() -> Callable[[Row], bool]:
    """Returns a test that is true for the first of equal rows; it remembers 8 bytes per row."""
    seen: set[bytes] = set()

    def is_new(row: Row) -> bool:
        digest = _digest(row)
        is_first = digest not in seen
        seen.add(digest)
        return is_first

    return is_new


def not_among(rows: Iterable[Row]) -> Callable[[Row], bool]:
    """Returns a test that is true for rows not among `rows`; it remembers 8 bytes per row."""
    known = {_digest(row) for row in rows}
    return lambda row: _digest(row) not in known


def _digest(row: Row) -> bytes:
    content = row if isinstance(row, str) else json.dumps(canonical_row(row), ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).digest()
