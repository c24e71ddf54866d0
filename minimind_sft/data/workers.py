"""Works on many rows in parallel, on all cores, with results in the order of the rows."""

import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar, cast

from minimind_sft.data.lines import RawRow
from minimind_sft.data.row_size import row_bytes
from minimind_sft.errors import ProcessLost
from minimind_sft.processes import forks, signals_wait, take_signals, usable_cores, worker_context

T = TypeVar("T")

CHUNK_ROWS, CHUNK_BYTES = 1000, 2**18
MAX_WORKERS, MAX_SPAWNED = 32, 8
"""A spawned worker imports everything again, which takes seconds and some hundred MiB."""
MAX_AHEAD_BYTES = 32 * 2**20
"""Rows that are worked on, or wait with their results for a slower chunk; a single chunk may be larger."""
CTRL_C = (signal.SIGINT,)


class Chunk(NamedTuple):
    """Some rows and about how many bytes they take."""

    rows: list[RawRow]
    size: int


def in_chunks(rows: Iterable[RawRow]) -> Iterator[Chunk]:
    """Yields chunks of at most `CHUNK_ROWS` rows and little more than `CHUNK_BYTES` of text."""
    chunk: list[RawRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row_bytes(row)
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield Chunk(chunk, size)
            chunk, size = [], 0
    if chunk:
        yield Chunk(chunk, size)


def map_chunks(work: Callable[[list[RawRow]], T], rows: Iterable[RawRow]) -> Iterator[tuple[list[RawRow], T]]:
    """Yields `(chunk, work(chunk))` for every chunk of the rows, in order, computed in worker processes.

    A few chunks are computed in this process, which is faster than starting others. Each worker has one chunk at a
    time, and few results wait for their turn, so files of any size need little memory.

    Args:
        work: picklable, as it is sent to each worker where processes cannot be forked (see `worker_context`).

    Raises:
        ProcessLost: if a worker dies.
    """
    chunks = in_chunks(rows)
    workers = min(usable_cores(), MAX_WORKERS if forks() else MAX_SPAWNED)
    first: list[Chunk] = []
    while (is_small := len(first) < 4 * workers and sum(chunk.size for chunk in first) < 4 * workers * CHUNK_BYTES
           ) and (chunk := next(chunks, None)) is not None:
        first.append(chunk)
    chunks = chain(first, chunks)
    del first
    if workers == 1 or is_small:
        yield from ((chunk.rows, work(chunk.rows)) for chunk in chunks)
        return
    with closing(_Workers(work, workers)) as pool:
        yield from pool.map(chunks)


class _Workers:
    """Worker processes, each at the end of a pipe.

    A worker ends when its pipe closes, so none outlives this process, however that ends. The pools of multiprocessing
    would wait forever then.
    """

    def __init__(self, work: Callable, count: int):
        context = worker_context()
        self._pipes: list[Connection] = []
        self._processes = []
        try:
            with signals_wait(CTRL_C):
                for _ in range(count):
                    here, there = context.Pipe()
                    self._pipes.append(here)
                    inherited = list(self._pipes) if forks() else []
                    process = context.Process(target=_serve, args=(work, there, inherited), daemon=True)
                    process.start()
                    self._processes.append(process)
                    there.close()
        except BaseException:
            self.close()
            raise

    def map(self, chunks: Iterator[Chunk]) -> Iterator[tuple[list[RawRow], Any]]:
        """Yields the rows of each chunk and the result of their work, in order.

        Raises:
            ProcessLost: if a worker dies.
            Exception: whatever the work raised in a worker.
        """
        idle, busy = list(self._pipes), {}
        done: dict[int, tuple[Chunk, Any]] = {}
        given = taken = waiting = 0
        ahead = 4 * len(self._pipes)  # finished chunks that may wait in memory for a slow one
        while True:
            while (idle and given - taken < ahead and waiting < MAX_AHEAD_BYTES
                   and (chunk := next(chunks, None)) is not None):
                pipe = idle.pop()
                busy[pipe] = (given, chunk)
                given, waiting = given + 1, waiting + chunk.size
                self._talk(pipe.send, chunk.rows)
            if not busy:
                return
            for pipe in cast(list[Connection], connection.wait(list(busy))):
                result = self._talk(pipe.recv)
                number, chunk = busy.pop(pipe)
                idle.append(pipe)
                if isinstance(result, Exception):
                    raise result
                done[number] = (chunk, result)
            while taken in done:
                chunk, result = done.pop(taken)
                taken, waiting = taken + 1, waiting - chunk.size
                yield chunk.rows, result

    def _talk(self, send_or_receive: Callable, *message: object) -> object:
        try:
            return send_or_receive(*message)
        except (EOFError, OSError) as error:
            raise ProcessLost("a process that prepares the data died (killed for lack of memory?)") from error

    def close(self) -> None:
        """Ends all workers, whatever they are doing."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()  # it has nothing to lose, and may be suspended
            process.join()


def _serve(work: Callable, pipe: Connection, inherited: list[Connection]) -> None:
    for other in inherited:  # inherited ends would keep the other workers' pipes open
        other.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    take_signals(CTRL_C)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process already
    gc.freeze()  # collecting among inherited objects and short-lived rows would take a tenth of the time
    gc.set_threshold(100_000)
    with suppress(EOFError, OSError):
        while True:
            chunk = pipe.recv()
            try:
                result = work(chunk)
            except Exception as error:  # raised again in the caller
                result = error
            pipe.send(result)
