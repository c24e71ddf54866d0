"""Measures what evaluations cost: seconds of each, and their share of a run's time, by the number of answers.

    python benchmarks/evaluation_cost.py --json benchmarks/results/evaluation_cost.json
    python benchmarks/evaluation_cost.py --recipe lora --samples 0 4 -- --from_weight FOLDER --data_path my.jsonl

Each run is trainer/train_full_sft.py (or another recipe) on the bundled model and data, in its own process, with
`--max_steps` steps and an evaluation after every tenth of them; arguments after `--` are passed on. The share is that
of a whole run of the recipe's `--epochs`, in which there are ten evaluations and one before the first step. Every
number of answers is run `--repeats` times in turn, and the median counts. Prints a Markdown table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from minimind_sft.errors import UserError, run_program
from minimind_sft.paths import REPOSITORY

EVALUATIONS = 11
"""Of a run: ten and one before the first step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="full_sft", choices=("pretrain", "full_sft", "lora"),
                        help="trainer to run (default: full_sft)")
    parser.add_argument("--samples", nargs="+", type=int, default=[0, 4, 32],
                        help="numbers of answers to compare (default: 0 4 32)")
    parser.add_argument("--max_steps", type=int, default=50, help="steps of each run (default: 50)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("passed_on", nargs="*", help="flags of the trainer, after --")
    arguments = parser.parse_args()
    runs: dict[int, list[dict]] = {samples: [] for samples in arguments.samples}
    for _ in range(arguments.repeats):
        for samples in arguments.samples:
            runs[samples].append(measure(samples, arguments))
            print(samples, runs[samples][-1], flush=True)
    results = [{"eval_samples": samples, **{name: statistics.median(run[name] for run in found) for name in found[0]}}
               for samples, found in runs.items()]
    print("\n| answers | an evaluation | a step | share of a whole run |\n|---|---|---|---|")
    for result in results:
        print(f"| {result['eval_samples']} | {result['evaluation_seconds']:.2f} s | {result['step_seconds']:.3f} s | "
              f"{result['share']:.1%} |")
    if arguments.json:
        record = {"command": ["python", "benchmarks/evaluation_cost.py", *sys.argv[1:]], "results": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(samples: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs the trainer; returns the seconds of an evaluation and of a step, and evaluation's share of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        said = run(f"trainer/train_{arguments.recipe}.py", "--save_dir", folder, "--max_steps",
                   str(arguments.max_steps), "--eval_samples", str(samples), *arguments.passed_on)
        (path,) = Path(folder).glob("*_metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    before_last = [line for line in lines if "eval_loss" in line][:-1]  # step lines precede evaluations
    last = [line for line in lines if "step_seconds" in line][-1]
    evaluation, step = last["eval_seconds"] / len(before_last), last["step_seconds"] / arguments.max_steps
    steps = steps_of_whole_run(said) or arguments.max_steps
    return {"evaluation_seconds": evaluation, "step_seconds": step, "steps_of_whole_run": steps,
            "share": EVALUATIONS * evaluation / (EVALUATIONS * evaluation + steps * step)}


def steps_of_whole_run(said: str) -> int | None:
    """Reads how many steps the run would have had without `--max_steps`."""
    _, found, rest = said.partition("which would be ")
    return int(rest.split()[0].replace(",", "")) if found else None


def run(program: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, REPOSITORY / program, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{program} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    run_program(main)
