"""Turns the survey's tallies into a report: duplicated and leaked rows, the run's steps, verdicts."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.dataset import ExampleDataset, Mixture, hold_out
from minimind_sft.data.sources import Source
from minimind_sft.inspection.remedies import commands
from minimind_sft.inspection.tally import KINDS, MAX_PLACES, Position, Tally, total
from minimind_sft.settings.training import TrainSettings

TRAINING, EVALUATION = "training", "evaluation"


@dataclass(frozen=True)
class Part:
    """A file, or all files of a role, and its verdict.

    wrong, odd: descriptions of what makes it unfit for training, and of what might.
    """

    name: str
    role: str
    tally: Tally
    wrong: list[str]
    odd: list[str]

    @property
    def verdict(self) -> str:
        odd = ", ".join(self.odd)
        if self.wrong:
            return f"wrong: {', '.join(self.wrong)}" + (f"; also {odd}" if odd else "")
        return f"fine, but {odd}" if odd else "fine"


@dataclass(frozen=True)
class Plan:
    """The steps of the run that the settings ask for.

    samples: per epoch; held_out: samples set aside for evaluation.
    """

    steps: int
    epochs: int
    steps_per_epoch: int
    samples_per_step: int
    samples: int
    held_out: int


@dataclass(frozen=True)
class Report:
    """All findings of an inspection.

    parts: one per file.
    totals: one per role that has several files.
    plan: None if there is nothing to train on.
    strict: whether odd findings count as wrong.
    notes: remarks on the chat template.
    commands: fix what was found, and train on the result.
    """

    parts: list[Part]
    totals: list[Part]
    plan: Plan | None
    max_seq_len: int
    strict: bool
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def is_fine(self) -> bool:
        return not any(part.wrong or (self.strict and part.odd) for part in (*self.parts, *self.totals))

    @property
    def verdict(self) -> str:
        if self.is_fine:
            odd = any(part.odd for part in self.parts)
            return "fine, but see the warnings" if odd else "fine"
        strict = "" if any(part.wrong for part in self.parts) else " (--strict 1)"
        bad = [part.name for part in self.parts if part.wrong or (self.strict and part.odd)]
        return f"not fine to train on{strict}: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}"

    def as_json(self) -> dict[str, Any]:
        """Returns the report for programs. Counts are exact; lists of places end after `MAX_PLACES`.

        A `row` is 0 if the line is enough to find it.
        """
        return {
            "fine": self.is_fine,
            "verdict": self.verdict,
            "max_seq_len": self.max_seq_len,
            "template": self.notes,
            "commands": self.commands,
            "plan": asdict(self.plan) if self.plan else None,
            "files": [_part_as_json(part) for part in self.parts],
            "whole": [_part_as_json(part) for part in self.totals],
        }


def make_report(tallies: dict[Path, Tally], sources: Sequence[Source], eval_sources: Sequence[Source],
                settings: TrainSettings, ranks: int, strict: bool, notes: Sequence[str] = ()) -> Report:
    """Compares the rows of all files, adds what it finds to `tallies`, and judges every file."""
    training = {path: tallies[path] for source in sources for path in source.files}
    evaluation = {path: deepcopy(tallies[path]) if path in training else tallies[path]
                  for source in eval_sources for path in source.files}
    train_index, eval_index = RowIndex(training), RowIndex(evaluation)
    train_index.find_duplicates()
    eval_index.find_duplicates()
    eval_index.find_in(train_index)
    roles = {TRAINING: training, EVALUATION: evaluation}
    parts = [_judged(str(path), role, tally) for role, files in roles.items() for path, tally in files.items()]
    totals = [_judged(f"all {len(files)} files", role, total(files.values()))
              for role, files in roles.items() if len(files) > 1]
    plan = _plan(tallies, sources, bool(eval_sources), settings, ranks)
    next_commands = commands(total(training.values()), total(evaluation.values()), settings) if plan else []
    return Report(parts, totals, plan, settings.data.max_seq_len, strict, list(notes), next_commands)


class RowIndex:
    """The hashes of the rows of some files, each with its file and line."""

    def __init__(self, tallies: dict[Path, Tally]):
        self._files, self._tallies = list(tallies), list(tallies.values())
        self._starts = np.cumsum([0, *(sum(map(len, tally.rows)) for tally in self._tallies)])
        pieces = {name: [piece for tally in self._tallies for piece in getattr(tally, name)]
                  for name in ("positions", "rows", "questions")}
        self._positions = np.concatenate([np.zeros((0, 2), np.uint32), *pieces["positions"]])
        self._rows, self._questions = (np.concatenate([np.zeros(0, np.uint64), *pieces[name]])
                                       for name in ("rows", "questions"))

    def find_duplicates(self) -> None:
        """Finds rows that are the same as an earlier one."""
        first = _first_equal(self._rows, self._rows)
        again = np.flatnonzero(first != np.arange(len(first)))
        self._add("duplicated", again, lambda index: f"as {self._place(first[index], self._file(index))}")

    def find_in(self, other: "RowIndex") -> None:
        """Finds rows that the other files also have, and rows with the same question as one of theirs."""
        same = _first_equal(self._rows, other._rows)
        self._add("leaked", np.flatnonzero(same >= 0), lambda index: f"as {other._place(same[index])}")
        asks = _first_equal(self._questions, other._questions)
        hints = np.flatnonzero((asks >= 0) & (same < 0) & (self._questions != 0))
        self._add("same_question", hints, lambda index: f"as {other._place(asks[index])}")

    def _add(self, kind: str, indices: np.ndarray, detail: Callable[[int], str]) -> None:
        for number, tally in enumerate(self._tallies):
            start, end = np.searchsorted(indices, self._starts[number:number + 2])
            finding = tally.findings[kind]
            finding.count += int(end - start)
            finding.places += [(self._position(index), detail(index)) for index in indices[start:end][:MAX_PLACES]]

    def _position(self, index: int) -> Position:
        return Position(*self._positions[index].tolist())

    def _file(self, index: int) -> Path:
        return self._files[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _place(self, index: int, seen_from: Path | None = None) -> str:
        file, position = self._file(index), self._position(index)
        return f"line {position}" if file == seen_from else f"{file}:{position}"


def _first_equal(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns for each of `wanted` the first index at which `among` has it, or -1."""
    if not len(among):
        return np.full(len(wanted), -1)
    values, first = np.unique(among, return_index=True)
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[at] == wanted, first[at], -1)


def _judged(name: str, role: str, tally: Tally) -> Part:
    found: dict[str, list[str]] = {"wrong": [], "warning": [], "hint": []}
    for kind, finding in tally.findings.items():
        if finding.count:
            found[KINDS[kind].weight].append(f"{finding.count:,} {KINDS[kind].short}")
    if not tally.counts.supervised:
        found["wrong"].append("nothing to learn" if tally.counts.rows else "no rows")
    return Part(name, role, tally, found["wrong"], found["warning"])


def _plan(tallies: dict[Path, Tally], sources: Sequence[Source], has_evaluation: bool, settings: TrainSettings,
          ranks: int) -> Plan | None:
    """Plans the steps with the trainer's own functions, on datasets of empty samples."""
    counts = [sum(tallies[path].samples for path in source.files) for source in sources]
    if not all(counts):
        return None
    datasets = [ExampleDataset([[]] * count) for count in counts]
    share = 0.0 if has_evaluation else settings.data.eval_share
    parts = [hold_out(dataset, share, settings.data.seed) for dataset in datasets]
    mixture = Mixture([train for train, _ in parts])  # shares say which samples an epoch takes, not how many
    optimizer = settings.optimizer
    steps = TrainingSteps(mixture, BatchLayout(settings.runtime.micro_batch_tokens, world_size=ranks),
                          epochs=optimizer.epochs, seed=settings.data.seed, max_steps=optimizer.max_steps,
                          samples_per_step=optimizer.batch_size * optimizer.accumulation_steps * ranks)
    return Plan(len(steps), optimizer.epochs, steps.steps_per_epoch, steps.samples_per_step,
                len(mixture), sum(len(held) for _, held in parts if held is not None))


def _part_as_json(part: Part) -> dict[str, Any]:
    tally = part.tally
    counts = {name: value for name, value in asdict(tally.counts).items() if not isinstance(value, list)}
    return {
        "name": part.name, "role": part.role, "verdict": part.verdict, "wrong": part.wrong, "odd": part.odd,
        **counts,
        "samples": tally.samples, "sequences": tally.sequences,
        "supervised_share": tally.supervised_share,
        "answers": tally.turns, "answers_ended": tally.ended, "end_of_turn_share": tally.ended_share,
        "prompts_compared": tally.compared,
        "forms": dict(tally.forms),
        "ignored_fields": dict(tally.ignored),
        "lengths": {str(length): tally.lengths[length] for length in sorted(tally.lengths)},
        "findings": {kind: {"weight": KINDS[kind].weight, "count": finding.count,
                            "rows": [{**position._asdict(), "detail": detail}
                                     for position, detail in finding.places]}
                     for kind, finding in tally.findings.items()},
    }
