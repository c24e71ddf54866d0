"""Runs the engines in a thread of their own and hands their tokens to the event loop."""

import asyncio
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

from minimind_sft.errors import UserError
from minimind_sft.inference.engine import Engine, Request, Token
from minimind_sft.terminal import counted, say

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1, 60
FAILED = "the engine failed; the server's terminal shows why"
FORGETTING = 0.9
"""The weight of what was known before, in the mean duration of answers."""


class QueueFull(Exception):
    """So many requests wait already that this one has to come again later.

    retry_after: when a place is likely to be free, in seconds.
    """

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """The server takes no requests any more, because it is about to end."""


class News(NamedTuple):
    """New tokens of one of the answers, which has ended if `ended` says so."""

    choice: int
    tokens: list[Token]
    ended: bool


Reason = Literal["left", "late", "stopping"]
"""Why answers are broken off: the client has left, they took too long, or the server ends."""


class Submission:
    """The requests that one client has made together. Lives in the event loop.

    accepted: why the engine does not take them, once that is known; None: it does.
    began: when it was made, on the monotonic clock.
    broken_off: why its answers were broken off; None if they were not.
    """

    def __init__(self, requests: Sequence[Request], cancel: Callable[[Sequence[Request]], None], seconds: float):
        loop = asyncio.get_running_loop()
        self.requests = tuple(requests)
        self.accepted: asyncio.Future[Exception | None] = loop.create_future()
        self.began = time.monotonic()
        self.broken_off: Reason | None = None
        self._index = {request: index for index, request in enumerate(requests)}
        self._cancel = cancel
        self._tokens: list[list[Token]] = [[] for _ in requests]
        self._ended: set[int] = set()
        self._changed = asyncio.Event()
        self._timer = loop.call_later(seconds, self.break_off, "late")

    def cancel(self, index: int) -> None:
        """Ends one of the answers, if it goes on; the engine is free of it before its next step."""
        if index not in self._ended:
            self._cancel([self.requests[index]])

    def break_off(self, reason: Reason) -> None:
        """Ends all answers that go on."""
        if self.broken_off is None and len(self._ended) < len(self.requests):
            self.broken_off = reason
            self._cancel(self.requests)

    def accept(self, refused: Exception | None) -> None:
        """Takes note of whether the engine takes the requests. Those that it refuses need no clock."""
        if refused is not None:
            self._timer.cancel()
        if not self.accepted.done():
            self.accepted.set_result(refused)

    async def news(self) -> AsyncIterator[News]:
        """Yields new tokens as they come, until all requests have ended; tokens that nobody took yet come together."""
        going = set(range(len(self.requests)))
        while going:
            await self._changed.wait()
            self._changed.clear()
            for index in sorted(going):
                tokens, self._tokens[index] = self._tokens[index], []
                ended = index in self._ended
                if ended:
                    going.discard(index)
                if tokens or ended:
                    yield News(index, tokens, ended)

    def receive(self, request: Request, tokens: Sequence[Token], ended: bool) -> None:
        """Takes what the engine has computed."""
        index = self._index[request]
        self._tokens[index] += tokens
        if ended:
            self._ended.add(index)
            if len(self._ended) == len(self.requests):
                self._timer.cancel()
        self._changed.set()


class Worker:
    """Steps the engines in turn, in one thread. Everything but the thread itself belongs to the event loop.

    is_draining: whether it takes no more requests, because the server is about to end.

    Args:
        max_waiting: requests that may wait for each engine, besides those that it answers.
        seconds: time that an answer may take, the wait for its turn included.
    """

    def __init__(self, engines: Sequence[Engine], max_waiting: int, seconds: float):
        self._engines, self._max_waiting, self._max_seconds = list(engines), max_waiting, seconds
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open = dict.fromkeys(engines, 0)
        self._owners: dict[Request, tuple[Submission, Engine]] = {}
        self._in_engine: dict[Engine, set[Request]] = {engine: set() for engine in engines}
        self._mean_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self.is_draining = self._has_failed = False

    def start(self) -> None:
        """Starts the thread; its tokens go to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, and will go on."""
        return self._thread.is_alive() and not self._has_failed

    @property
    def open(self) -> int:
        """The number of requests that are answered or wait."""
        return len(self._owners)

    async def submit(self, engine: Engine, requests: Sequence[Request]) -> Submission:
        """Puts requests into the engine's queue, all of them or none.

        Raises:
            QueueFull, Stopping: if the server takes no more requests now.
            UserError: if the engine can never answer all of them; any other error of the engine as well.
        """
        self._check_room(engine, len(requests))
        submission = Submission(requests, self._cancel, self._max_seconds)
        self._open[engine] += len(requests)
        self._owners |= dict.fromkeys(requests, (submission, engine))
        self._inbox.put(lambda: self._add(engine, submission))
        try:
            refused = await asyncio.shield(submission.accepted)
        except asyncio.CancelledError:  # the client has left meanwhile
            submission.break_off("left")
            raise
        if refused is not None:
            raise refused
        return submission

    @contextmanager
    def reserved(self, engine: Engine, count: int) -> Iterator[None]:
        """Keeps places in the engine's queue for requests that are being made.

        Raises:
            QueueFull, Stopping: if the server takes no more requests now.
            UserError: if it never takes so many.
        """
        self._check_room(engine, count)
        self._open[engine] += count
        try:
            yield
        finally:
            self._open[engine] -= count

    def _check_room(self, engine: Engine, count: int) -> None:
        if self.is_draining:
            raise Stopping("the server is about to end")
        room = engine.max_running + self._max_waiting
        if count > room:
            raise UserError(f"expected at most {counted(room, 'answer')} to one request (--max_running and "
                            f"--max_waiting), found {count}")
        if self._open[engine] + count > room:
            raise QueueFull(self._retry_after(engine))

    def break_off_all(self) -> None:
        """Ends all answers, because the server ends."""
        for submission in {submission for submission, _ in self._owners.values()}:
            submission.break_off("stopping")

    def stop(self) -> None:
        """Ends the thread, after the step that it is in."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _retry_after(self, engine: Engine) -> int:
        """Estimates when a place will be free, from how long answers took."""
        rounds = self._open[engine] / engine.max_running
        return round(min(max(rounds * self._mean_seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS))

    def _cancel(self, requests: Sequence[Request]) -> None:
        going = [(request, self._owners[request][1]) for request in requests if request in self._owners]

        def cancel() -> None:
            for request, engine in going:
                engine.cancel(request)
            self._hand_over([(request, []) for request, _ in going])

        self._inbox.put(cancel)

    def _accept(self, submission: Submission, refused: Exception | None) -> None:
        """Tells who waits for it whether the engine takes the requests; runs in the event loop."""
        if refused is not None:
            self._forget(submission.requests)
        submission.accept(refused)

    def _forget(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request in self._owners:
                _, engine = self._owners.pop(request)
                self._open[engine] -= 1

    def _receive(self, results: Sequence[tuple[Request, Sequence[Token], bool]]) -> None:
        """Gives every client its tokens; runs in the event loop."""
        for request, tokens, ended in results:
            if request not in self._owners:
                continue
            submission, _ = self._owners[request]
            submission.receive(request, tokens, ended)
            if ended:
                seconds = time.monotonic() - submission.began
                self._mean_seconds = FORGETTING * self._mean_seconds + (1 - FORGETTING) * seconds
                self._forget([request])

    def _fail_all(self) -> None:
        """Ends all requests, because nobody will answer them."""
        self.is_draining = self._has_failed = True
        for request, (submission, _) in list(self._owners.items()):
            submission.accept(None)
            request.finish, request.problem = "error", FAILED
            self._receive([(request, [], True)])

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            say(f"error: the thread of the engines failed\n{_trace(error)}", sys.stderr)
            self._tell(self._fail_all)

    def _serve(self) -> None:
        while True:
            busy = [engine for engine in self._engines if engine.waiting or engine.running]
            try:
                while (task := self._inbox.get(block=not busy)) is not None:
                    task()
                    busy = [engine for engine in self._engines if engine.waiting or engine.running]
                return
            except queue.Empty:
                pass
            for engine in busy:
                self._step(engine)

    def _step(self, engine: Engine) -> None:
        try:
            results = list(engine.step().items())
        except Exception as error:
            results = self._failed(engine, error)
        self._hand_over(results)

    def _failed(self, engine: Engine, error: Exception) -> list[tuple[Request, list[Token]]]:
        """Ends all requests of an engine that failed, so that no client waits for an answer that never comes."""
        say(f"error: a step of the engine failed; its requests end here\n{_trace(error)}", sys.stderr)
        lost = [request for request in self._in_engine[engine] if request.finish is None]
        for request in lost:
            engine.cancel(request)
            request.finish, request.problem = "error", FAILED
        return [(request, []) for request in lost]

    def _add(self, engine: Engine, submission: Submission) -> None:
        refused = None
        try:
            for request in submission.requests:
                engine.add(request)
        except Exception as error:  # a mistake of ours must not end the thread and with it all other answers
            refused = error
            for request in submission.requests:
                engine.cancel(request)
        else:
            self._in_engine[engine].update(submission.requests)
        self._tell(self._accept, submission, refused)

    def _hand_over(self, results: Sequence[tuple[Request, list[Token]]]) -> None:
        """Gives results to the event loop, with whether each request has ended by now."""
        if results:
            for requests in self._in_engine.values():
                requests.difference_update([request for request, _ in results if request.finish is not None])
            told = [(request, tokens, request.finish is not None) for request, tokens in results]
            self._tell(self._receive, told)

    def _tell(self, function: Callable[..., None], *values: Any) -> None:
        """Calls a function in the event loop, unless that has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *values)


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
