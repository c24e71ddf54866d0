"""Assistant turns in marked text (`template_marks`), and the cuts at both ends of each answer."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minimind_sft.data.pieces import Piece, TokenSequence

COMPARED_FIRST = 64
"""Characters before the end of a turn: where a template renders it differently later, mostly these differ."""


class Rendering:
    """Marked text that ends with an answer. Turns share one as long as each rendering begins with the one before."""

    def __init__(self, text: str):
        self.text = text


class Turn(NamedTuple):
    """An assistant turn in marked text: its answer, through the end-of-turn token, is `rendering.text[start:end]`."""

    rendering: Rendering
    start: int
    end: int

    @property
    def answered(self) -> str:
        """The text before the answer, with the generation prompt, and the answer."""
        return self.rendering.text[:self.end]

    @property
    def rest(self) -> str:
        """The text after the answer, for the last turn of a rendering."""
        return self.rendering.text[self.end:]

    def begins(self, text: str) -> bool:
        """Tells whether a text begins with the turn and everything before it."""
        if text is self.rendering.text:
            return True
        near = slice(max(self.end - COMPARED_FIRST, 0), self.end)
        return text[near] == self.rendering.text[near] and text.startswith(self.answered)


def add_turn(turns: list[Turn], prompt: str, full: str, end: int) -> None:
    """Adds the turn that is rendered as `full`, where its answer lies between the end of `prompt` and `end`."""
    if turns and turns[-1].begins(prompt):
        rendering = turns[-1].rendering
        rendering.text = full
    else:
        rendering = Rendering(full)
    turns.append(Turn(rendering, len(prompt), end))


def cut_at_answers(text: str, turns: Sequence[Turn], chosen: Sequence[bool], first: int,
                   learn_prompt: bool) -> list[Piece]:
    """Cuts marked text into pieces. The `chosen` turns from `first` on are supervised; with `learn_prompt` also the
    text between them.

    The text is cut at both ends of every answer, learned or not, so that no token spans the border between what a model
    is given and what it says. A turn that the template now renders differently is somewhere in the text before the next
    answer; if it was not chosen, that text is not learned.
    """
    pieces, position, between = [], 0, learn_prompt
    for index, turn in enumerate(turns):
        if turn.begins(text):
            pieces.append(Piece(text[position:turn.start], between))
            pieces.append(Piece(text[turn.start:turn.end], chosen[index] and index >= first))
            position, between = turn.end, learn_prompt
        elif not chosen[index]:
            between = False
    pieces.append(Piece(text[position:], between))
    return pieces


def learn_once(sequences: list[TokenSequence]) -> list[TokenSequence]:
    """Unsupervises the beginning that a sequence shares with the one before it, which is learned there.

    Drops sequences that keep no supervised token.
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
