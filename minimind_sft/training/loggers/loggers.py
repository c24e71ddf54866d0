"""Sends the lines of the metrics file to the loggers that a run asks for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.settings.spec import as_typed
from minimind_sft.settings.training import TrainSettings
from minimind_sft.training.loggers.background import BackgroundLogger
from minimind_sft.training.loggers.logger import LoggedRun, Logger
from minimind_sft.training.loggers.to_swanlab import SwanLabLogger
from minimind_sft.training.loggers.to_tensorboard import TensorBoardLogger
from minimind_sft.training.loggers.to_wandb import WandbLogger

TEXTS = ("warning", "skipped")
"""Fields of a metrics line that are sentences. They go into a table of warnings."""


class Program(NamedTuple):
    """How a logger starts, and what helps if it fails."""

    start: Callable[[LoggedRun], Logger]
    hint: str


PROGRAMS = {
    "wandb": Program(WandbLogger, "WANDB_MODE=offline in the environment keeps the log on this machine, and wandb "
                                  "sync sends it later"),
    "swanlab": Program(SwanLabLogger, "SWANLAB_MODE=offline in the environment keeps the log on this machine, and "
                                      "swanlab sync sends it later"),
    "tensorboard": Program(TensorBoardLogger, ""),
}


class Loggers:
    """The loggers of one run, or none."""

    def __init__(self, running: Sequence[BackgroundLogger] = ()):
        self._running = running
        self._finished = False

    def send(self, line: Mapping[str, Any]) -> None:
        """Sends a line of the metrics file: its numbers, its answers as a table, its warnings."""
        if not self._running or "run" in line:  # loggers have the settings, and see the machine by themselves
            return
        step, numbers = line["step"], dict(_numbers_of(line))
        tables = {"answers": line.get("answers"), "warnings": [{"warning": line[name]} for name in TEXTS
                                                               if name in line]}
        for logger in self._running:
            if numbers:
                logger.call(lambda to: to.log(step, numbers))
            for name, rows in tables.items():
                if rows:
                    logger.call(partial(_log_table, step=step, name=name, rows=rows))

    def notices(self) -> Iterator[str]:
        """Yields the lines for the user that came up since the last call."""
        for logger in self._running:
            while logger.notices:
                yield logger.notices.popleft()

    def finish(self, exit_code: int) -> None:
        """Finishes all loggers; later calls do nothing."""
        if not self._finished:
            self._finished = True
            for logger in self._running:
                logger.finish(exit_code)


def start_loggers(settings: TrainSettings, name: str, run: str | None, first_step: int, is_main: bool) -> Loggers:
    """Starts the loggers that the settings name, on the main rank.

    Args:
        name: of the run, for people.
        run: its id.
    """
    if not is_main:
        return Loggers()
    logged = LoggedRun(name, run, settings.logging.wandb_project, Path(settings.saving.save_dir).resolve(), first_step,
                       as_typed(settings))
    return Loggers([BackgroundLogger(one, partial(PROGRAMS[one].start, logged), PROGRAMS[one].hint)
                    for one in settings.logging.programs])


def _log_table(to: Logger, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    to.log_table(step, name, rows)


def _numbers_of(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the finite numbers of a metrics line; those of a source or kind have its name between slashes."""
    for name, value in line.items():
        if name in ("step", "answers"):
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers_of(value))
        elif name != "warning" and _is_share(value):
            yield name, value[0] / value[1]
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, value


def _is_share(value: Any) -> bool:
    """Whether a value is how many answers were right, and of how many."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2 and value[1] > 0
