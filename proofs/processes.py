"""Starts processes quickly, by forking a server that has already imported torch and this project.

Otherwise a hundred killed runs would spend most of their time importing.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minimind_sft.training.distributed import Ranks, join_ranks

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["torch", "torch._dynamo", "processes", "minimind_sft.training.start",
                                "minimind_sft.training.loop", "minimind_sft.data.loading",
                                "minimind_sft.evaluation.losses"])


def start(action: Callable[..., Any], *arguments: Any, log: Path | None = None) -> BaseProcess:
    """Starts a process that runs `action(*arguments)` with one thread and appends its output to `log`.

    `action` must be a module's function, and its arguments must be picklable.
    """
    process = _server.Process(target=_run, args=(log, action, arguments))
    process.start()
    return process


def run(action: Callable[..., Any], *arguments: Any, log: Path | None = None) -> int:
    """Runs `start(...)` to its end; returns the exit status, minus the signal for a process ended by one."""
    process = start(action, *arguments, log=log)
    process.join()
    return process.exitcode


def on_ranks(world_size: int, action: Callable[..., Any], *arguments: Any, timeout_seconds: float = 600.0) -> list[Any]:
    """Runs `action(ranks, *arguments)` on `world_size` processes joined by Gloo; returns each one's result.

    Raises:
        RuntimeError: if a rank fails, with its traceback.
    """
    pipes, processes = [], []
    store = free_store()
    for environment in rank_environments(world_size, store):
        receive, send = _server.Pipe(duplex=False)
        processes.append(start(_as_rank, environment, timeout_seconds, send, action, arguments))
        send.close()
        pipes.append(receive)
    try:
        outcomes = [pipe.recv() for pipe in pipes]
    except EOFError as error:
        raise RuntimeError("a rank ended without an answer") from error
    finally:
        for process in processes:
            process.join()
    failures = [failure for _, failure in outcomes if failure]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [result for result, _ in outcomes]


def free_store() -> dist.TCPStore:
    """Opens the store that torchrun would: over it the ranks tell each other their ports.

    It takes a port at once: one that is only looked up may belong to another process when a rank wants it.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def rank_environments(world_size: int, store: dist.TCPStore) -> list[dict[str, str]]:
    """Returns the variables that torchrun would set for each rank; none for a single rank.

    Args:
        store: of `free_store`, which must live as long as the ranks.
    """
    if world_size == 1:
        return [{}]
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"} for rank in range(world_size)]


def _run(log: Path | None, action: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a program started by hand
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, sys.stdout.fileno())
        os.dup2(file, sys.stderr.fileno())
    action(*arguments)


def _as_rank(environment: dict[str, str], timeout_seconds: float, send: Any, action: Callable[..., Any],
             arguments: tuple) -> None:
    os.environ.update(environment)
    try:
        with join_ranks("cpu", timeout_seconds) as ranks:
            try:
                result = action(ranks, *arguments)
            finally:
                _leave_last(ranks)
            send.send((result, None))
    except Exception:
        send.send((None, traceback.format_exc()))


def _leave_last(ranks: Ranks) -> None:
    """Keeps the main rank until the others are done: they may still read its store."""
    if ranks.store is None:
        return
    ranks.store.set(f"rank {ranks.rank} is done", "")
    if ranks.is_main:
        ranks.store.wait([f"rank {other} is done" for other in range(ranks.world_size)])
