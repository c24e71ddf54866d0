"""Handles what interrupts a run: signals, and worker processes that die."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from minimind_sft.errors import ProcessLost, UserError, first_line
from minimind_sft.processes import STOP_SIGNALS, signals_wait, take_signals
from minimind_sft.terminal import say_from_thread

ONE_SIGNAL_SECONDS = 0.25


@dataclass
class Stop:
    """The first of `STOP_SIGNALS` that this process received; the loop checks after each step."""

    signum: int = 0


@contextmanager
def stop_on_signals(passed_on: bool = False, notice: bool = True) -> Iterator[Stop]:
    """Lets the current step finish and be saved after the first of `STOP_SIGNALS`; ends the process at the second.

    The second signal works even while the step waits for another rank inside PyTorch and this thread runs no Python
    code: another thread reads the signals from a socket and ends the process, with status 128 + the signal.

    Args:
        passed_on: whether one signal may arrive twice, as torchrun passes on to its ranks what a scheduler has sent to
            all processes. Signals within `ONE_SIGNAL_SECONDS` of the first then count as the first.
        notice: writes a line to stderr at the first signal, because the current step may take minutes.
    """
    stop, previous = Stop(), {}

    def handle(signum: int, _: object) -> None:
        stop.signum = stop.signum or signum

    receive, send = socket.socketpair()  # a pipe cannot be made non-blocking on every system
    send.setblocking(False)
    previous_fd = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        # A loader's worker inherits the socket; a signal to the worker must not count as one to this process.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    for signum in STOP_SIGNALS:
        under_nohup = signal.Signals(signum).name == "SIGHUP" and signal.getsignal(signum) == signal.SIG_IGN
        if not under_nohup:
            previous[signum] = signal.signal(signum, handle)
    Thread(target=_end_at_the_second, args=(receive, passed_on, notice), daemon=True).start()
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        send.close()


def _end_at_the_second(receive: socket.socket, passed_on: bool, notice: bool) -> None:
    """Reads one byte per signal; returns when the other end is closed."""
    first_at = None
    while received := receive.recv(1):
        if received[0] not in STOP_SIGNALS:
            continue
        if first_at is None:
            first_at = time.monotonic()
            if notice:  # in its own thread: a terminal stopped by Ctrl-S must not hold up the second signal
                Thread(target=_acknowledge, args=(received[0],), daemon=True).start()
        elif not passed_on or time.monotonic() - first_at >= ONE_SIGNAL_SECONDS:
            os._exit(128 + received[0])
    receive.close()


def _acknowledge(signum: int) -> None:
    """Says on stderr that the signal has arrived, if stderr is still open."""
    line = f"{signal.Signals(signum).name}: stopping after this step"
    if signum == signal.SIGINT:
        line = "stopping after this step; press Ctrl-C again to quit now"
    with suppress(OSError, ValueError):  # closed
        say_from_thread(line)


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """Makes a loader's worker ignore signals: one to the whole job must not take away the last step's batches."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    take_signals()


@contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator]:
    """Yields the loader's batches; its worker processes, if any, end with the block, however that ends.

    Raises:
        ProcessLost: if a worker dies (usually for lack of memory), whatever the run is doing then.
        UserError: as raised in a worker.
    """
    with signals_wait():
        batches: Any = iter(loader)
    watch = loader.num_workers and hasattr(signal, "SIGCHLD")  # without it, PyTorch checks its workers now and then
    pytorchs = signal.getsignal(signal.SIGCHLD) if watch else None
    if callable(pytorchs):
        signal.signal(signal.SIGCHLD, partial(_report_death, batches, pytorchs))
    try:
        yield batches
    except ProcessLost:
        raise
    except UserError as error:
        if "\nOriginal Traceback" not in str(error):  # which PyTorch puts before the message of a worker's error
            raise
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        of_a_worker = not isinstance(error, RuntimeError) or "DataLoader worker (pid" in str(error)
        if not (loader.num_workers and of_a_worker):
            raise
        raise _lost(batches, error) from error
    finally:
        # PyTorch does this when the iterator is collected, which an exception's traceback prevents. And Python ends
        # leftover processes by a signal that ours ignore, so it would wait forever.
        if loader.num_workers:
            batches._shutdown_workers()
            for worker in batches._workers:  # PyTorch gives up on one that takes longer than five seconds to end
                worker.kill()
                worker.join()
        if pytorchs is not None:
            signal.signal(signal.SIGCHLD, pytorchs)


def _report_death(batches: Any, pytorchs: Callable, signum: int, frame: FrameType | None) -> None:
    """Turns the RuntimeError that PyTorch's handler raises for a dead worker into a ProcessLost.

    This happens wherever the program is, even while another error of the same death is on its way to `batches_of`,
    which then sees neither.
    """
    try:
        pytorchs(signum, frame)
    except RuntimeError as error:
        raise _lost(batches, error) from error


def _lost(batches: Any, error: Exception) -> ProcessLost:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the handler would raise again, at any place
    for worker in batches._workers:
        worker.kill()
    batches._workers_done_event = Event()  # theirs stays locked for ever if a worker died while it looked at it
    return ProcessLost(f"a worker process of the loader died ({first_line(error)})")
