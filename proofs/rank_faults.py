"""Proves that a run on several ranks survives when one of them is signalled, killed, frozen or computes NaN.

    python proofs/rank_faults.py --rounds 2 --json proofs/results/rank_faults.json

The run is trainer/train_full_sft.py with DDP and with FSDP, its ranks joined by Gloo on this machine. With FSDP resume
states are written in the background (--async_save 1). The last rows use a real torchrun. Each fault strikes at a random
moment. All ranks must end in time and with the right exit status, and the resumed run must end with the bits of the
undisturbed one. After a change of the number of ranks, or between DDP and FSDP, it must be equal within rounding and
have seen the same samples in the same order. Exits with status 1 if anything differs.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from kill_and_resume import RANDOM, newest_step, outcome, steps_logged
from rank_bench import FLAGS, PATIENCE, RANK_TIMEOUT, Bench, Effect, Job, Wrong, samples_file, samples_of, strategy
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.paths import REPOSITORY
from minimind_sft.training.interruptions import ONE_SIGNAL_SECONDS

Fault = Callable[[Bench], None]


def signalled(bench: Bench, parallel: str, signum: int, ranks: Sequence[int]) -> None:
    """All ranks finish the step, save, and exit with 128 + the signal."""
    out, step = bench.empty("out"), bench.instants.randint(1, 5)
    job = Job(bench, out, 2, strategy(parallel), held_at=step)
    job.at_step(step).signal(signum, *ranks)
    bench.expect([128 + signum] * 2, job.end())
    bench.resume(out, 2, parallel, repeats=False)


def signalled_twice(bench: Bench, parallel: str) -> None:
    """The second signal ends a rank at once, in the middle of a step; the other rank then ends too."""
    out = bench.empty("out")
    step, said = bench.instants.randint(4, 6), bench.log.stat().st_size
    job = Job(bench, out, 2, strategy(parallel), Effect("slow", step + 1, rank=0))
    job.wait_for(lambda: len(samples_of(out)) > step)
    job.signal(signal.SIGTERM, 0)
    job.wait_for(lambda: b"stopping after this step" in bench.log.read_bytes()[said:])
    time.sleep(ONE_SIGNAL_SECONDS)  # one that comes sooner counts as the same
    job.signal(signal.SIGTERM, 0)
    bench.expect([128 + signal.SIGTERM, 1], job.end())
    bench.resume(out, 2, parallel)


def killed(bench: Bench, parallel: str, place: str, passes: int = 8, world_size: int = 2,
           rank: int | None = None, after: int | None = None) -> None:
    """SIGKILL to one rank, by default a random one: the others end too, with status 1.

    Args:
        passes: every rank passes the place at least this often.
        after: the step after which a random moment comes; from 4 on there is a state to resume from.
    """
    out = bench.empty("out")
    rank = bench.instants.randrange(world_size) if rank is None else rank
    flags = strategy(parallel)
    if place == RANDOM:
        step = after or bench.instants.randint(1, 3)
        job = Job(bench, out, world_size, flags, held_at=step)
        job.at_step(step)
        time.sleep(bench.instants.uniform(0, 0.1))
        job.signal(signal.SIGKILL, rank)
    else:
        job = Job(bench, out, world_size, flags, Effect(place, bench.instants.randint(1, passes), rank))
    bench.expect([-signal.SIGKILL if other == rank else 1 for other in range(world_size)], job.end())
    bench.resume(out, world_size, parallel)


def frozen(bench: Bench, parallel: str) -> None:
    """One rank freezes: the other gives up after `--rank_timeout`."""
    out = bench.empty("out")
    rank = bench.instants.randrange(2)
    bench.undisturbed(2, parallel)
    patience = max(RANK_TIMEOUT, bench.seconds[2, parallel])  # no rank waits for another for as long as a run takes
    flags = [*strategy(parallel), "--rank_timeout", str(patience)]
    job = Job(bench, out, 2, flags, Effect("hang", bench.instants.randint(5, 30), rank))
    job.ranks[1 - rank].join(PATIENCE)
    bench.expect((1, None), (job.ranks[1 - rank].exitcode, job.ranks[rank].exitcode))
    job.signal(signal.SIGKILL, rank).end()
    bench.resume(out, 2, parallel)


def writes_slowly(bench: Bench) -> None:
    """One rank has a slow disk: the others train on meanwhile, and the result is the same."""
    out = bench.empty("out")
    rank = bench.instants.randrange(2)
    job = Job(bench, out, 2, strategy("fsdp"), Effect("slow disk", bench.instants.randint(1, 2), rank))
    bench.expect([0, 0], job.end())
    bench.compare(out, bench.undisturbed(2, "fsdp"))


def computes_nan(bench: Bench, parallel: str) -> None:
    """One rank computes a NaN loss: no rank makes an update, the step is counted, and the run continues."""
    out = bench.empty("out")
    effect = Effect("nan", bench.instants.randint(1, 8), bench.instants.randrange(2))
    bench.expect([0, 0], Job(bench, out, 2, strategy(parallel), effect).end())
    lines = [json.loads(line) for line in (out / "full_sft_32_metrics.jsonl").read_text().splitlines()]
    skipped = [line["step"] for line in lines if "skipped" in line]
    (newest, *_) = sorted((out / "checkpoints/full_sft_32_resume").glob("step-*"), reverse=True)
    state = json.loads((newest / "state.json").read_text())["state"]
    bench.expect((1, 1, state["step"] - 1), (len(skipped), state["bad_steps"], state["updates"]))
    weights = torch.load(out / "full_sft_32.pth", weights_only=True)
    bench.expect(True, all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()))


def changing_ranks(bench: Bench, plan: Sequence[tuple[int, str, int]]) -> None:
    """Stops in the middle of an epoch, several times, and resumes with other ranks, sharding and loader workers."""
    out, whole = bench.empty("out"), bench.empty("whole")
    settings = ["--save_dtype", "float32", "--batch_size", "6", "--accumulation_steps", "1", "--dropout", "0",
                "--keep_best", "0"]
    bench.expect([0], Job(bench, whole, 1, settings).end())
    for number, (world_size, parallel, workers) in enumerate(plan):
        flags = [*settings, *strategy(parallel), "--num_workers", str(workers)]
        last = number == len(plan) - 1
        step = None if last else 3 + 3 * number
        job = Job(bench, out, world_size, flags, held_at=step)
        if step is not None:
            job.at_step(step).signal(signal.SIGTERM, 0)
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
    """torchrun --max-restarts resumes by itself each time a random rank is killed."""
    whole, out = bench.empty("whole"), bench.empty("out")
    bench.expect([0, 0], Job(bench, whole, 2, ["--epochs", "20"]).end())
    bench.log.write_text("")
    agent = torchrun(bench, out, "--standalone", "--max-restarts", str(kills))
    metrics = out / "full_sft_32_metrics.jsonl"
    for kill in range(1, kills + 1):
        kill_a_rank(bench, agent, metrics, after_step=kill * 60 // (kills + 1))
    bench.expect(0, agent.wait(PATIENCE))
    bench.expect(kills, len(re.findall(r"resume +\S*step-\d{8}", bench.log.read_text())))
    bench.compare(out, outcome(whole))


def torchrun_signalled(bench: Bench) -> None:
    """SIGTERM to torchrun itself, as from a scheduler: the ranks get it too, finish the step and save."""
    whole, out = bench.empty("whole"), bench.empty("out")
    bench.expect(0, torchrun(bench, whole, "--standalone").wait(PATIENCE))
    agent = torchrun(bench, out, "--standalone")
    wait_for_step(bench, agent, out / "full_sft_32_metrics.jsonl", bench.instants.randint(5, 30))
    agent.terminate()
    bench.expect(1, agent.wait(PATIENCE))  # torchrun's own exit status
    bench.expect(steps_logged(out / "full_sft_32_metrics.jsonl"), newest_step(out))
    bench.expect(0, torchrun(bench, out, "--standalone", resume=True).wait(PATIENCE))
    bench.compare(out, outcome(whole))


def torchrun_gives_up(bench: Bench) -> None:
    """Without restarts the death of a rank ends the job with a nonzero status."""
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
        partial(killed, parallel=p, place=RANDOM, world_size=4, after=4) for p in STRATEGIES],
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
    "one rank's disk is slow (FSDP)": [writes_slowly],
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
        record = {"command": " ".join(["python", "proofs/rank_faults.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "tried": rows, "lost": lost}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(bool(lost))


if __name__ == "__main__":
    run_program(main)
