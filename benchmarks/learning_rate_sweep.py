"""Fine-tunes with several learning rates, everything else equal, and compares validation loss and exact match.

    python benchmarks/learning_rate_sweep.py --rates 5e-5 1.5e-4 5e-4 1.5e-3 \\
        --json benchmarks/results/learning_rate.json
    python benchmarks/learning_rate_sweep.py --recipe lora --rates 3e-3 1e-3 1e-2 \\
        --json benchmarks/results/learning_rate_lora.json

Each run is trainer/train_full_sft.py, or with `--recipe lora` trainer/train_lora.py, in its own process, and starts
from the bundled pretrained model; arguments after `--` are passed on to all of them. Prints a Markdown table, one row
per rate.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from minimind_sft.errors import UserError, run_program
from minimind_sft.paths import REPOSITORY

CHOSEN_WEIGHTS = {"full_sft": ("--weight", "full_sft"), "lora": ("--weight", "pretrain", "--lora_weight", "adapter")}
"""Recipes, with the flags of eval_llm.py for what they write."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="full_sft", choices=CHOSEN_WEIGHTS,
                        help="what to sweep (default: full_sft)")
    parser.add_argument("--rates", nargs="+", type=float, required=True, help="learning rates to try")
    parser.add_argument("--score", default=str(REPOSITORY / "dataset/sft_demo_heldout.jsonl"),
                        help="questions for the exact match (default: dataset/sft_demo_heldout.jsonl)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("passed_on", nargs="*", help="flags of the trainer, after --")
    arguments = parser.parse_args()
    results = []
    for rate in arguments.rates:
        with tempfile.TemporaryDirectory() as folder:
            results.append({"learning_rate": rate, **measure(rate, folder, arguments)})
        print(results[-1], flush=True)
    print("\n| learning rate | validation loss | at the last step | exact match |\n|---|---|---|---|")
    for result in results:
        print(f"| {result['learning_rate']:g} | {result['best_eval_loss']:.4f} | {result['last_eval_loss']:.4f} | "
              f"{result['exact_match']:.1f}% |")
    if arguments.json:
        record = {"command": ["python", "benchmarks/learning_rate_sweep.py", *sys.argv[1:]], "results": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(rate: float, folder: str, arguments: argparse.Namespace) -> dict:
    """Trains at `rate`; returns best and last validation loss, and exact match of what was written in percent."""
    run(f"trainer/train_{arguments.recipe}.py", "--from_weight", "pretrain", "--learning_rate", str(rate),
        "--save_dir", folder, *arguments.passed_on)
    (metrics,) = Path(folder).glob("*_metrics.jsonl")
    losses = [line["eval_loss"] for line in map(json.loads, metrics.open(encoding="utf-8")) if "eval_loss" in line]
    scored = run("eval_llm.py", "--save_dir", folder, *CHOSEN_WEIGHTS[arguments.recipe], "--score", arguments.score)
    found = re.search(r"exact match: ([\d.]+)%", scored)
    assert found, scored
    return {"best_eval_loss": min(losses[1:]), "last_eval_loss": losses[-1], "exact_match": float(found[1])}


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(REPOSITORY / script), *arguments], capture_output=True, text=True,
                          encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"{script} {' '.join(arguments)}: exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    run_program(main)
