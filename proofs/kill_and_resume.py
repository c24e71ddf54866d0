"""Proves that a run killed at any moment resumes to the same bits: SIGKILL at 150 moments, compared with one whole run.

    python proofs/kill_and_resume.py --kills 150 --json proofs/results/kill_and_resume.json

The run is trainer/train_full_sft.py itself: three epochs over 36 conversations with dropout, accumulation and two
loader workers. One variant is dense in float32. Another has experts, float16 with a GradScaler, and writes resume
states while it trains on. Two more are runs of trainer/train_lora.py, on a base in bfloat16 and on one in 4 bits (with
the bitsandbytes package). Each run is killed again and again, at the places in the table below and at random times, and
restarted with --from_resume 1 until it ends. Then everything must be equal bit for bit: the last resume states
(weights, AdamW's moments, the scaler, all counters), the written weights and their sidecar, and the metrics file except
for its timings and the lines of each start and end. No other file may be left over. Exits with status 1 if anything
differs.
"""

import argparse
import json
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from places import PLACES
from processes import run, start
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.files import sha256_of_file
from minimind_sft.paths import REPOSITORY

COMMON = ["--from_weight", "none", "--hidden_size", "32", "--num_hidden_layers", "2", "--device", "cpu",
          "--epochs", "3", "--batch_size", "3", "--accumulation_steps", "2", "--max_seq_len", "64",
          "--micro_batch_tokens", "64", "--dropout", "0.1", "--eval_share", "0.1", "--save_interval", "3",
          "--eval_interval", "5", "--eval_samples", "2", "--eval_max_new_tokens", "4", "--log_interval", "1",
          "--from_resume", "1"]
MEASURED = ("per_second", "_seconds", "peak_share", "peak_memory_mib")
"""How the names of fields of the metrics file end that are measured on the machine."""
RANDOM = "at a random time"
STEPS_PER_EPOCH = 6
FULL_SFT, LORA = "trainer/train_full_sft.py", "trainer/train_lora.py"
ADAPTERS = ["--lora_rank", "4", "--lora_dropout", "0.1", "--modules_to_save", "norm", "--learning_rate", "1e-2"]
IN_4_BITS = "adapters on a base in 4 bits, float32"
VARIANTS = {
    "dense, float32": (FULL_SFT, ["--dtype", "float32", "--num_workers", "2"]),
    "experts, float16, states written in the background": (FULL_SFT, [
        "--dtype", "float16", "--use_moe", "1", "--keep_best", "0", "--async_save", "1"]),
    "adapters, bfloat16, states written in the background": (
        LORA, [*ADAPTERS, "--dtype", "bfloat16", "--async_save", "1"]),
    IN_4_BITS: (LORA, [*ADAPTERS, "--dtype", "float32", "--quantize", "nf4"]),
}
"""A recipe and its flags; those that train adapters take the weights of `write_base`."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=150, help="how many kills in all (default: 150)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants (default: 0)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=arguments.kills, unit="kill") as bar:
        variants = [name for name in VARIANTS if name != IN_4_BITS or find_spec("bitsandbytes")]
        if IN_4_BITS not in variants:
            print(f"left out: {IN_4_BITS} (the bitsandbytes package is not here)")
        share = -(-arguments.kills // len(variants))
        for name in variants:
            kill_and_resume(Path(folder), name, share, random.Random(f"{arguments.seed} {name}"), tally, bar.update)
    print(tally.table())
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/kill_and_resume.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "runs": tally.runs, "kills": dict(tally.kills), "in_later_epochs":
                  tally.later_epochs, "most_steps_repeated": tally.most_repeated, "lost": tally.lost}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(bool(tally.lost))


@dataclass
class Tally:
    """Counts the kills at each place, and lists what differed after the run had been resumed to its end."""

    kills: Counter = field(default_factory=Counter)
    runs: int = 0
    later_epochs: int = 0
    """Kills in the second or third epoch."""
    most_repeated: int = 0
    """Most steps that had to be repeated after a kill: those since the newest resume state."""
    lost: list[str] = field(default_factory=list)

    def table(self) -> str:
        rows = [f"| {'killed':<62} | {'times':>5} |", f"|{'-' * 64}|{'-' * 6}:|"]
        rows += [f"| {name:<62} | {self.kills[name]:>5} |" for name in [*PLACES, RANDOM] if self.kills[name]]
        rows.append(f"| {'in all':<62} | {self.kills.total():>5} |")
        lost = "\n".join(self.lost) or "nothing: every run ended with the bits of the undisturbed one"
        told = (f"{self.runs} runs; {self.later_epochs} of the kills in the second or third epoch; at most "
                f"{self.most_repeated} steps repeated")
        return "\n".join([*rows, "", told, f"lost: {lost}"])


def kill_and_resume(folder: Path, variant: str, kills: int, instants: random.Random, tally: Tally,
                    killed: Callable[[], object] = lambda: None) -> None:
    """Kills runs of a variant `kills` times in all, at each place in turn, and records the outcome in `tally`."""
    data, log, calls = folder / "conversations.jsonl", folder / "log.txt", folder / "calls.json"
    write_conversations(data)
    recipe = VARIANTS[variant][0]
    if recipe == LORA:
        write_base(folder, data)
    started = time.monotonic()
    status = run(train, flags(variant, folder, fresh(folder / "whole")), None, 0, calls, recipe, log=log)
    assert status == 0, log.read_text()
    seconds, totals = time.monotonic() - started, json.loads(calls.read_text())
    expected = outcome(folder / "whole")
    places = [name for name in PLACES if totals[name]] + [RANDOM]
    done = 0
    while done < kills:
        argv = flags(variant, folder, fresh(folder / "killed"))
        status = -signal.SIGKILL
        while status != 0:
            state, said_before = newest_step(folder / "killed"), log.stat().st_size
            place = places[done % len(places)]
            if done >= kills:
                status = run(train, argv, None, 0, None, recipe, log=log)
            elif place == RANDOM:
                status = killed_after(instants.uniform(0, seconds), argv, recipe, log)
            else:
                # Within the first third of the passes: a resumed run makes fewer of them than a whole one.
                nth = instants.randint(1, max(totals[place] // 3, 1))
                status = run(train, argv, place, nth, None, recipe, log=log)
            assert status in (0, -signal.SIGKILL), f"{place}: ended with {status}\n{log.read_text()[-3000:]}"
            said = log.read_bytes()[said_before:].decode(errors="replace")
            if "\ntraining " in said and resumed_from(said) != state:
                tally.lost.append(f"{variant}: went on from step {resumed_from(said)}, not from {state}")
            if status:
                made = steps_logged(*(folder / "killed").glob("*_metrics.jsonl"))
                tally.later_epochs += made >= STEPS_PER_EPOCH
                tally.most_repeated = max(tally.most_repeated, made - newest_step(folder / "killed"))
                tally.kills[place] += 1
                done += 1
                killed()
        tally.runs += 1
        found = outcome(folder / "killed")
        tally.lost += [f"{variant}, run {tally.runs}: {name} differs" for name in sorted({*expected, *found})
                       if expected.get(name) != found.get(name)]


def newest_step(out: Path) -> int:
    """Returns the step of the newest resume state; 0 if there is none."""
    return max((int(path.name[5:]) for path in (out / "checkpoints").glob("*_resume/step-*")), default=0)


def resumed_from(said: str) -> int:
    """Returns the step of the state that the trainer said it resumed from; 0 if none."""
    told = re.search(r"resume +\S*step-(\d{8})", said)
    return int(told[1]) if told else 0


def steps_logged(*metrics: Path) -> int:
    """Returns the last step in the metrics files that exist, ignoring a half-written line."""
    lines = [line for path in metrics if path.exists() for line in path.read_text().splitlines()]
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """Returns everything a run left in its folder, by name; two outcomes are equal if their bits are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix in (".lock", ".html") or path.name == "run.json":  # reports have measurements
            continue
        if path.suffix == ".pth":
            tensors = torch.load(path, weights_only=True)
            found[name] = {key: tensor.view(torch.uint8).numpy().tobytes() for key, tensor in tensors.items()}
        elif path.name.endswith("_metrics.jsonl"):
            found[name] = repeatable_lines(path)
        elif path.parent == folder and path.suffix == ".json":
            sidecar = json.loads(path.read_text())
            del sidecar["training"]["command"], sidecar["run"]  # the folder's name, and an id that every run makes up
            found[name] = sidecar
        else:
            found[name] = sha256_of_file(path)
    return found


def repeatable_lines(metrics: Path) -> list[dict[str, Any]]:
    """Returns what two runs with the same flags write to their metrics files: all but measurements, starts and ends."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(MEASURED)}
            for line in lines if "run" not in line and "end" not in line]


def flags(variant: str, folder: Path, out: Path) -> list[str]:
    recipe, own = VARIANTS[variant]
    base = ["--from_weight", str(folder / "base/full_sft_32.pth")] if recipe == LORA else []
    return [*COMMON, *base, *own, "--data_path", str(folder / "conversations.jsonl"), "--save_dir", str(out)]


def write_base(folder: Path, data: Path) -> None:
    """Writes weights that adapters can train on: those of one step."""
    log = folder / "log.txt"
    argv = [*COMMON, "--max_steps", "1", "--data_path", str(data), "--save_dir", str(fresh(folder / "base"))]
    assert run(train, argv, None, 0, None, FULL_SFT, log=log) == 0, log.read_text()


def write_conversations(path: Path) -> None:
    random_ = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(40):
            turns = [{"role": "user", "content": f"Say {i} {random_.choice(['once', 'twice, if you please'])}."},
                     {"role": "assistant", "content": " ".join([f"It is {i}."] * random_.randint(1, 3))}]
            file.write(json.dumps({"conversations": turns}) + "\n")


def train(argv: list[str], place: str | None, nth: int, calls: Path | None, recipe: str = FULL_SFT) -> None:
    """Runs a recipe, which kills itself at the `nth` pass of `place`; writes the passes of each place to `calls`."""
    counts: Counter = Counter()

    def passed(name: str) -> bool:
        """Counts a pass; returns whether to die here."""
        counts[name] += 1
        return name == place and counts[name] == nth

    for name, watch in PLACES.items():
        watch(partial(passed, name))
    sys.argv = [recipe, *argv]
    try:
        runpy.run_path(str(REPOSITORY / recipe), run_name="__main__")
    finally:
        if calls is not None:
            calls.write_text(json.dumps({name: counts[name] for name in PLACES}))


def killed_after(seconds: float, argv: list[str], recipe: str, log: Path) -> int:
    process = start(train, argv, None, 0, None, recipe, log=log)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


if __name__ == "__main__":
    run_program(main)
