"""Counts what the survey finds, in memory that hardly grows with the number of rows."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np

from minimind_sft.data.dataset import DatasetCounts
from minimind_sft.report.page import Weight


class Kind(NamedTuple):
    """A kind of finding.

    weight: "wrong" makes the inspection fail, "warning" only with --strict, "hint" never.
    short, what: descriptions after a number: "3 bad", "3 rows that cannot be used".
    """

    weight: Weight
    short: str
    what: str


KINDS = {
    "bad": Kind("wrong", "bad", "that cannot be used"),
    "mismatched": Kind("wrong", "taught after other ids than a chat shows", "taught after other ids than a chat shows"),
    "unended": Kind("wrong", "without an end of turn", "with an uncut answer that lacks its end of turn"),
    "leaked": Kind("wrong", "also in the training data", "also in the training data"),
    "truncated": Kind("warning", "cut", "longer than max_seq_len, and therefore cut"),
    "dropped": Kind("warning", "dropped", "dropped: nothing to learn is left"),
    "duplicated": Kind("warning", "duplicated", "the same as an earlier one"),
    "unknown": Kind("warning", "with unknown characters", "with text that the tokenizer does not know"),
    "empty": Kind("warning", "empty", "with an empty user or system turn, or without text"),
    "not_alternating": Kind("warning", "not alternating", "whose turns do not alternate"),
    "same_question": Kind("hint", "with a question of the training data",
                          "with a question that the training data answer differently"),
}
"""By name, in the order of reports."""

MAX_PLACES = 1000
MAX_BAD = 100_000
"""Every bad row should be listed, but a file of nothing else must not fill the memory."""

MAX_IGNORED = 1000


class Position(NamedTuple):
    """The line at which a row starts, and its number among several rows of that line, otherwise 0."""

    line: int
    row: int

    def __str__(self) -> str:
        return f"{self.line} (row {self.row})" if self.row else str(self.line)


def split_place(place: str) -> tuple[str, Position]:
    """Splits `file:line` or `file:line (row n)` into the file's name and the position in it."""
    match = re.fullmatch(r"(.*):(\d+)(?: \(row (\d+)\))?", place, re.DOTALL)
    assert match, place
    return match[1], Position(int(match[2]), int(match[3] or 0))


@dataclass
class Finding:
    """The number of rows of one kind, and the positions of the first ones, each with a remark."""

    count: int = 0
    places: list[tuple[Position, str]] = field(default_factory=list)

    def add(self, position: Position, detail: str = "") -> None:
        self.count += 1
        self.places.append((position, detail))

    def merge(self, other: "Finding", max_places: int) -> None:
        self.count += other.count
        self.places = (self.places + other.places)[:max_places]


@dataclass
class Tally:
    """Counts for some rows of one file.

    forms: usable rows by their form.
    lengths: sequences by their number of tokens, for conversations before they are cut.
    samples, sequences: those that training uses.
    turns, ended: answers with a supervised token, and those among them with a supervised end-of-turn token.
    ignored: rows by the names of fields that nothing reads; beyond `MAX_IGNORED` names, "others".
    compared: answers whose prompt was compared with a chat's.
    positions, rows, questions: arrays, in pieces, over the usable rows: position [n, 2], hash of the whole row [n], and
        hash of all but the assistant's turns [n] (0 for running text).
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
            self.findings[kind].merge(finding, MAX_BAD if kind == "bad" else MAX_PLACES)
        self.positions += other.positions
        self.rows += other.rows
        self.questions += other.questions
        return self

    def add_figures(self, other: "Tally") -> None:
        """Adds everything except places, which mean nothing outside their file."""
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
        """Counts names. A file whose rows all have different fields must not fill the memory."""
        for name, rows in rows_by_name.items():
            is_known = name in self.ignored or len(self.ignored) < MAX_IGNORED
            self.ignored[name if is_known else "others"] += rows

    @property
    def usable(self) -> int:
        """Returns the number of rows that became samples."""
        return self.counts.rows - self.counts.bad_rows - self.counts.dropped_rows

    @property
    def supervised_share(self) -> float | None:
        return self.counts.supervised / self.counts.tokens if self.counts.tokens else None

    @property
    def ended_share(self) -> float | None:
        return self.ended / self.turns if self.turns else None


def total(tallies: Iterable[Tally]) -> Tally:
    """Sums the counts and findings of several files, without places."""
    summed = Tally()
    for tally in tallies:
        summed.add_figures(tally)
        for kind, finding in tally.findings.items():
            summed.findings[kind].count += finding.count
    return summed
