"""Reads the metrics file of a run strictly: what is there is what it should be, or the error names file and line."""

import math
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

from minimind_sft.errors import UserError, describe
from minimind_sft.files import MAX_METRICS_BYTES, read_text
from minimind_sft.strict_json import parse_json

SUFFIX = "_metrics.jsonl"
ENDS = ("finished", "stopped early", "interrupted", "failed")
NUMBERS = ("epoch", "loss", "aux_loss", "learning_rate", "grad_norm", "supervised_tokens",
           "supervised_tokens_per_second", "tokens_per_second", "peak_share", "peak_memory_mib", "data_seconds",
           "step_seconds", "eval_seconds", "save_seconds", "eval_loss", "perplexity", "token_accuracy", "eval_tokens",
           "exact_match", "seconds")
"""Fields of a line that are a finite number or null."""

COUNTS = ("rows", "samples", "tokens", "supervised", "truncated", "dropped_rows", "bad_rows")
"""Fields of one file of the run's data."""

MAX_COUNT = 2**53
"""No count of steps is higher, and floats cannot tell higher whole numbers apart."""
MAX_NUMBER = 3.5e38
"""No float32 is higher; sums and axes of such numbers do not overflow."""

SCORES = ("loss", "token_accuracy", "tokens")
"""Fields of one source or kind of the evaluation data."""


class Warned(NamedTuple):
    """A warning of the run, and the step at which it was given."""

    step: int
    name: str
    text: str


class End(NamedTuple):
    """How a run ended: one of `ENDS`."""

    step: int
    how: str
    seconds: float | None


@dataclass(frozen=True)
class Run:
    """A run as its metrics file describes it. Files of earlier versions have fewer fields.

    Attributes:
        starts: a dictionary for each start and resume, with the step it started at under "step" (see docs/running.md).
        steps: the lines of training steps, by step.
        evaluations: the lines of evaluations, by step.
        end: how the run ended, None while it goes on; a resumed run goes on.
    """

    path: Path
    starts: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    end: End | None = None

    @property
    def about(self) -> dict[str, Any]:
        """The description that the last start gave; empty in files of earlier versions."""
        return self.starts[-1] if self.starts else {}

    @property
    def name(self) -> str:
        return self.about.get("name") or self.path.name.removesuffix(SUFFIX)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by the names of their flags, as typed."""
        return self.about.get("settings") or {}

    @property
    def last_step(self) -> int:
        lines = (*self.starts[-1:], *self.steps[-1:], *self.evaluations[-1:])
        return max((line["step"] for line in lines), default=0)

    @property
    def total_steps(self) -> int | None:
        return self.about.get("total_steps")

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a number of the steps or, if they lack it, of the evaluations.

        A value that was not finite is left out.
        """
        lines = self.steps if any(name in line for line in self.steps) else self.evaluations
        return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


class RunReader:
    """Reads a run line by line; `run` is the run as far as it was read."""

    def __init__(self, path: Path):
        self.run = Run(path)
        self._step = 0

    def add(self, text: str, place: str) -> dict[str, Any]:
        """Reads a line of the metrics file, and returns it.

        Raises:
            UserError: naming the place and the field that is not as expected. The run stays as it was.
        """
        line = _parsed(text, place)
        step = line.get("step")
        if not _is_count(step):
            raise UserError(f"{place}: step: expected a whole number, found {_found(line, 'step')}; a line of metrics "
                            'looks like {"step": 10, "loss": 2.5}')
        if step < self._step:
            raise UserError(f"{place}: step: expected at least {self._step}, as on the line before, found {step}")
        _check_numbers(line, NUMBERS, place)
        self._add_checked(line, step, place)
        self._step = step
        return line

    def _add_checked(self, line: dict[str, Any], step: int, place: str) -> None:
        run, end = self.run, self.run.end
        if "run" in line:
            run.starts.append({**_start(line["run"], f"{place}: run"), "step": step})
            end = None
        elif "warning" in line:
            run.warnings.append(Warned(step, _text(line, "name", place, ""), _text(line, "warning", place)))
        elif "end" in line:
            if line["end"] not in ENDS:
                _refuse(line, "end", place, f"one of {', '.join(ENDS)}")
            end = End(step, line["end"], line.get("seconds"))
        elif "eval_loss" in line:
            _check_evaluation(line, place)
            run.evaluations.append(line)
        elif "loss" in line:
            run.steps.append(line)
            end = None
        if end is not run.end:
            self.run = replace(run, end=end)


def read_run(path: Path) -> Run:
    """Reads a metrics file.

    A last line without its line end is still being written, and is left out unless it is complete.

    Raises:
        UserError: naming the file, or the line and field, that is not as expected.
    """
    reader = RunReader(path)
    *complete, last = read_text(path, MAX_METRICS_BYTES).split("\n")
    for number, line in enumerate(complete, 1):
        reader.add(line, f"{path}:{number}")
    if _is_json(last):
        reader.add(last, f"{path}:{len(complete) + 1}")
    return reader.run


def _parsed(text: str, place: str) -> dict[str, Any]:
    value = parse_json(text, place, "a line of JSON")
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object, found {describe(value)}")
    return value


def _is_json(text: str) -> bool:
    with suppress(UserError):
        parse_json(text, "")
        return True
    return False


def _check_evaluation(line: dict[str, Any], place: str) -> None:
    for name in ("by_source", "by_kind"):
        for part, scores in _object(line, name, place).items():
            if not isinstance(scores, dict):
                _refuse(line[name], part, f"{place}: {name}", "an object")
            _check_numbers(scores, SCORES, f"{place}: {name}: {part}")
    for kind, counts in _object(line, "exact_by_kind", place).items():
        if not (isinstance(counts, list) and len(counts) == 2 and all(map(_is_count, counts))):
            _refuse(line["exact_by_kind"], kind, f"{place}: exact_by_kind", "[right, asked]")
    answers = line.get("answers") or []
    if not isinstance(answers, list):
        _refuse(line, "answers", place, "a list")
    for number, answer in enumerate(answers, 1):
        where = f"{place}: answers[{number}]"
        if not isinstance(answer, dict):
            raise UserError(f"{where}: expected an object, found {describe(answer)}")
        for name in ("question", "answer"):
            _text(answer, name, where)
        for name in ("kind", "expected"):
            _text(answer, name, where, None)
        if not isinstance(answer.get("exact"), bool | None):
            _refuse(answer, "exact", where, "true, false or null")


def _start(about: Any, place: str) -> dict[str, Any]:
    if not isinstance(about, dict):
        raise UserError(f"{place}: expected an object, found {describe(about)}")
    for name in ("id", "name", "stage", "command"):
        _text(about, name, place, None)
    _check_numbers(about, ("total_steps",), place)
    if started := _text(about, "started", place, None):
        try:
            datetime.fromisoformat(started).astimezone(UTC)
        except (ValueError, OverflowError):
            _refuse(about, "started", place, "a time such as 2026-05-01T10:00:00+00:00")
    for name in ("settings", "model", "machine", "versions"):
        _object(about, name, place)
    data = about.get("data") or []
    if not (isinstance(data, list) and all(isinstance(one, dict) for one in data)):
        _refuse(about, "data", place, "a list of objects")
    for number, one in enumerate(data, 1):
        _text(one, "name", f"{place}: data[{number}]")
        _check_numbers(one, COUNTS, f"{place}: data[{number}]")
    return about


def _object(line: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    value = line.get(name)
    if value is not None and not isinstance(value, dict):
        _refuse(line, name, place, "an object")
    return value or {}


def _text(line: dict[str, Any], name: str, place: str, default: Any = ...) -> Any:
    """Returns a field that must be text; one with a default may be missing or null."""
    value = line.get(name)
    if value is None and default is not ...:
        return default
    if not isinstance(value, str):
        _refuse(line, name, place, "text")
    return value


def _check_numbers(values: dict[str, Any], names: tuple[str, ...], place: str) -> None:
    for name in names:
        value = values.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not abs(value) < math.inf:
            _refuse(values, name, place, "a finite number")
        if abs(value) > (sys.float_info.max if name == "perplexity" else MAX_NUMBER):
            _refuse(values, name, place, "a number of float32")


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MAX_COUNT


def _refuse(values: dict[str, Any], name: str, place: str, expected: str) -> NoReturn:
    raise UserError(f"{place}: {name}: expected {expected}, found {_found(values, name)}")


def _found(values: dict[str, Any], name: str) -> str:
    return describe(values[name]) if name in values else "nothing"
