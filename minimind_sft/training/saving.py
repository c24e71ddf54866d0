"""Decides when a run writes its weights and resume states, and in which order."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.learner import Learner
from minimind_sft.training.resume_state import TrainState


class Saver:
    """Writes the weights for use and the resume states of one run.

    With `keeps_best` the weights on disk are the best ones (`--best_by`), and the last ones only until there are some;
    without, they are written again with every resume state.

    Args:
        write_weights: writes the weights as they are now, described by the state that it is given.
        interval: steps between two resume states; 0: by the clock, see `SaveClock`.
    """

    def __init__(self, checkpoints: Checkpoints, write_weights: Callable[[TrainState], None], *, interval: int,
                 keeps_best: bool):
        self.checkpoints, self.keeps_best = checkpoints, keeps_best
        self._write_weights, self._clock = write_weights, SaveClock(interval)

    def is_due(self, step: int) -> bool:
        """Whether to write a resume state after `step`. The clock of each rank is its own."""
        return self._clock.is_due(step)

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes a resume state in the background."""
        return self.checkpoints.is_writing

    def advance(self) -> None:
        """Continues a resume state that is written in the background; called when no rank `is_writing`."""
        if self.checkpoints.advance():
            self._clock.end(self.checkpoints.thread_seconds)

    def found_best(self, state: TrainState) -> None:
        """Writes the weights that were just found to be the best."""
        if self.keeps_best:
            self._write_weights(state)

    def save(self, state: TrainState, learner: Learner, wait: bool = True) -> None:
        """Writes the weights, unless better ones are on disk, and then the resume state, which refers to them.

        Without `wait`, training continues while the resume state is written.
        """
        with self._clock.saving():
            if not self.keeps_best:
                state.best_eval_loss = None  # its weights are about to be replaced
            if state.best_eval_loss is None:
                self._write_weights(state)
            self.checkpoints.save(state, learner.model, learner.optimizer, learner.scaler, wait)
        if wait:
            self._clock.end()


class SaveClock:
    """Tells when the next resume state is due: every `interval` steps, or by the clock if that is 0.

    By the clock, a state is due once training has taken `RATIO` times as long as writing the last one did, so that
    saving costs at most about 1/`RATIO` of the time, and never sooner than after `MIN_SECONDS`. Writing in the
    background counts in full, because it shares the machine with training.
    """

    RATIO, MIN_SECONDS = 30, 10.0

    def __init__(self, interval: int):
        self.interval = interval
        self._ended, self._seconds = time.monotonic(), 0.0
        self._is_unfinished = False

    def is_due(self, step: int) -> bool:
        """Whether the next resume state is due after `step`."""
        if self.interval:
            return step % self.interval == 0
        return not self._is_unfinished and time.monotonic() - self._ended >= max(
            self.RATIO * self._seconds, self.MIN_SECONDS)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Times the part of writing a state that training waits for; `end` must follow."""
        start = time.monotonic()
        self._is_unfinished = True
        yield
        self._seconds = time.monotonic() - start

    def end(self, in_background: float = 0.0) -> None:
        """Notes that the state is complete, and how many seconds of work it took while training continued."""
        self._ended, self._is_unfinished = time.monotonic(), False
        self._seconds += in_background
