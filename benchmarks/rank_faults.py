"""What happens to a training on several ranks when one of them is signalled, killed, frozen or computes NaN.

    python benchmarks/rank_faults.py --rounds 3 --json docs/rank_faults.json

The training is trainer/train_full_sft.py, its ranks joined by Gloo on this machine, with DDP and with FSDP; the last
rows run it under a real torchrun. Each fault strikes at a random moment; all ranks must end within their time limit
and with the exit status they should, and the training, resumed, must end with the bits of the undisturbed run (with
another number of ranks, or another of DDP and FSDP: within rounding, having seen the same samples in the same order).
Ends with status 1 if anything differs.
"""

import argparse
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from kill_and_resume import COMMON, RANDOM, newest_step, outcome, steps_logged, write_conversations
from places import PLACES, hangs, is_slow, loss_is_nan, wrap
from processes import rank_environments, start
from tqdm import tqdm

from minimind_sft.config import REPOSITORY
from minimind_sft.errors import run_program
from minimind_sft.training import loop

RANK_TIMEOUT = 5.0
PATIENCE = 60.0
"""Seconds after which a process that still runs counts as hanging."""
FLAGS = [*COMMON, "--dtype", "float32", "--rank_timeout", str(RANK_TIMEOUT)]
EFFECTS = {**PLACES, "nan": loss_is_nan, "hang": hangs, "slow": is_slow}


class Wrong(Exception):
    """What differed from what it should be."""


@dataclass(frozen=True)
class Effect:
    """What strikes one rank: the `nth` pass of a place (see places.py)."""

    place: str
    nth: int
    rank: int


class Job:
    """A training of which every rank is a process of ours, as torchrun would start them."""

    def __init__(self, bench: "Bench", out: Path, world_size: int, flags: Sequence[str] = (),
                 effect: Effect | None = None, pace: float = 0.0):
        self.metrics = out / "full_sft_32_metrics.jsonl"
        self.log = bench.folder / "log.txt"
        argv = [*FLAGS, "--data_path", str(bench.data), "--save_dir", str(out), *flags]
        self.ranks: list[BaseProcess] = []
        bench.running = self.ranks
        for rank, environment in enumerate(rank_environments(world_size)):
            own = effect if effect and effect.rank == rank else None
            self.ranks.append(start(train_rank, environment, argv, own, pace, samples_file(out),
                                    log=self.log))

    def at_step(self, step: int) -> "Job":
        """Returns when the main rank has logged that step."""
        deadline = time.monotonic() + PATIENCE
        while steps_logged(self.metrics) < step:
            if time.monotonic() > deadline or not any(rank.is_alive() for rank in self.ranks):
                raise Wrong(f"step {step} was never logged: {self.log.read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def signal(self, signum: int, *ranks: int) -> "Job":
        for rank in ranks or range(len(self.ranks)):
            os.kill(self.ranks[rank].pid, signum)
        return self

    def end(self) -> list[int]:
        """The ranks' exit statuses, minus the signal for those that one ended."""
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


def train_rank(environment: dict[str, str], argv: list[str], effect: Effect | None, pace: float,
               samples: Path) -> None:
    """The recipe as one rank; the main one appends every step and its samples to a file."""
    os.environ.update(environment)
    if effect is not None:
        passes = Counter()

        def passed() -> bool:
            passes["so far"] += 1
            return passes["so far"] == effect.nth

        EFFECTS[effect.place](passed)

    def record(_: torch.nn.Module, batch: Any, *__: Any) -> None:
        time.sleep(pace)
        if environment.get("RANK", "0") == "0":
            with samples.open("a") as file:
                file.write(f"{batch.step} {list(batch.sample_ids)}\n")

    wrap(loop, "train_step", before=record)
    sys.argv = ["trainer/train_full_sft.py", *argv]
    runpy.run_path(str(REPOSITORY / "trainer/train_full_sft.py"), run_name="__main__")


def samples_file(out: Path) -> Path:
    return out.with_suffix(".samples")


def samples_of(out: Path) -> list[str]:
    """The steps that were made, with their samples, in the order in which they were made."""
    return samples_file(out).read_text().splitlines() if samples_file(out).exists() else []


@dataclass
class Bench:
    """A folder, the data in it, and what undisturbed runs come to."""

    folder: Path
    instants: random.Random
    wholes: dict[tuple[int, str], dict] = field(default_factory=dict)
    """What `outcome` says of undisturbed runs, by number of ranks and "ddp" or "fsdp"; their samples besides."""
    running: list[BaseProcess] = field(default_factory=list)
    """The ranks of the training in hand."""

    def __post_init__(self):
        self.data = self.folder / "conversations.jsonl"
        self.log = self.folder / "log.txt"
        write_conversations(self.data)

    def empty(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        samples_file(self.folder / name).unlink(missing_ok=True)
        return self.folder / name

    def undisturbed(self, world_size: int, parallel: str) -> dict[str, Any]:
        """What such a run leaves behind."""
        if (world_size, parallel) not in self.wholes:
            out = self.empty(f"whole-{world_size}-{parallel}")
            self.expect([0] * world_size, Job(self, out, world_size, ["--parallel", parallel]).end())
            self.wholes[world_size, parallel] = {**outcome(out), "samples": samples_of(out)}
        return self.wholes[world_size, parallel]

    def resume(self, out: Path, world_size: int, parallel: str, repeats: bool = True) -> None:
        """Goes on to the end, and compares with the undisturbed run bit for bit.

        The first step must be the one after the newest resume state; without `repeats`, also the one after the last
        that was made.
        """
        whole = self.undisturbed(world_size, parallel)
        done, state = len(samples_of(out)), newest_step(out)
        self.expect([0] * world_size, Job(self, out, world_size, ["--parallel", parallel]).end())
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


Fault = Callable[[Bench], None]


def signalled(bench: Bench, parallel: str, signum: int, ranks: Sequence[int]) -> None:
    """All ranks finish the step, save, and exit with 128 + the signal."""
    out = bench.empty("out")
    job = Job(bench, out, 2, ["--parallel", parallel], pace=0.05)
    job.at_step(bench.instants.randint(1, 5)).signal(signum, *ranks)
    bench.expect([128 + signum] * 2, job.end())
    bench.resume(out, 2, parallel, repeats=False)


def signalled_twice(bench: Bench, parallel: str) -> None:
    """The second signal ends a rank at once, in the middle of a step; the other then has nobody to go on with."""
    out = bench.empty("out")
    step = bench.instants.randint(4, 6)
    job = Job(bench, out, 2, ["--parallel", parallel], Effect("slow", step + 1, rank=0))
    job.at_step(step)
    time.sleep(0.3)
    job.signal(signal.SIGTERM, 0)
    time.sleep(0.6)
    job.signal(signal.SIGTERM, 0)
    bench.expect([128 + signal.SIGTERM, 1], job.end())
    bench.resume(out, 2, parallel)


def killed(bench: Bench, parallel: str, place: str, passes: int = 8, world_size: int = 2,
           rank: int | None = None) -> None:
    """SIGKILL to one rank, a random one if none is said: the others end too, with status 1.

    Args:
        passes: how often every rank passes the place at least.
    """
    out = bench.empty("out")
    rank = bench.instants.randrange(world_size) if rank is None else rank
    flags = ["--parallel", parallel]
    if place == RANDOM:
        job = Job(bench, out, world_size, flags, pace=0.05)
        job.at_step(bench.instants.randint(1, 3))
        time.sleep(bench.instants.uniform(0, 0.1))
        job.signal(signal.SIGKILL, rank)
    else:
        job = Job(bench, out, world_size, flags, Effect(place, bench.instants.randint(1, passes), rank))
    bench.expect([-signal.SIGKILL if other == rank else 1 for other in range(world_size)], job.end())
    bench.resume(out, world_size, parallel)


def frozen(bench: Bench, parallel: str) -> None:
    """A rank that stands still: the other gives up after `--rank_timeout`."""
    out = bench.empty("out")
    rank = bench.instants.randrange(2)
    job = Job(bench, out, 2, ["--parallel", parallel], Effect("hang", bench.instants.randint(5, 30), rank))
    job.ranks[1 - rank].join(4 * RANK_TIMEOUT)  # its start included
    status = job.ranks[1 - rank].exitcode
    job.signal(signal.SIGKILL, rank).end()
    bench.expect(1, status)
    bench.resume(out, 2, parallel)


def computes_nan(bench: Bench, parallel: str) -> None:
    """A loss of NaN on one rank: that step changes nothing on either, is counted, and the training goes on."""
    out = bench.empty("out")
    effect = Effect("nan", bench.instants.randint(1, 8), bench.instants.randrange(2))
    bench.expect([0, 0], Job(bench, out, 2, ["--parallel", parallel], effect).end())
    lines = [json.loads(line) for line in (out / "full_sft_32_metrics.jsonl").read_text().splitlines()]
    skipped = [line["step"] for line in lines if "skipped" in line]
    (newest, *_) = sorted((out / "checkpoints/full_sft_32_resume").glob("step-*"), reverse=True)
    state = json.loads((newest / "state.json").read_text())["state"]
    bench.expect((1, 1, state["step"] - 1), (len(skipped), state["bad_steps"], state["updates"]))
    weights = torch.load(out / "full_sft_32.pth", weights_only=True)
    bench.expect(True, all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()))


def changing_ranks(bench: Bench, plan: Sequence[tuple[int, str, int]]) -> None:
    """Stopped again and again in the midst of an epoch, and resumed with other ranks, sharding and loader workers."""
    out, whole = bench.empty("out"), bench.empty("whole")
    settings = ["--save_dtype", "float32", "--batch_size", "6", "--accumulation_steps", "1", "--dropout", "0",
                "--keep_best", "0"]
    bench.expect([0], Job(bench, whole, 1, settings).end())
    for number, (world_size, parallel, workers) in enumerate(plan):
        flags = [*settings, "--parallel", parallel, "--num_workers", str(workers)]
        last = number == len(plan) - 1
        job = Job(bench, out, world_size, flags, pace=0.0 if last else 0.1)
        if not last:
            job.at_step(3 + 3 * number).signal(signal.SIGTERM, 0)
        bench.expect([0 if last else 128 + signal.SIGTERM] * world_size, job.end())
    bench.expect(samples_file(whole).read_text(), samples_file(out).read_text())
    one, other = (torch.load(folder / "full_sft_32.pth", weights_only=True) for folder in (whole, out))
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    if apart > 1e-5:
        raise Wrong(f"weights {apart:.1e} apart")


def torchrun(bench: Bench, out: Path, *options: str, resume: bool = False) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *options,
               str(REPOSITORY / "trainer/train_full_sft.py"), *FLAGS, "--data_path", str(bench.data), "--save_dir",
               str(out), "--epochs", "20", "--from_resume", str(int(resume))]
    return subprocess.Popen(command, stdout=bench.log.open("a"), stderr=subprocess.STDOUT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def kill_a_rank(bench: Bench, agent: subprocess.Popen, metrics: Path, after_step: int) -> None:
    wait_for_step(bench, agent, metrics, after_step)
    os.kill(bench.instants.choice(ranks_of(agent)), signal.SIGKILL)


def wait_for_step(bench: Bench, agent: subprocess.Popen, metrics: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while steps_logged(metrics) < step:
        if time.monotonic() > deadline or agent.poll() is not None:
            raise Wrong(f"step {step} was never logged: {bench.log.read_text()[-2000:]}")
        time.sleep(0.005)


def ranks_of(agent: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"train_full_sft" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def torchrun_restarts(bench: Bench, kills: int) -> None:
    """torchrun --max-restarts: goes on from the resume state unasked, after each kill of a random rank."""
    whole = bench.empty("whole")
    bench.expect(0, torchrun(bench, whole, "--standalone").wait(PATIENCE))
    out = bench.empty("out")
    bench.log.write_text("")
    agent = torchrun(bench, out, "--standalone", "--max-restarts", str(kills))
    metrics = out / "full_sft_32_metrics.jsonl"
    for kill in range(1, kills + 1):
        kill_a_rank(bench, agent, metrics, after_step=kill * 60 // (kills + 1))
    bench.expect(0, agent.wait(PATIENCE))
    bench.expect(kills, len(re.findall(r"resume +\S*step-\d{8}", bench.log.read_text())))
    bench.compare(out, outcome(whole))


def torchrun_signalled(bench: Bench) -> None:
    """SIGTERM to torchrun itself, as a scheduler sends it: passed on to the ranks, which finish the step and save."""
    whole, out = bench.empty("whole"), bench.empty("out")
    bench.expect(0, torchrun(bench, whole, "--standalone").wait(PATIENCE))
    agent = torchrun(bench, out, "--standalone")
    wait_for_step(bench, agent, out / "full_sft_32_metrics.jsonl", bench.instants.randint(5, 30))
    agent.terminate()
    bench.expect(1, agent.wait(PATIENCE))  # torchrun's own status
    bench.expect(steps_logged(out / "full_sft_32_metrics.jsonl"), newest_step(out))
    bench.expect(0, torchrun(bench, out, "--standalone", resume=True).wait(PATIENCE))
    bench.compare(out, outcome(whole))


def torchrun_gives_up(bench: Bench) -> None:
    """Without restarts the death of a rank ends the job, with a status that is not 0."""
    agent = torchrun(bench, bench.empty("out"), "--standalone")
    kill_a_rank(bench, agent, bench.folder / "out/full_sft_32_metrics.jsonl", after_step=5)
    bench.expect(1, agent.wait(PATIENCE))


STRATEGIES = ("ddp", "fsdp")
FAULTS: dict[str, list[Fault]] = {
    "SIGTERM to one rank": [partial(signalled, parallel=p, signum=signal.SIGTERM, ranks=[r])
                            for p in STRATEGIES for r in (0, 1)],
    "SIGINT to one rank": [partial(signalled, parallel=p, signum=signal.SIGINT, ranks=[r])
                           for p in STRATEGIES for r in (0, 1)],
    "SIGTERM to all ranks": [partial(signalled, parallel=p, signum=signal.SIGTERM, ranks=[0, 1]) for p in STRATEGIES],
    "SIGINT to all ranks": [partial(signalled, parallel=p, signum=signal.SIGINT, ranks=[0, 1]) for p in STRATEGIES],
    "a second SIGTERM in the same step": [partial(signalled_twice, parallel=p) for p in STRATEGIES],
    "SIGKILL to one rank at a random moment": [partial(killed, parallel=p, place=RANDOM) for p in STRATEGIES],
    "SIGKILL to one of four ranks at a random moment": [
        partial(killed, parallel=p, place=RANDOM, world_size=4) for p in STRATEGIES],
    "SIGKILL to one rank in a half-written resume state": [
        partial(killed, parallel=p, place="in a file of the resume state, half of it written", passes=4, rank=r)
        for p, r in (("ddp", 0), ("fsdp", 0), ("fsdp", 1))],
    "SIGKILL to the main rank before a state gets its name": [
        partial(killed, parallel=p, place="before a finished file or folder gets its name", rank=0, passes=4)
        for p in STRATEGIES],
    "SIGKILL to one rank between two layers, forward": [
        partial(killed, parallel=p, place="in a forward pass, between two layers") for p in STRATEGIES],
    "SIGKILL to one rank between two layers, backward": [
        partial(killed, parallel=p, place="in a backward pass, between two layers") for p in STRATEGIES],
    "SIGKILL to one rank half through the optimizer's step": [
        partial(killed, parallel=p, place="in the optimizer's step, half of the parameters updated")
        for p in STRATEGIES],
    "one rank freezes (SIGSTOP)": [partial(frozen, parallel=p) for p in STRATEGIES],
    "the loss of one rank is NaN": [partial(computes_nan, parallel=p) for p in STRATEGIES],
    "ranks 1 -> 2 -> 4 -> 3 -> 1, DDP, 0, 1, 4 loader workers": [
        partial(changing_ranks, plan=[(1, "ddp", 0), (2, "ddp", 1), (4, "ddp", 4), (3, "ddp", 0), (1, "ddp", 1)])],
    "ranks 1 -> 2 FSDP -> 4 DDP -> 3 FSDP -> 2 FSDP -> 1": [
        partial(changing_ranks, plan=[(1, "ddp", 0), (2, "fsdp", 0), (4, "ddp", 0), (3, "fsdp", 1), (2, "fsdp", 0),
                                      (1, "ddp", 0)])],
    "SIGTERM to torchrun": [torchrun_signalled],
    "torchrun: SIGKILL to a rank, no restarts": [torchrun_gives_up],
    "torchrun --max-restarts 3: SIGKILL to a rank, three times": [partial(torchrun_restarts, kills=3)],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often to try each fault (default: 1)")
    parser.add_argument("--only", default="", help="try only faults with this in their name")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    chosen = [(name, fault) for name, faults in FAULTS.items() if arguments.only in name for fault in faults]
    rows, lost = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), random.Random(arguments.seed))
        for name, fault in tqdm(chosen * arguments.rounds, unit="fault"):
            try:
                fault(bench)
            except Wrong as wrong:
                lost.append(f"{name}: {wrong}")
                for rank in bench.running:
                    rank.kill()
            rows[name] += 1
    print(f"| {'fault':<58} | {'tried':>5} | {'lost':>4} |\n|{'-' * 60}|{'-' * 6}:|{'-' * 5}:|")
    for name, tried in rows.items():
        print(f"| {name:<58} | {tried:>5} | {sum(line.startswith(name + ': ') for line in lost):>4} |")
    print("\n".join(["", *lost]) if lost else "\nlost: nothing")
    if arguments.json:
        record = {"command": " ".join(["python", "benchmarks/rank_faults.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "tried": rows, "lost": lost}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(bool(lost))


if __name__ == "__main__":
    run_program(main)
