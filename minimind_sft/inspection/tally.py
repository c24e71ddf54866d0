"""What is counted while the rows of a file pass by, in memory that hardly grows with them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np

from minimind_sft.data.dataset import DatasetCounts


class Kind(NamedTuple):
    """A kind of finding.

    weight: "wrong" ends in a failure, a "warning" does with --strict, a "hint" never.
    short, what: follow a number: "3 bad", "3 rows that cannot be used".
    """

    weight: str
    short: str
    what: str


KINDS = {
    "bad": Kind("wrong", "bad", "that cannot be used"),
    "mismatched": Kind("wrong", "taught after other ids than a chat shows", "taught after other ids than a chat shows"),
    "unended": Kind("wrong", "without an end of turn", "with an answer that lacks its end of turn, though it is not "
                                                       "cut"),
    "leaked": Kind("wrong", "also in the training data", "also in the training data"),
    "truncated": Kind("warning", "cut", "longer than max_seq_len, of which a part is left out"),
    "dropped": Kind("warning", "dropped", "dropped: nothing to learn is left"),
    "duplicated": Kind("warning", "duplicated", "the same as an earlier one"),
    "unknown": Kind("warning", "with unknown characters", "with text that the tokenizer does not know"),
    "empty": Kind("warning", "empty", "with an empty user or system turn, or without text"),
    "not_alternating": Kind("warning", "not alternating", "whose turns do not alternate"),
    "same_question": Kind("hint", "with a question of the training data",
                          "whose question the training data have too, with another answer"),
}
"""By name, in the order of reports."""

MOST_PLACES = 1000
MOST_BAD = 100_000
"""The lines of bad rows are what the report is for; yet a file that is nothing else must not fill the memory."""

MAX_IGNORED = 1000


class Position(NamedTuple):
    """Where a row stands in its file: the line that it begins at, and which row it is if there are several in a line,
    else 0."""

    line: int
    row: int

    def __str__(self) -> str:
        return f"{self.line} (row {self.row})" if self.row else str(self.line)


def split_place(place: str) -> tuple[str, Position]:
    """`file:line` or `file:line (row n)` as the file's name and the position in it."""
    match = re.fullmatch(r"(.*):(\d+)(?: \(row (\d+)\))?", place, re.DOTALL)
    assert match, place
    return match[1], Position(int(match[2]), int(match[3] or 0))


@dataclass
class Finding:
    """Rows of one kind: how many, and the first of them, each with what there is to say about it."""

    count: int = 0
    places: list[tuple[Position, str]] = field(default_factory=list)

    def add(self, position: Position, detail: str = "") -> None:
        self.count += 1
        self.places.append((position, detail))

    def merge(self, other: "Finding", most: int) -> None:
        self.count += other.count
        self.places = (self.places + other.places)[:most]


@dataclass
class Tally:
    """Some rows of one file.

    forms: usable rows by the form they have.
    lengths: sequences by their tokens; those of conversations before they are cut.
    samples, sequences: that are trained on.
    turns, ended: answers with a supervised token; those of them whose end-of-turn token is supervised.
    ignored: fields that nothing reads, by the rows that have them; those beyond `MAX_IGNORED` as "others".
    compared: answers whose prompt was compared with that of a chat.
    positions, rows, questions: of each usable row, as arrays in pieces: where it is, [n, 2], the hash of all of it,
        [n], and that of all but the assistant's turns, [n] (0 for running text).
    """

    counts: DatasetCounts = field(default_factory=DatasetCounts)
    forms: Counter = field(default_factory=Counter)
    lengths: Counter = field(default_factory=Counter)
    ignored: Counter = field(default_factory=Counter)
    samples: int = 0
    sequences: int = 0
    turns: int = 0
    ended: int = 0
    compared: int = 0
    findings: dict[str, Finding] = field(default_factory=lambda: {kind: Finding() for kind in KINDS})
    positions: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    questions: list[np.ndarray] = field(default_factory=list)

    def __iadd__(self, other: "Tally") -> Self:
        self.add_figures(other)
        for kind, finding in other.findings.items():
            self.findings[kind].merge(finding, MOST_BAD if kind == "bad" else MOST_PLACES)
        self.positions += other.positions
        self.rows += other.rows
        self.questions += other.questions
        return self

    def add_figures(self, other: "Tally") -> None:
        """Without the places, which say nothing outside of their file."""
        self.counts += other.counts
        self.forms.update(other.forms)
        self.lengths.update(other.lengths)
        self.add_ignored(other.ignored)
        self.samples += other.samples
        self.sequences += other.sequences
        self.turns += other.turns
        self.ended += other.ended
        self.compared += other.compared

    def add_ignored(self, rows_by_name: Mapping[str, int]) -> None:
        """Counts names; a file whose rows all have other fields must not fill the memory."""
        for name, rows in rows_by_name.items():
            is_known = name in self.ignored or len(self.ignored) < MAX_IGNORED
            self.ignored[name if is_known else "others"] += rows

    @property
    def usable(self) -> int:
        """Rows that samples were made of."""
        return self.counts.rows - self.counts.bad_rows - self.counts.dropped_rows

    @property
    def supervised_share(self) -> float | None:
        return self.counts.supervised / self.counts.tokens if self.counts.tokens else None

    @property
    def ended_share(self) -> float | None:
        return self.ended / self.turns if self.turns else None


def total(tallies: Iterable[Tally]) -> Tally:
    """The figures of several files, and how often each kind was found; without places."""
    whole = Tally()
    for tally in tallies:
        whole.add_figures(tally)
        for kind, finding in tally.findings.items():
            whole.findings[kind].count += finding.count
    return whole
