"""What interrupts a training: signals, a worker process that dies, and the clock by which a resume state is due."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from minimind_sft.errors import ProcessLost

ONE_SIGNAL_SECONDS = 0.25


class Stop:
    """The first SIGINT (Ctrl-C) or SIGTERM that this process got, and when; the loop looks after each step."""

    signum = 0
    at = 0.0


@contextmanager
def stop_on_signals(passed_on: bool = False) -> Iterator[Stop]:
    """The first SIGINT or SIGTERM lets the step in hand finish and be saved; a second one ends the process at once.

    `passed_on` says that this process may get one signal twice, as torchrun passes on to its ranks what a scheduler
    has sent to all processes: what comes within `ONE_SIGNAL_SECONDS` of the first still is the first.
    """
    stop, previous = Stop(), {}

    def handle(signum: int, _: object) -> None:
        if not stop.signum:
            stop.signum, stop.at = signum, time.monotonic()
        elif not passed_on or time.monotonic() - stop.at >= ONE_SIGNAL_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        previous[signum] = signal.signal(signum, handle)
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """In a loader's worker process: a signal to the whole job must not take the batches away from the last step."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def workers_are_alive() -> Iterator[None]:
    """
    Raises:
        ProcessLost: if a loader's worker process dies, wherever the training is at that moment.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ProcessLost(f"a worker process of the loader died ({str(error).splitlines()[0]})") from error


class SaveClock:
    """When the next resume state is due: after `interval` steps, or by the clock if that is 0.

    By the clock: when training took `OFTEN` times as long as writing a state does, so that saving costs at most
    1/`OFTEN` of the time, but not before `LEAST_SECONDS`.
    """

    OFTEN, LEAST_SECONDS = 30, 10.0

    def __init__(self, interval: int):
        self.interval = interval
        self._saved_at, self._seconds = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        if self.interval:
            return step % self.interval == 0
        return time.monotonic() - self._saved_at >= max(self.OFTEN * self._seconds, self.LEAST_SECONDS)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Surrounds the writing of a state."""
        start = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - start
