"""Shows a run's progress as a bar or plain lines, and passes the rate on to the metrics file."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from minimind_sft.terminal import fitted, width_of
from minimind_sft.training.metrics import Metrics

MAX_SECONDS_BETWEEN_LINES = 30.0
DEFAULT_WIDTH = 80


@dataclass(frozen=True)
class Effort:
    """The work this process has done; a resumed run has done more."""

    steps: int
    supervised_tokens: int
    training_seconds: float
    """Without evaluations and saves."""
    all_seconds: float


class Progress:
    """Shows a bar in a terminal, or plain lines in a log; writes the metrics file and, if asked, to wandb.

    Only the main rank shows and writes anything.

    Args:
        step: the step that the run starts at.
        log_interval: steps between two plain lines; if steps are slow, a line comes every half minute.
    """

    def __init__(self, metrics_path: Path, *, total_steps: int, step: int, is_main: bool, log_interval: int = 1,
                 wandb_run: Any = None):
        self.total_steps, self.log_interval, self.first_step, self.is_main = total_steps, log_interval, step, is_main
        self.tokens, self.seconds = 0, 0.0
        """Supervised tokens, and seconds of training without evaluations and saves, since this process started."""
        in_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        self._writes_lines = is_main and not in_terminal
        width = width_of(sys.stderr)
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=not (is_main and in_terminal),
                         ncols=bar_columns(width), bar_format=bar_format(width))
        self._recent_tokens, self._recent_seconds, self._rate, self._first_seconds = 0, 0.0, 0.0, 0.0
        self._started = self._going_since = self._line_at = time.perf_counter()
        self._metrics = Metrics(metrics_path, step, wandb_run) if is_main else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._bar.close()
        if self._metrics:
            self._metrics.close()

    def advance(self, step: int, loss: float, learning_rate: float, supervised_tokens: int) -> None:
        """Shows that `step` is done."""
        now = time.perf_counter()
        self._count(step, supervised_tokens, now - self._going_since)
        self._going_since = now
        if self._writes_lines and (step in (self.first_step + 1, self.total_steps) or step % self.log_interval == 0
                                   or now - self._line_at >= MAX_SECONDS_BETWEEN_LINES):
            self._line_at = now
            self.say(self._line(step, loss, learning_rate))
        with suppress(OSError):  # a closed terminal must not stop the run
            width = width_of(sys.stderr)
            self._bar.ncols, self._bar.bar_format = bar_columns(width), bar_format(width)
            self._bar.set_postfix_str(f"loss {loss:.3f}, {self._rate:,.0f} supervised tokens/s"
                                      if "{bar}" in self._bar.bar_format else f"loss {loss:.3f}", refresh=False)
            self._bar.update()

    def _count(self, step: int, tokens: int, seconds: float) -> None:
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self._recent_tokens, self._recent_seconds = self._recent_tokens + tokens, self._recent_seconds + seconds
        done = step - self.first_step
        if done == 1:
            self._first_seconds = seconds
        if self._recent_seconds > 1.0 or done <= 2:
            self._rate = self._recent_tokens / max(self._recent_seconds, 1e-9)
        if self._recent_seconds > 1.0 or done == 1:  # the first step sets up kernels and tells nothing of the others
            self._recent_tokens, self._recent_seconds = 0, 0.0

    def _line(self, step: int, loss: float, learning_rate: float) -> str:
        done = step - self.first_step
        seconds_a_step = (self.seconds - self._first_seconds) / (done - 1) if done > 1 else self.seconds
        left = seconds_a_step * (self.total_steps - step)
        return (f"{self.label(step)} loss {loss:.4f}, learning rate {learning_rate:.3g}, "
                f"{self._rate:,.0f} supervised tokens/s, {clock(left)} left")

    def label(self, step: int) -> str:
        return f"step {step:>6}/{self.total_steps}:"

    def log(self, step: int, **values: float | str) -> None:
        """Writes a line to the metrics file, and the same to wandb."""
        if self._metrics:
            self._metrics.write(step, values, self._rate)

    def sync(self) -> None:
        """Makes the metrics so far survive a power cut."""
        if self._metrics:
            self._metrics.sync()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self.is_main:
            with suppress(OSError):
                self._bar.write(fitted(line, sys.stdout))
                sys.stdout.flush()

    def effort(self, step: int) -> Effort:
        """Returns the work this process did to reach `step`."""
        return Effort(step - self.first_step, self.tokens, self.seconds, time.perf_counter() - self._started)

    def pause(self) -> None:
        """Leaves the time since the last `advance` out of the rate, because it was not spent on training."""
        self._going_since = time.perf_counter()


def bar_columns(width: int | None) -> int:
    """Leaves room for the ^C that a terminal writes behind the bar, which would otherwise break the line."""
    return (width or DEFAULT_WIDTH) - len("^C")


def bar_format(width: int | None) -> str:
    """Returns tqdm's format for a terminal of `width` columns: the narrower, the less it shows."""
    width = width or DEFAULT_WIDTH
    if width < 60:
        return "{percentage:3.0f}% {n_fmt}/{total_fmt}{postfix} [{remaining}]"
    if width < 100:
        return "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix} [{remaining}]"
    return "{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]"


def clock(seconds: float) -> str:
    """Formats seconds as 2:05, or as 1:02:05 with hours."""
    return tqdm.format_interval(seconds).removeprefix("0")
