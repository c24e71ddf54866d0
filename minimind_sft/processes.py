"""How worker processes start on this system, and how signals reach them."""

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
"""Signals that ask a program to stop: Ctrl-C, a scheduler, a closed terminal (SIGHUP, on Windows SIGBREAK)."""


def usable_cores() -> int:
    """The cores that this process may use; where the system does not say (macOS, Windows), all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forks() -> bool:
    """Whether workers are forked, and inherit tokenizer and data, or spawned, and are sent them.

    Windows cannot fork. macOS can, but Apple's libraries, which PyTorch calls there, may crash or hang in a forked
    process.
    """
    return "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"


def worker_context() -> "ForkContext | SpawnContext":
    """Chooses how workers start; named here, because Python's own choice changes with its version."""
    return multiprocessing.get_context("fork") if forks() else multiprocessing.get_context("spawn")


@contextmanager
def signals_wait(signums: Iterable[int] = STOP_SIGNALS) -> Iterator[None]:
    """Holds signals back from this process, and from those that it starts in the block until `take_signals`.

    A worker that has only just been started has no handlers yet. Windows cannot hold signals back.
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
    """Ends in a worker what `signals_wait` began in the process that started it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)
