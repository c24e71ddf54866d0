"""Runs a logger beside training, so that nothing it does stops, slows or changes the run."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread

from minimind_sft.errors import first_line
from minimind_sft.training.loggers.logger import Logger

START_SECONDS = 10.0
"""How long a run waits for a logger before its first step. A logger that takes longer catches up later."""
FINISH_SECONDS = 60.0
"""How long a run waits at its end for a logger to send what is left."""
MAX_WAITING = 10_000
"""Calls that may wait for a slow logger."""


class BackgroundLogger:
    """Calls one logger from a thread of its own. A failure ends the logger and costs one line, which `notices` holds.

    Args:
        start: starts the logger, in the thread.
        hint: what to do if it cannot start; may be empty.
    """

    def __init__(self, name: str, start: Callable[[], Logger], hint: str):
        self.name, self.hint = name, hint
        self.notices: deque[str] = deque()
        """Lines for the user, in the order in which they came up."""
        self._failed = self._has_started = False
        self._waiting: Queue[Callable[[Logger], None] | None] = Queue(MAX_WAITING)
        self._go_on = Event()
        self._thread = Thread(target=self._run, args=(start,), name=f"{name} logger", daemon=True)
        self._thread.start()
        self._go_on.wait(START_SECONDS)

    def call(self, method: Callable[[Logger], None]) -> None:
        """Has `method` called with the logger, after the calls before."""
        self._put(method)

    def finish(self, exit_code: int) -> None:
        """Finishes the logger, and waits for it as long as is reasonable."""
        self._put(lambda logger: logger.finish(exit_code))
        self._put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._fail(f"not finished after {FINISH_SECONDS:.0f} seconds, so some of the log is missing there")

    def _put(self, method: Callable[[Logger], None] | None) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait(method)
        except Full:
            self._fail(f"{MAX_WAITING:,} calls wait for it")

    def _run(self, start: Callable[[], Logger]) -> None:
        try:
            logger = start()
            self._has_started = True
            self.notices.append(f"{self.name:<11} {logger.where}")
            self._go_on.set()
            self._serve(logger)
        except (Exception, SystemExit) as error:
            self._fail(first_line(error).removesuffix("."))
        finally:
            self._go_on.set()

    def _serve(self, logger: Logger) -> None:
        try:
            while not self._failed and (method := self._waiting.get()):
                method(logger)
        except (Exception, SystemExit):
            with suppress(Exception, SystemExit):
                logger.finish(1)  # or it may try once more when Python exits
            raise

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            hint = f"; {self.hint}" if self.hint and not self._has_started else ""
            self.notices.append(f"{self.name}: {reason}; the run goes on without it{hint}")
