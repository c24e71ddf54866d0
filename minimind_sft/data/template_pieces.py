"""Marked text is cut where an answer begins and ends, and becomes token ids with a loss mask.

Ids and mask come from the same pieces, so that neither is ever worked out from the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from minimind_sft.data.tokenizer import Marks


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sequence. `supervised[t]` says whether `input_ids[t]` is to be learned; nothing is shifted yet.

    input_ids: int32, [tokens].
    supervised: bool, [tokens].
    """

    input_ids: np.ndarray
    supervised: np.ndarray


class Piece(NamedTuple):
    """Marked text that is encoded by itself."""

    text: str
    supervised: bool


class MarkedSequence(NamedTuple):
    """One sequence before it is encoded."""

    pieces: list[Piece]
    marks: Marks


class Turn(NamedTuple):
    """An assistant's turn in marked text: `prompt` asks for it; `answered` is the prompt and the answer through its
    end-of-turn token, and what the template writes after that is `rest`."""

    prompt: str
    answered: str
    rest: str


def cut_at_answers(text: str, turns: Sequence[Turn], chosen: Sequence[bool], first: int,
                   learn_prompt: bool) -> list[Piece]:
    """Cuts marked text into pieces. Supervised are the `chosen` turns from `first` on and, with `learn_prompt`, all
    between them.

    The text is cut at both ends of every answer, those not learned included, so that no token spans from what a model
    is given into what it says. A turn that the template renders otherwise by now is somewhere in the text before the
    next one's answer; where it was not chosen, that text is not learned.
    """
    pieces, position, between = [], 0, learn_prompt
    for index, turn in enumerate(turns):
        if text.startswith(turn.answered):
            pieces.append(Piece(text[position:len(turn.prompt)], between))
            pieces.append(Piece(text[len(turn.prompt):len(turn.answered)], chosen[index] and index >= first))
            position, between = len(turn.answered), learn_prompt
        elif not chosen[index]:
            between = False
    pieces.append(Piece(text[position:], between))
    return pieces


def tokenize(sequences: list[MarkedSequence]) -> list[TokenSequence]:
    """Encodes every sequence; equal pieces, such as the end of a line, are encoded once."""
    ids_of: dict[str, dict[str, list[int]]] = {}
    for marks in {marks.shield: marks for _, marks in sequences}.values():
        texts = list({piece.text: None for pieces, its_marks in sequences if its_marks is marks for piece in pieces})
        encodings = marks.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids_of[marks.shield] = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}

    # All sequences as one: numpy is slow on many short arrays.
    parts = [ids_of[marks.shield][piece.text] for pieces, marks in sequences for piece in pieces]
    part_ends = np.cumsum([0, *map(len, parts)])
    supervised = np.repeat([piece.supervised for pieces, _ in sequences for piece in pieces], np.diff(part_ends))
    input_ids = np.fromiter(chain.from_iterable(parts), np.int32, len(supervised))
    ends = part_ends[np.cumsum([0, *(len(pieces) for pieces, _ in sequences)])]
    return [TokenSequence(input_ids[start:end], supervised[start:end]) for start, end in pairwise(ends.tolist())]


def learn_once(sequences: list[TokenSequence]) -> list[TokenSequence]:
    """Takes the beginning that a sequence shares with the one before it out of the mask: it is learned there.

    Sequences in which nothing is left to learn are dropped.
    """
    learned = sequences[:1]
    for before, sequence in pairwise(sequences):
        shorter = min(len(before.input_ids), len(sequence.input_ids))
        differs = np.flatnonzero(before.input_ids[:shorter] != sequence.input_ids[:shorter])
        common = differs[0] if len(differs) else shorter
        supervised = sequence.supervised.copy()
        supervised[:common] = False
        learned.append(TokenSequence(sequence.input_ids, supervised))
    return [sequence for sequence in learned if sequence.supervised.any()]
