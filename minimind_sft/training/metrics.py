"""The metrics file, one JSON object per line, and its copy at Weights & Biases."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError, first_line
from minimind_sft.files import write_atomically
from minimind_sft.settings.spec import as_typed
from minimind_sft.settings.training import TrainSettings
from minimind_sft.training.distributed import Ranks


class Metrics:
    """Appends lines to the metrics file and sends the same values to wandb.

    Args:
        step: the step that the run starts at; later lines of the file are removed.

    Raises:
        UserError: here and in `write` and `sync`, if the file cannot be written.
    """

    def __init__(self, path: Path, step: int, wandb_run: Any = None):
        self.path, self.wandb_run = path, wandb_run
        with self._disk():
            cut_metrics(path, step)
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes a line, and sends it to wandb unless it describes the run, which wandb knows already."""
        known = finite(values)
        with self._disk():
            self._file.write(json.dumps({"step": step, **known}, allow_nan=False) + "\n")
            self._file.flush()
        if self.wandb_run is not None and "run" not in known:
            self.wandb_run.log(known, step=step)

    def sync(self) -> None:
        """Makes the lines so far survive a power cut, like the resume state that is written next."""
        with self._disk():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # failed writes have been reported
            self._file.close()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None, also inside objects and lists: JSON has none of them."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict]:
    """Reads the lines of a metrics file; returns none if it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if line["step"] >= 0]
    return []


def cut_metrics(path: Path, step: int) -> None:
    """Removes the lines past `step`, which a resumed run writes again; step 0 starts with an empty file."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() and step > 0 else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # half a line, from when the run was killed
    write_atomically(path, lambda to: to.write_text("".join(kept), encoding="utf-8"))


def start_wandb(settings: TrainSettings, name: str, ranks: Ranks) -> Any:
    """Starts a Weights & Biases run on the main rank if the settings ask for one; returns None otherwise.

    WANDB_MODE=offline keeps it on this machine.

    Raises:
        UserError: if wandb is not installed, has no key, or cannot reach its server.
    """
    started = []  # a run cannot be sent to the other ranks, so it is not what `on_main` returns
    if settings.logging.use_wandb:
        ranks.on_main(lambda: started.append(_start_wandb(settings.logging.wandb_project, name, as_typed(settings))))
    return started[0] if started else None


def _start_wandb(project: str, name: str, settings: dict) -> Any:
    try:
        import wandb  # takes a second, so only on request
    except Exception as error:  # a broken installation raises anything
        raise UserError(f"--use_wandb: the package wandb cannot be imported ({first_line(error)}); pip install wandb, "
                        "or leave --use_wandb out") from error
    try:
        return wandb.init(project=project, name=name, config=settings)
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = first_line(error).removesuffix(".")
        raise UserError(f"--use_wandb: {reason}; with WANDB_MODE=offline in the environment the log stays on this "
                        "machine, and wandb sync sends it later") from error
