"""The first rows as a training sees them: tokens with their text, made so that a person can see all of it."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from minimind_sft.data.example import Example
from minimind_sft.data.reading import parse_raw_row, read_raw_rows
from minimind_sft.data.samples import PretrainEncoder, SFTEncoder
from minimind_sft.data.tokenizer import TextStream
from minimind_sft.errors import UserError
from minimind_sft.inspection.tally import Tally
from minimind_sft.labels import IGNORE_INDEX

MOST_FILES = 10
LOOKED_AT = 1000
"""Rows from which the first usable ones are taken."""
JOINER = "\u200d"
"""Holds emoji together: the one invisible character that is better left as it is."""


class Token(NamedTuple):
    """One token, or the few that make one character.

    text: visible: line ends as ↵ and a line end, tabs as ⇥, spaces as · where they are not a single one inside a line,
        other characters that do not show as ⟨U+0000⟩.
    """

    text: str
    ids: tuple[int, ...]
    supervised: bool
    control: bool


@dataclass(frozen=True)
class ShownRow:
    """A row: the tokens of each of its sequences."""

    place: str
    sequences: list[list[Token]]


def first_rows(tallies: dict[Path, Tally], rows: SFTEncoder | PretrainEncoder, count: int) -> list[ShownRow]:
    """The first `count` rows of each file that keep something to learn, of at most `MOST_FILES` files."""
    with_rows = [path for path, tally in tallies.items() if tally.usable]
    return [row for path in with_rows[:MOST_FILES] for row in islice(_shown_rows(path, rows), count)]


def _shown_rows(path: Path, rows: SFTEncoder | PretrainEncoder) -> Iterator[ShownRow]:
    written = "\n".join(rows.template.sources) if isinstance(rows, SFTEncoder) else ""
    control = {rows.tokenizer.token_to_id(token) for token in rows.tokenizer.control_tokens(written)}
    for raw in islice(read_raw_rows(path), LOOKED_AT):
        try:
            (encoded,) = rows.encode([(raw.place, parse_raw_row(raw))])
        except UserError:
            continue
        if not isinstance(encoded, UserError) and encoded.samples:
            yield ShownRow(raw.place, [shown_tokens(rows, one, control) for sample in encoded.samples
                                       for one in sample])


def shown_tokens(rows: SFTEncoder | PretrainEncoder, example: Example, control: set[int | None]) -> list[Token]:
    """The tokens of an Example; its labels say of each but the first whether it is learned."""
    ids = example.input_ids.tolist()
    learned = [False, *(example.labels != IGNORE_INDEX).tolist()]
    if learned[-1]:
        ids.append(int(example.labels[-1]))
    tokens = []
    stream, text, pending = TextStream(rows.tokenizer), "", []
    for index, (token_id, supervised) in enumerate(zip(ids, learned, strict=False)):
        pending.append(token_id)
        text += stream.push(token_id)
        of_next = None if index + 1 == len(ids) else (learned[index + 1], ids[index + 1] in control)
        ends = of_next != (supervised, token_id in control)
        if ends:
            text += stream.flush()
        if text or ends:
            tokens.append(Token(text, tuple(pending), supervised, token_id in control))
            text, pending = "", []
    texts = _visible([token.text for token in tokens])
    return [token._replace(text=text) for token, text in zip(tokens, texts, strict=True)]


def _visible(texts: Sequence[str]) -> list[str]:
    """Each of the texts with all characters visible; which spaces are to be seen depends on what stands beside them."""
    whole = "".join(texts)
    dotted = re.sub(r"^ +| +$| {2,}", lambda spaces: "·" * len(spaces[0]), whole, flags=re.MULTILINE)
    pieces, position = [], 0
    for text in texts:
        pieces.append("".join(map(_visible_character, dotted[position:position + len(text)])))
        position += len(text)
    return pieces


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "⇥"
    if is_unseen(character):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def is_unseen(character: str) -> bool:
    """Whether it shows nothing, or steers the terminal or the direction of the text."""
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn") and character != JOINER


def printable(text: str) -> str:
    """A message in which a file's name or the data can have put anything, on one line."""
    return "".join(map(_visible_character, text)).replace("↵\n", "↵")
