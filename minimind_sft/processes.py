"""Starts worker processes as this system allows, and controls when signals reach them."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkContext, SpawnContext

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
                     if hasattr(signal, name))
"""Signals that ask a program to stop: Ctrl-C, a scheduler, a closed terminal (SIGHUP; SIGBREAK on Windows)."""


def usable_cores() -> int:
    """Returns how many cores this process may use; all of them on macOS and Windows, which do not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forks() -> bool:
    """Tells whether workers are forked and inherit tokenizer and data, or are spawned and receive them.

    Windows cannot fork. macOS can, but Apple's libraries, which PyTorch uses, may crash or hang in a forked process.
    """
    return "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"


def worker_context() -> "ForkContext | SpawnContext":
    """Returns how workers start, named explicitly because Python's own choice depends on its version."""
    return multiprocessing.get_context("fork") if forks() else multiprocessing.get_context("spawn")


@contextmanager
def signals_wait(signums: Iterable[int] = STOP_SIGNALS) -> Iterator[None]:
    """Blocks signals in this process, and in processes started in the block until they call `take_signals`.

    A worker that has just started has no handlers yet. Windows cannot block signals.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def take_signals(signums: Iterable[int] = STOP_SIGNALS) -> None:
    """Unblocks in a worker the signals that `signals_wait` blocked in its parent."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)
