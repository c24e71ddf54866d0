"""The test bench of rank_faults.py: runs whose ranks are processes that it can signal, freeze and kill."""

import os
import random
import runpy
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from kill_and_resume import COMMON, newest_step, outcome, steps_logged, write_conversations
from places import PLACES, disk_is_slow, hangs, is_slow, loss_is_nan, wrap
from processes import free_store, rank_environments, start

from minimind_sft.paths import REPOSITORY
from minimind_sft.training import loop

RANK_TIMEOUT = 5.0
PATIENCE = 600.0
"""Seconds after which a process that is still running counts as hanging."""
FLAGS = [*COMMON, "--dtype", "float32", "--rank_timeout", str(PATIENCE)]
EFFECTS = {**PLACES, "nan": loss_is_nan, "hang": hangs, "slow": is_slow, "slow disk": disk_is_slow}


def strategy(parallel: str) -> list[str]:
    """Returns the flags of "ddp" or "fsdp"; with fsdp all ranks write resume states while they train on."""
    return ["--parallel", parallel, "--async_save", str(int(parallel == "fsdp"))]


class Wrong(Exception):
    """Something differed from what it should be."""


@dataclass(frozen=True)
class Effect:
    """A fault that strikes one rank, at the `nth` pass of a place (see places.py)."""

    place: str
    nth: int
    rank: int


class Holds:
    """Ranks wait before the step that follows `step`, as long as the file exists; nowhere if that is None."""

    def __init__(self, file: Path, step: int | None):
        self.file, self.step = file, step
        if step is not None:
            file.touch()

    def wait(self, step: int) -> None:
        while step == self.step and self.file.exists():
            time.sleep(0.005)


class Job:
    """A run whose ranks are our own processes, started as torchrun would start them.

    Args:
        held_at: the step after which all ranks wait until one is signalled, however late the signal comes.
    """

    def __init__(self, bench: "Bench", out: Path, world_size: int, flags: Sequence[str] = (),
                 effect: Effect | None = None, held_at: int | None = None):
        self.metrics = out / "full_sft_32_metrics.jsonl"
        self.holds = Holds(out.with_suffix(".hold"), held_at)
        self.log = bench.folder / "log.txt"
        argv = [*FLAGS, "--data_path", str(bench.data), "--save_dir", str(out), *flags]
        self.ranks: list[BaseProcess] = []
        bench.running, self._store = self.ranks, free_store()
        for rank, environment in enumerate(rank_environments(world_size, self._store)):
            own = effect if effect and effect.rank == rank else None
            self.ranks.append(start(train_rank, environment, argv, own, self.holds, samples_file(out), log=self.log))

    def at_step(self, step: int) -> "Job":
        """Waits until the main rank has logged that step."""
        return self.wait_for(lambda: steps_logged(self.metrics) >= step)

    def wait_for(self, condition: Callable[[], bool]) -> "Job":
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline or not any(rank.is_alive() for rank in self.ranks):
                raise Wrong(f"what was waited for never came: {self.log.read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def signal(self, signum: int, *ranks: int) -> "Job":
        for rank in ranks or range(len(self.ranks)):
            os.kill(self.ranks[rank].pid, signum)
        self.holds.file.unlink(missing_ok=True)
        return self

    def end(self) -> list[int]:
        """Waits for the ranks; returns their exit statuses, minus the signal for those ended by one."""
        deadline = time.monotonic() + PATIENCE
        for rank in self.ranks:
            rank.join(max(deadline - time.monotonic(), 0))
        hanging = [rank for rank in self.ranks if rank.is_alive()]
        for rank in hanging:
            rank.kill()
            rank.join()
        if hanging:
            raise Wrong(f"{len(hanging)} ranks did not end within {PATIENCE:g} seconds")
        return [rank.exitcode for rank in self.ranks]


def train_rank(environment: dict[str, str], argv: list[str], effect: Effect | None, holds: Holds,
               samples: Path) -> None:
    """Runs the recipe as one rank; the main rank appends every step and its samples to a file."""
    os.environ.update(environment)
    if effect is not None:
        passes = Counter()

        def passed() -> bool:
            passes["so far"] += 1
            return passes["so far"] == effect.nth

        EFFECTS[effect.place](passed)

    def record(_: torch.nn.Module, batch: Any, *__: Any) -> None:
        holds.wait(batch.step)
        if environment.get("RANK", "0") == "0":
            with samples.open("a") as file:
                file.write(f"{batch.step} {list(batch.sample_ids)}\n")

    wrap(loop, "train_step", before=record)
    sys.argv = ["trainer/train_full_sft.py", *argv]
    runpy.run_path(str(REPOSITORY / "trainer/train_full_sft.py"), run_name="__main__")


def samples_file(out: Path) -> Path:
    return out.with_suffix(".samples")


def samples_of(out: Path) -> list[str]:
    """Returns the steps that were made, with their samples, in order."""
    return samples_file(out).read_text().splitlines() if samples_file(out).exists() else []


@dataclass
class Bench:
    """A folder with data, and the outcomes of undisturbed runs."""

    folder: Path
    instants: random.Random
    wholes: dict[tuple[int, str], dict] = field(default_factory=dict)
    """`outcome` and samples of undisturbed runs, by number of ranks and "ddp" or "fsdp"."""
    running: list[BaseProcess] = field(default_factory=list)
    """The ranks of the current run."""
    seconds: dict[tuple[int, str], float] = field(default_factory=dict)
    """How long the undisturbed runs took."""

    def __post_init__(self):
        self.data = self.folder / "conversations.jsonl"
        self.log = self.folder / "log.txt"
        self.log.touch()
        write_conversations(self.data)

    def empty(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        samples_file(self.folder / name).unlink(missing_ok=True)
        return self.folder / name

    def undisturbed(self, world_size: int, parallel: str) -> dict[str, Any]:
        """Returns the outcome of an undisturbed run; makes that run the first time."""
        if (world_size, parallel) not in self.wholes:
            out, began = self.empty(f"whole-{world_size}-{parallel}"), time.monotonic()
            self.expect([0] * world_size, Job(self, out, world_size, strategy(parallel)).end())
            self.seconds[world_size, parallel] = time.monotonic() - began
            self.wholes[world_size, parallel] = {**outcome(out), "samples": samples_of(out)}
        return self.wholes[world_size, parallel]

    def resume(self, out: Path, world_size: int, parallel: str, repeats: bool = True) -> None:
        """Resumes the run to its end, and compares the outcome with the undisturbed run bit for bit.

        The first step must follow the newest resume state; without `repeats` it must also follow the last step made.
        """
        whole = self.undisturbed(world_size, parallel)
        done, state = len(samples_of(out)), newest_step(out)
        self.expect([0] * world_size, Job(self, out, world_size, strategy(parallel)).end())
        self.expect(whole["samples"][state:], samples_of(out)[done:])
        if not repeats:
            self.expect(state, done)
        self.compare(out, whole)

    def compare(self, out: Path, whole: dict[str, Any]) -> None:
        found = outcome(out)
        if not found:
            raise Wrong("nothing was written")
        for name in sorted({*whole, *found} - {"samples"}):
            if whole.get(name) != found.get(name):
                raise Wrong(f"{name} differs from the undisturbed run's")

    def expect(self, wanted: Any, found: Any) -> None:
        if wanted != found:
            raise Wrong(f"ended with {found}, wanted {wanted}: {self.log.read_text()[-2000:]}")
