"""Compares the speed and memory of this checkout with another one's, the two taking turns on one machine.

    git worktree add ../before v0.1.0
    python benchmarks/two_checkouts.py ../before --rounds 5 --json benchmarks/results/two_checkouts.json

In each round both checkouts run their own benchmarks/train_speed.py (without peers and compiling) and
benchmarks/decode_speed.py; which one goes first alternates. The ratio of each figure, this checkout's over the other's,
is taken within a round, and the median of the rounds counts. benchmarks/memory_curve.py runs once in each, because
memory hardly varies; its ratios are the other checkout's MiB over this one's, so that above 1 is better everywhere.
Ends with status 1 if a ratio is below `--floor`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent.parent
SPEED = {
    "train_speed.py": ["--skip_peers", "--skip_compile", "--repeat", "1", "--steps", "12"],
    "decode_speed.py": ["--rounds", "3", "--batches", "1", "8"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each checkout (default: 5)")
    parser.add_argument("--floor", type=float, default=0.97, help="lowest ratio that passes (default: 0.97)")
    parser.add_argument("--skip_memory", action="store_true", help="leave memory_curve.py out (it takes minutes)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    rounds = []
    for number in tqdm(range(arguments.rounds), desc="rounds"):
        checkouts = [HERE, arguments.other.resolve()]
        figures = {folder: speeds(folder) for folder in (checkouts if number % 2 else reversed(checkouts))}
        ours, others = (figures[folder] for folder in checkouts)
        rounds.append({name: ours[name] / others[name] for name in ours})
    ratios = {name: summary([one[name] for one in rounds]) for name in rounds[0]}
    if not arguments.skip_memory:
        ours, others = (memory(folder) for folder in (HERE, arguments.other.resolve()))
        ratios |= {name: summary([others[name] / ours[name]]) for name in ours}

    print(f"{'this checkout against the other':<56}{'median':>8}{'min':>8}{'max':>8}")
    for name, ratio in ratios.items():
        print(f"{name:<56}{ratio['median']:>7.3f}x{ratio['min']:>7.3f}x{ratio['max']:>7.3f}x")
    if arguments.json:
        report = {"command": " ".join(["python", "benchmarks/two_checkouts.py", *sys.argv[1:]]),
                  "commits": {"this": commit(HERE), "other": commit(arguments.other)}, "cores": os.cpu_count(),
                  "rounds": arguments.rounds, "ratios": ratios}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(ratio["median"] < arguments.floor for ratio in ratios.values()))


def speeds(folder: Path) -> dict[str, float]:
    """Returns tokens per second: training in each dtype, decoding in each dtype with each number of sequences."""
    training, decoding = (report(folder, program, options) for program, options in SPEED.items())
    rates = {f"training, {name}": row["useful_tokens_per_second"] for name, row in training["contenders"].items()}
    for row in decoding["rows"]:
        rates[f"decoding, {row['dtype']}, {row['batch']} at once"] = row["tokens_per_second"]["ours"]["median"]
    return rates


def memory(folder: Path) -> dict[str, float]:
    """Returns the measured MiB of each point of the curve."""
    return {f"memory, {row['x']:,} {row['curve']}{', checkpointing' if row['checkpointing'] else ''}": row["measured"]
            for row in report(folder, "memory_curve.py", [])["rows"]}


def report(folder: Path, program: str, options: list[str]) -> dict:
    """Runs a benchmark of the checkout in `folder` with its own library; returns the JSON that it writes.

    Raises:
        CalledProcessError: if the benchmark fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "report.json"
        command = [sys.executable, str(folder / "benchmarks" / program), *options, "--json", str(out)]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       env={**os.environ, "PYTHONPATH": str(folder)})
        return json.loads(out.read_text(encoding="utf-8"))


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def commit(folder: Path) -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, check=True, capture_output=True,
                          text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
