"""Tokenizes marked text piece by piece, with the ids that the whole text would get.

A text is cut where a model begins to answer and where it ends, so that no token spans the border. What a tokenizer does
only at the start of a text or beside a control token, it must not do, or still do, at a cut.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from minimind_sft.data.tokenizer import Marks

WHITESPACE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
"""What control tokens with `lstrip` or `rstrip` take with them: Unicode's White_Space."""
BLANKS_AT_START, BLANKS_AT_END = re.compile(f"^{WHITESPACE}"), re.compile(f"{WHITESPACE}$")


class Piece(NamedTuple):
    """Marked text that is tokenized by itself."""

    text: str
    supervised: bool


class MarkedSequence(NamedTuple):
    """One sequence of marked text, before it is tokenized."""

    pieces: list[Piece]
    marks: Marks


class Part(NamedTuple):
    """A piece, or a part of one; `inside` tells whether it continues text, so that no space belongs before it."""

    text: str
    supervised: bool
    inside: bool = False


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
    cut = [(list(parts_of(pieces, marks)), marks) for pieces, marks in sequences]
    ids_of: dict[tuple[str, bool], dict[str, list[int]]] = {}
    for marks in {marks.shield: marks for _, marks in cut}.values():
        for inside in (False, True):
            texts = list({part.text: None for parts, its_marks in cut if its_marks is marks
                          for part in parts if part.inside == inside})
            tokenizer = marks.inside if inside else marks.tokenizer
            if texts and tokenizer is not None:
                encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                ids_of[marks.shield, inside] = {text: encoding.ids
                                                for text, encoding in zip(texts, encodings, strict=True)}

    # All sequences in one array: numpy is slow on many short ones.
    ids = [ids_of[marks.shield, part.inside][part.text] for parts, marks in cut for part in parts]
    part_ends = np.cumsum([0, *map(len, ids)])
    supervised = np.repeat([part.supervised for parts, _ in cut for part in parts], np.diff(part_ends))
    input_ids = np.fromiter(chain.from_iterable(ids), np.int32, len(supervised))
    ends = part_ends[np.cumsum([0, *(len(parts) for parts, _ in cut)])]
    return [TokenSequence(input_ids[start:end], supervised[start:end]) for start, end in pairwise(ends.tolist())]


def parts_of(pieces: list[Piece], marks: Marks) -> Iterator[Part]:
    """Yields parts that, tokenized one by one, give the ids of the whole text."""
    if not marks.depends_on_place:
        yield from (Part(*piece) for piece in pieces)
        return
    before = ""  # the last character so far
    for piece in _stripped(pieces, marks):
        first_mark = marks.find(piece.text)
        if not before or marks.inside is None:
            yield Part(*piece)
        elif marks.prefix == "first":
            yield Part(*piece, inside=True)
        elif before in marks.all_marks or first_mark == 0:
            yield Part(*piece)
        else:  # a space belongs before the text after each control token, but not before this one
            yield Part(piece.text[:first_mark], piece.supervised, inside=True)
            if first_mark < len(piece.text):
                yield Part(piece.text[first_mark:], piece.supervised)
        before = piece.text[-1]


def _stripped(pieces: list[Piece], marks: Marks) -> list[Piece]:
    """Returns the pieces that have text, without whitespace that control tokens across a cut take with them."""
    kept: list[Piece] = []
    for text, supervised in pieces:
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
