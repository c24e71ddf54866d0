"""The interface behind which each logger stands, and what it learns about a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LoggedRun:
    """A run as its loggers see it.

    id: equal for the parts of a resumed run; None for a run that an early version of this project began.
    folder: where loggers may write.
    first_step: the step that the run starts at, or resumes from.
    settings: as typed, by the names of their flags.
    """

    name: str
    id: str | None
    project: str
    folder: Path
    first_step: int
    settings: Mapping[str, Any]


class Logger(Protocol):
    """Shows the numbers of one run. Any method may raise anything; the caller copes with it.

    where: tells a person where to see the log.
    """

    where: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows finite numbers; a slash in a name divides group and name."""

    def log_table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows a table as it was at a step; all rows have the same columns."""

    def finish(self, exit_code: int) -> None:
        """Sends what is left; 0 means that the run reached its end."""


def quiet_logging() -> None:
    """Keeps Python's logging from printing a traceback for each line that does not fit on a full disk.

    That is logging's own switch for programs in use. wandb and SwanLab write log files of their own through it.
    """
    logging.raiseExceptions = False
