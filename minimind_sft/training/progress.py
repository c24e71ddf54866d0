"""Shows a run's progress as a bar or plain lines, times it, and writes the metrics file."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from minimind_sft.errors import UserError
from minimind_sft.terminal import progress_bar, say, width_of
from minimind_sft.training.loggers.loggers import Loggers
from minimind_sft.training.metrics import Metrics, read_metrics
from minimind_sft.training.peak import Work
from minimind_sft.training.watch import LoggedStep, RunWarning, Watcher

T = TypeVar("T")
Activity = Literal["data", "step", "eval", "save"]
Pause = Literal["eval", "save"]
SHOWN: dict[Pause, str] = {"eval": "evaluating", "save": "saving"}
End = Literal["finished", "stopped early", "interrupted", "failed"]

MAX_SECONDS_BETWEEN_LINES = 30.0
DEFAULT_WIDTH = 80


@dataclass(frozen=True)
class Rate:
    """The speed of the steps of about the last second.

    tokens, supervised_tokens: per second.
    peak_share: of the device's matmul peak; None if unknown.
    """

    tokens: float = 0.0
    supervised_tokens: float = 0.0
    peak_share: float | None = None


@dataclass(frozen=True)
class Effort:
    """The work this process has done; a resumed run has done more."""

    steps: int
    supervised_tokens: int
    training_seconds: float
    """Without evaluations and saves."""
    all_seconds: float
    """With them, but without the loggers' last messages."""


class Progress:
    """Shows a bar in a terminal, or plain lines in a log; writes the metrics file, and with it to the loggers.

    Only the main rank shows and writes anything.

    Args:
        step: the step that the run starts at.
        log_interval: steps between two plain lines; if steps are slow, a line comes every half minute.
        watcher: warns of what the metrics show; sees those from before the run was resumed first.
    """

    def __init__(self, metrics_path: Path, *, total_steps: int, step: int, is_main: bool, log_interval: int = 1,
                 watcher: Watcher | None = None, loggers: Loggers | None = None):
        self.total_steps, self.log_interval, self.first_step, self.is_main = total_steps, log_interval, step, is_main
        self.supervised_tokens = 0
        self.spent: dict[Activity, float] = {"data": 0.0, "step": 0.0, "eval": 0.0, "save": 0.0}
        """The seconds that this process has spent on each activity."""
        self.rate = Rate()
        in_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        self._writes_lines = is_main and not in_terminal
        width = width_of(sys.stderr)
        self._bar = progress_bar(label="", total=total_steps, initial=step, unit="step", leave=True,
                                 disable=not (is_main and in_terminal), ncols=bar_columns(width),
                                 bar_format=bar_format(width))
        self._behind_bar = ""
        self._recent, self._recent_seconds, self._first_seconds, self._counted = Work(), 0.0, 0.0, 0.0
        self._step, self._end = step, ""
        self._started = self._spent_until = self._line_at = time.perf_counter()
        self._loggers = loggers or Loggers()
        self._metrics = Metrics(metrics_path, step, self._loggers) if is_main else None
        self._watcher = watcher if is_main else None
        if self._watcher:
            for line in read_metrics(metrics_path):
                self._watcher.see(line)
        self._say_notices()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError):
            self._bar.close()
        if kind is not None:
            self._end = "failed" if issubclass(kind, Exception) else "interrupted"
        if self._end:
            with suppress(UserError):  # a full disk has been reported, or does not matter any more
                self.log(self._step, end=self._end, seconds=round(time.perf_counter() - self._started, 3))
        if self._metrics:
            self._metrics.close()
        self._loggers.finish(int(self._end in ("interrupted", "failed")))
        self._say_notices()

    def end(self, how: End) -> None:
        """Notes how the run ends, for the last line of the metrics file."""
        self._end = how

    @contextmanager
    def doing(self, pause: Pause) -> Iterator[None]:
        """Counts the time of the block as spent on `pause`, not on training, and says behind the bar what it is."""
        self._spend("step")
        self._write_behind_bar(SHOWN[pause])
        yield
        self._write_behind_bar(self._behind_bar)
        self._spend(pause)

    def _write_behind_bar(self, text: str) -> None:
        with suppress(OSError):  # a closed terminal must not stop the run
            self._bar.set_postfix_str(text)

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; counts the time until each is there as spent on data."""
        batches = iter(batches)
        while True:
            self._spend("step")
            batch = next(batches, None)
            self._spend("data")
            if batch is None:
                return
            yield batch

    def _spend(self, activity: Activity) -> None:
        """Counts the time since the last call as spent on `activity`."""
        now = time.perf_counter()
        self.spent[activity] += now - self._spent_until
        self._spent_until = now

    @property
    def training_seconds(self) -> float:
        """The seconds that this process has trained, without evaluations and saves."""
        return self.spent["data"] + self.spent["step"]

    def advance(self, step: int, loss: float, learning_rate: float, work: Work) -> None:
        """Shows that `step` is done, which was this much work."""
        before, now = self._counted, time.perf_counter()
        self._spend("step")
        self._counted = self.training_seconds
        self._count(step, work, self._counted - before)
        if self._writes_lines and (step in (self.first_step + 1, self.total_steps) or step % self.log_interval == 0
                                   or now - self._line_at >= MAX_SECONDS_BETWEEN_LINES):
            self._line_at = now
            self.say(self._line(step, loss, learning_rate))
        with suppress(OSError):  # a closed terminal must not stop the run
            width = width_of(sys.stderr)
            self._bar.ncols, self._bar.bar_format = bar_columns(width), bar_format(width)
            self._behind_bar = (f"loss {loss:.3f}, {self.rate.supervised_tokens:,.0f} supervised tokens/s"
                                if "{bar}" in self._bar.bar_format else f"loss {loss:.3f}")
            self._bar.set_postfix_str(self._behind_bar, refresh=False)
            self._bar.update()

    def _count(self, step: int, work: Work, seconds: float) -> None:
        self._step, self.supervised_tokens = step, self.supervised_tokens + work.supervised_tokens
        self._recent, self._recent_seconds = self._recent + work, self._recent_seconds + seconds
        done = step - self.first_step
        if done == 1:
            self._first_seconds = seconds
        if self._recent_seconds > 1.0 or done <= 2:
            self.rate = rate_of(self._recent, max(self._recent_seconds, 1e-9))
        if self._recent_seconds > 1.0 or done == 1:  # the first step sets up kernels and tells nothing of the others
            self._recent, self._recent_seconds = Work(), 0.0

    def performance(self) -> dict[str, float | None]:
        """Returns the speed, and the seconds spent on each activity, as the metrics file has them."""
        rate = self.rate
        return {"supervised_tokens_per_second": round(rate.supervised_tokens, 1),
                "tokens_per_second": round(rate.tokens, 1),
                "peak_share": None if rate.peak_share is None else round(rate.peak_share, 4),
                **{f"{activity}_seconds": round(seconds, 3) for activity, seconds in self.spent.items()}}

    def _line(self, step: int, loss: float, learning_rate: float) -> str:
        done = step - self.first_step
        seconds = self.training_seconds
        seconds_a_step = (seconds - self._first_seconds) / (done - 1) if done > 1 else seconds
        left = seconds_a_step * (self.total_steps - step)
        return (f"{self.label(step)} loss {loss:.4f}, learning rate {learning_rate:.3g}, "
                f"{self.rate.supervised_tokens:,.0f} supervised tokens/s, {clock(left)} left")

    def label(self, step: int) -> str:
        return f"step {step:>6}/{self.total_steps}:"

    def log(self, step: int, **values: Any) -> None:
        """Writes a line to the metrics file and to the loggers, and gives the warnings that follow from it."""
        if self._metrics:
            line = self._metrics.write(step, values)
            if self._watcher:
                self.warn(step, *self._watcher.see(line))
        self._say_notices()

    def warn(self, step: int, *warnings: RunWarning) -> None:
        """Shows warnings, and writes those that the metrics file does not have yet."""
        for warning in warnings:
            self.say(f"{'warning':<12}{warning.text}")
            if self._metrics and not (self._watcher and self._watcher.has_given(warning)):
                self._metrics.write(step, {"warning": warning.text, "name": warning.name})

    def stands_out(self, step: LoggedStep) -> bool:
        """Whether loss or gradient norm of a step is worth a warning, so that the step belongs in the metrics."""
        return self._watcher is not None and bool(self._watcher.spikes(step))

    def _say_notices(self) -> None:
        for line in self._loggers.notices():
            self.say(line)

    def sync(self) -> None:
        """Makes the metrics so far survive a power cut."""
        if self._metrics:
            self._metrics.sync()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self.is_main:
            with suppress(OSError):
                say(line)

    def effort(self, step: int) -> Effort:
        """Returns the work this process did to reach `step`."""
        return Effort(step - self.first_step, self.supervised_tokens, self.training_seconds, sum(self.spent.values()))


def rate_of(work: Work, seconds: float) -> Rate:
    """Returns the speed at which some work was done in `seconds`."""
    share = None if work.peak_seconds is None else work.peak_seconds / seconds
    return Rate(work.tokens / seconds, work.supervised_tokens / seconds, share)


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
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
