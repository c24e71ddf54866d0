"""Shows the first rows as training sees them: tokens with their text, and nothing invisible."""

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

MAX_FILES = 10
MAX_READ = 1000
"""Rows that are read per file to find usable ones."""
MAX_TOKENS = 20_000
"""Tokens of a row that are shown: each takes a kilobyte on the way to the page."""
JOINER = "\u200d"
"""Joins emoji: the only invisible character that stays as it is."""


class Token(NamedTuple):
    """One token, or several that together make one character.

    text: everything is visible: a line feed is ↵ and a line feed, a tab ⇥, and other invisible characters ⟨U+0000⟩; a
        space is · unless it is a single one inside a line.
    """

    text: str
    ids: tuple[int, ...]
    supervised: bool
    control: bool


@dataclass(frozen=True)
class ShownRow:
    """A row, the tokens of each of its sequences, and how many more tokens it has."""

    place: str
    sequences: list[list[Token]]
    left_out: int = 0


def first_rows(tallies: dict[Path, Tally], encoder: SFTEncoder | PretrainEncoder, count: int) -> list[ShownRow]:
    """Returns the first `count` rows with something to learn of each file, of at most `MAX_FILES` files."""
    with_rows = [path for path, tally in tallies.items() if tally.usable]
    return [row for path in with_rows[:MAX_FILES] for row in islice(_shown_rows(path, encoder), count)]


def _shown_rows(path: Path, encoder: SFTEncoder | PretrainEncoder) -> Iterator[ShownRow]:
    written = "\n".join(encoder.template.sources) if isinstance(encoder, SFTEncoder) else ""
    control = {encoder.tokenizer.token_to_id(token) for token in encoder.tokenizer.control_tokens(written)}
    for raw in islice(read_raw_rows(path), MAX_READ):
        try:
            (encoded,) = encoder.encode([(raw.place, parse_raw_row(raw))])
        except UserError:
            continue
        if not isinstance(encoded, UserError) and encoded.samples:
            examples = [example for sample in encoded.samples for example in sample]
            yield ShownRow(raw.place, [shown_tokens(encoder, one, control) for one in _first_tokens(examples)],
                           max(sum(len(one.labels) for one in examples) - MAX_TOKENS, 0))


def _first_tokens(examples: Sequence[Example]) -> Iterator[Example]:
    """Yields the first `MAX_TOKENS` tokens of Examples."""
    left = MAX_TOKENS
    for input_ids, labels in examples:
        if left > 0:
            yield Example(input_ids[:left], labels[:left])
        left -= len(labels)


def shown_tokens(encoder: SFTEncoder | PretrainEncoder, example: Example, control: set[int | None]) -> list[Token]:
    """Returns the tokens of an Example. Its labels say whether a token is learned; the first never is."""
    ids = example.input_ids.tolist()
    learned = [False, *(example.labels != IGNORE_INDEX).tolist()]
    if learned[-1]:
        ids.append(int(example.labels[-1]))
    tokens = []
    stream, text, pending = TextStream(encoder.tokenizer), "", []
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
    """Makes all characters visible. Takes all texts together, because neighbours decide which spaces to mark."""
    joined = "".join(texts)
    dotted = re.sub(r"^ +| +$| {2,}", lambda spaces: "·" * len(spaces[0]), joined, flags=re.MULTILINE)
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
    """Whether a character is invisible, or controls the terminal or the direction of text."""
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn") and character != JOINER


def printable(text: str) -> str:
    """Makes a message that may contain anything from a file's name or the data visible, on one line."""
    return "".join(map(_visible_character, text)).replace("↵\n", "↵")
