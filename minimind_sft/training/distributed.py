"""The ranks of a run: the processes that torchrun starts, or just this one."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from minimind_sft.device import resolve_device
from minimind_sft.environment import number_in_environment
from minimind_sft.errors import OtherRankFailed, ProcessLost, UserError, first_line
from minimind_sft.terminal import say

T = TypeVar("T")

MEETING = timedelta(minutes=10)
"""How long ranks wait for each other at the start; other machines may take their time."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together."""

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None
    """The store that the ranks met over; None for a single rank."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """Prints lines on the main rank."""
        if self.is_main:
            for line in lines:
                with suppress(OSError):  # a closed terminal, or a full disk under the log, must not stop the run
                    say(line)

    def sum(self, *values: float) -> list[float]:
        """Sums each value over the ranks, in float64."""
        return self._reduce(values, torch.float64, dist.ReduceOp.SUM)

    def largest(self, *values: int) -> list[int]:
        """Returns for each value the largest of all ranks."""
        return self._reduce(values, torch.int64, dist.ReduceOp.MAX)

    def on_main(self, action: Callable[[], T]) -> T:
        """Runs `action` on the main rank and returns its result on every rank; if it fails, all ranks stop.

        Raises:
            Exception: on the main rank whatever `action` raised; on the others OtherRankFailed.
        """
        results: list = self.on_each(action if self.is_main else lambda: None)
        return results[0]

    def on_each(self, action: Callable[[], T]) -> list[T]:
        """Runs `action` on every rank and returns all results in rank order; if it fails on one, all ranks stop.

        Raises:
            Exception: whatever `action` raised here; OtherRankFailed if it failed only on other ranks.
        """
        if self.world_size == 1:
            return [action()]
        result, failure = None, None
        try:
            result = action()
        except Exception as error:
            failure = error
        outcomes: list[Any] = [None] * self.world_size
        dist.all_gather_object(outcomes, (result, failure is not None))
        if failure is not None:
            raise failure
        failed = [rank for rank, (_, has_failed) in enumerate(outcomes) if has_failed]
        if failed:
            raise OtherRankFailed(f"rank {failed[0]} has failed (its message says why)")
        return [result for result, _ in outcomes]

    def first_on_each_machine(self, action: Callable[[], T]) -> T:
        """Runs `action` on the first rank of each machine, and once these are all done on the others.

        The others wait as long as that takes, not just for `--rank_timeout`. Call it only once in a run.

        Raises:
            Exception: whatever `action` raised here; OtherRankFailed if it failed on the first rank of a machine.
        """
        if self.store is None:
            return action()
        machines = number_in_environment("GROUP_WORLD_SIZE", 1, min=1)
        machine = number_in_environment("GROUP_RANK", 0, max=machines - 1)
        is_first = number_in_environment("LOCAL_RANK", 0) == 0
        if is_first:
            try:
                result = action()
            except Exception:
                self.store.set(f"machine {machine}", "failed")
                raise
            self.store.set(f"machine {machine}", "done")
        for other in range(machines):
            while not self.store.check([f"machine {other}"]):  # `get` would only wait for the store's own timeout
                time.sleep(0.1)
            if self.store.get(f"machine {other}") != b"done":
                raise OtherRankFailed(f"the first rank of machine {other} has failed (its message says why)")
        return result if is_first else action()

    def _reduce(self, values: tuple, dtype: torch.dtype, operation: dist.ReduceOp.RedOpType) -> list:
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=dtype, device=self.device)
        dist.all_reduce(total, operation)
        return total.tolist()


@contextmanager
def join_ranks(device_name: str, timeout_seconds: float) -> Iterator[Ranks]:
    """Joins the process group that torchrun's environment describes (NCCL on CUDA, Gloo on CPU), and leaves it.

    Without torchrun there is one rank and no process group.

    No model wrapped by DDP may outlive the block. It would be the last to hold the process group, and freeing that from
    Python deadlocks if one of Gloo's threads needs the interpreter at the same moment.

    Raises:
        UserError: if the environment does not describe a process group.
        ProcessLost: if the other ranks cannot be reached, or do not answer for `timeout_seconds`.
    """
    world_size = number_in_environment("WORLD_SIZE", 1, min=1)
    rank, local_rank = number_in_environment("RANK", 0, max=world_size - 1), number_in_environment("LOCAL_RANK", 0)
    if world_size > 1 and ":" in device_name:
        raise UserError(f"--device {device_name}: with several ranks each takes a device of its own; say --device cuda")
    if world_size > 1 and device_name == "auto" and not torch.cuda.is_available():
        device_name = "cpu"
    device = resolve_device(device_name, local_rank)
    if world_size > 1 and device.type == "mps":
        raise UserError("--device mps: several ranks cannot share it; start one, or say --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(0, 1, device)
        return
    try:
        store = _meet(rank, world_size)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank,
                                world_size=world_size, timeout=timedelta(seconds=timeout_seconds))
        yield Ranks(rank, world_size, device, store)
    except RuntimeError as error:
        if isinstance(error, ProcessLost) or not _says_that_a_rank_is_gone(error):
            raise
        raise ProcessLost(f"lost the other ranks ({first_line(error)})") from error
    dist.destroy_process_group()  # only after a good end: it would wait for a rank that is gone


def _meet(rank: int, world_size: int) -> dist.Store:
    """Opens the store over which the ranks find each other, and returns once all of them are there.

    Under torchrun it is our own, and torchrun's store only passes on its port. That one outlives a restart: addresses
    of the ranks before the restart would be mistaken for those of the new ones (pytorch/pytorch issue 135712).
    """
    host, port = os.environ.get("MASTER_ADDR"), number_in_environment("MASTER_PORT", 0, max=65535)
    if not (host and port):
        raise UserError(f"environment variables MASTER_ADDR and MASTER_PORT: expected the main rank's address, because "
                        f"WORLD_SIZE is {world_size}; torchrun sets them")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store: dist.Store = dist.TCPStore(host, port, is_master=rank == 0, wait_for_workers=False, timeout=MEETING)
    else:
        agents = dist.TCPStore(host, port, is_master=False, timeout=MEETING)
        store = _open_store(agents, host) if rank == 0 else _find_store(agents, host)
    store.set(f"rank {rank}", "here")
    store.wait([f"rank {other}" for other in range(world_size)], MEETING)
    return store


def _open_store(agents: dist.Store, host: str) -> dist.Store:
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=MEETING)
    agents.set("minimind_sft port", str(store.port))
    return store


def _find_store(agents: dist.Store, host: str) -> dist.Store:
    """Connects to the main rank's store. The port may still be that of the previous main rank, where nobody answers."""
    deadline = time.monotonic() + MEETING.total_seconds()
    while True:
        port = int(agents.get("minimind_sft port"))
        try:
            socket.create_connection((host, port), timeout=2).close()
            return dist.TCPStore(host, port, is_master=False, timeout=MEETING)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessLost(f"the main rank cannot be reached at {host}:{port} ({error})") from error
            time.sleep(0.1)


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted_by_torchrun() -> bool:
    """Whether this process replaces one that failed (`torchrun --max-restarts`)."""
    return number_in_environment("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _says_that_a_rank_is_gone(error: RuntimeError) -> bool:
    """Recognises Gloo's errors by their text, which names the transport or the socket: it has no exception class."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "connection closed by peer"))
