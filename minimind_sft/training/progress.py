"""What a person sees of a training: the bar, the metrics file, Weights & Biases."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from minimind_sft.errors import UserError
from minimind_sft.files import write_atomically


class Progress:
    """The bar in the terminal (loss, supervised tokens/s, time left), the metrics file and, if asked, wandb.

    Ranks other than the main one show and write nothing.
    """

    def __init__(self, metrics_path: Path, *, total_steps: int, step: int, is_main: bool, wandb_run: Any = None):
        self.metrics_path, self.is_main, self.wandb_run = metrics_path, is_main, wandb_run
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=not is_main, dynamic_ncols=True,
                         bar_format="{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}{postfix} "
                                    "[{elapsed}<{remaining}]")
        self._tokens, self._seconds, self._rate = 0, 0.0, 0.0
        self._going_since = time.perf_counter()
        if is_main:
            with self._disk():
                cut_metrics(metrics_path, step)
                self._file = metrics_path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._bar.close()
        if self.is_main:
            with suppress(OSError):  # what could not be written has been told
                self._file.close()

    def advance(self, loss: float, supervised_tokens: int) -> None:
        """One step more on the bar."""
        now = time.perf_counter()
        self._tokens, self._seconds = self._tokens + supervised_tokens, self._seconds + now - self._going_since
        self._going_since = now
        if self._seconds > 1.0 or not self._rate:
            self._rate = self._tokens / max(self._seconds, 1e-9)
        if self._seconds > 1.0:
            self._tokens, self._seconds = 0, 0.0
        with suppress(OSError):  # nobody reads any more: no reason to end a training
            self._bar.set_postfix_str(f"loss {loss:.3f}, {self._rate:,.0f} supervised tokens/s", refresh=False)
            self._bar.update()

    def log(self, step: int, **values: float | str) -> None:
        """One line of the metrics file; the same to wandb."""
        if not self.is_main:
            return
        values = {name: None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN
                  for name, value in values.items()}
        line = {"step": step, **values, "supervised_tokens_per_second": round(self._rate, 1)}
        with self._disk():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self.wandb_run is not None:
            self.wandb_run.log(values, step=step)

    def sync(self) -> None:
        """Makes the lines so far survive a power cut, as the resume state that is written next will."""
        if self.is_main:
            with self._disk():
                os.fsync(self._file.fileno())

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.metrics_path}: cannot be written ({error.strerror})") from error

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.is_main:
            with suppress(OSError):
                self._bar.write(line)

    def pause(self) -> None:
        """The time since the last `advance` was not spent on training."""
        self._going_since = time.perf_counter()


def cut_metrics(path: Path, step: int) -> None:
    """Removes the lines past `step`, which the resumed run writes again; step 0 starts an empty file."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() and step > 0 else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the line that was being written when the run was killed
    write_atomically(path, lambda to: to.write_text("".join(kept), encoding="utf-8"))


def start_wandb(project: str, name: str, settings: dict) -> Any:
    """A Weights & Biases run; WANDB_MODE=offline keeps it on this machine."""
    import wandb  # a second to import: only for those who ask for it

    return wandb.init(project=project, name=name, config=settings)
