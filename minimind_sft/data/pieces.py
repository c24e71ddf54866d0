"""Tokenizes marked text piece by piece, with the ids that the whole text would get.

A text is cut where a model begins to answer and where it ends, so that no token spans the border. What a tokenizer does
only at the start of a text or beside a control token, it must not do, or still do, at a cut.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from minimind_sft.data.bounded_tokenizer import BoundedTokenizer
from minimind_sft.data.tokenizer import Marks

MAX_CHARACTERS, MAX_BYTES = 1_000_000, 3_000_000
"""Tokenized in one call. A character takes 100 to 400 bytes of memory meanwhile, or 130 for each of its bytes."""
LONG = 1000
"""Tokens of a text whose ids are kept in an array."""
WHITESPACE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
"""The blanks that control tokens with `lstrip` or `rstrip` swallow: Unicode's White_Space."""
BLANKS_AT_START, BLANKS_AT_END = re.compile(f"^{WHITESPACE}"), re.compile(f"{WHITESPACE}$")


class Piece(NamedTuple):
    """Marked text that is tokenized by itself; `inside` tells whether it continues text, so that no space belongs
    before it."""

    text: str
    supervised: bool
    inside: bool = False


class MarkedSequence(NamedTuple):
    """One sequence of marked text, before it is tokenized."""

    pieces: list[Piece]
    marks: Marks


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sequence of T tokens; `supervised[t]` tells whether `input_ids[t]` is learned. Nothing is shifted yet.

    input_ids: int32, (T,).
    supervised: bool, (T,).
    """

    input_ids: np.ndarray
    supervised: np.ndarray


def tokenize(sequences: list[MarkedSequence]) -> list[TokenSequence]:
    """Turns marked text into ids and loss mask; equal pieces, such as the end of a line, are tokenized once."""
    sequences = [MarkedSequence(cut_further(pieces, marks), marks) if marks.depends_on_place else sequence
                 for sequence in sequences for pieces, marks in [sequence]]
    ids_of: dict[tuple[str, bool], dict[str, Sequence[int]]] = {}
    for marks in {marks.shield: marks for _, marks in sequences}.values():
        for inside, tokenizer in ((False, marks.tokenizer), (True, marks.inside)):
            if tokenizer is not None:
                texts = {text: None for pieces, its_marks in sequences if its_marks is marks
                         for text, _, is_inside in pieces if is_inside == inside}
                ids_of[marks.shield, inside] = {
                    text: ids for batch in _batches(texts)
                    for text, ids in zip(batch, _ids(tokenizer, batch), strict=True)}

    # All sequences in one array: numpy is slow on many short ones.
    parts = [ids_of[marks.shield, inside][text] for pieces, marks in sequences for text, _, inside in pieces]
    part_ends = np.cumsum([0, *map(len, parts)])
    supervised = np.repeat([piece.supervised for pieces, _ in sequences for piece in pieces], np.diff(part_ends))
    input_ids = np.fromiter(chain.from_iterable(parts), np.int32, len(supervised))
    ends = part_ends[np.cumsum([0, *(len(pieces) for pieces, _ in sequences)])]
    return [TokenSequence(input_ids[start:end], supervised[start:end]) for start, end in pairwise(ends.tolist())]


def too_long(pieces: Iterable[Piece]) -> str:
    """Says what is wrong with pieces that are too long to be tokenized; returns "" if none is."""
    for piece in pieces:
        length = len(piece.text)
        if length > MAX_CHARACTERS or (4 * length > MAX_BYTES and len(piece.text.encode()) > MAX_BYTES):
            return (f"expected at most {MAX_CHARACTERS:,} characters ({MAX_BYTES:,} bytes) in an answer and before "
                    f"one, found {length:,}")
    return ""


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of texts of about `MAX_CHARACTERS` in all at most; a text alone if it is longer."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > MAX_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _ids(tokenizer: BoundedTokenizer, texts: list[str]) -> Iterator[Sequence[int]]:
    """Yields the ids of each text; long ones as an array, which takes a ninth of the memory of a list."""
    for ids in tokenizer.encode_batch(texts):
        yield ids if len(ids) < LONG else array("i", ids)


def cut_further(pieces: list[Piece], marks: Marks) -> list[Piece]:
    """Returns pieces that, tokenized one by one, give the ids of the whole text, for tokenizers where the place of a
    piece makes a difference."""
    further = []
    before = ""  # the last character so far
    for piece in _stripped(pieces, marks):
        first_mark = marks.find(piece.text)
        if not before or marks.inside is None:
            further.append(piece)
        elif marks.prefix == "first":
            further.append(piece._replace(inside=True))
        elif before in marks.all_marks or first_mark == 0:
            further.append(piece)
        else:  # a space belongs before the text after each control token, but not before this one
            further.append(Piece(piece.text[:first_mark], piece.supervised, inside=True))
            if first_mark < len(piece.text):
                further.append(Piece(piece.text[first_mark:], piece.supervised))
        before = piece.text[-1]
    return further


def _stripped(pieces: list[Piece], marks: Marks) -> list[Piece]:
    """Returns the pieces that have text, without whitespace that control tokens across a cut take with them."""
    kept: list[Piece] = []
    for text, supervised, _ in pieces:
        text = _without_taken(text, marks)
        if kept and kept[-1].text[-1] in marks.strip_after:
            text = BLANKS_AT_START.sub("", text)
        if text and text[0] in marks.strip_before:
            while kept:
                shorter = BLANKS_AT_END.sub("", kept[-1].text)
                if shorter:
                    kept[-1] = kept[-1]._replace(text=shorter)
                    break
                kept.pop()
        if text:
            kept.append(Piece(text, supervised))
    return kept


def _without_taken(text: str, marks: Marks) -> str:
    """Removes whitespace at both ends of a piece that a control token in it takes with it."""
    if (shorter := BLANKS_AT_END.sub("", text)) and shorter[-1] in marks.strip_after:
        text = shorter
    if (shorter := BLANKS_AT_START.sub("", text)) and shorter[0] in marks.strip_before:
        text = shorter
    return text
