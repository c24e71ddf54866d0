"""Proves that runs with a fault give its warning, and that ordinary runs give none.

    python proofs/run_warnings.py --only faulty --json proofs/results/run_warnings_faulty.json
    python proofs/run_warnings.py --only ordinary --json proofs/results/run_warnings_ordinary.json

All runs train the bundled model on the bundled data, or on rows made from them. Prints each run with its warnings, and
exits with status 1 if a run gives other warnings than it should.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.errors import run_program
from minimind_sft.paths import in_repository, shown
from minimind_sft.training.metrics import read_metrics

SFT, LORA, PRETRAIN = "trainer/train_full_sft.py", "trainer/train_lora.py", "trainer/train_pretrain.py"
DATA, HELD_OUT = in_repository("dataset/sft_demo.jsonl"), in_repository("dataset/sft_demo_heldout.jsonl")


class Case(NamedTuple):
    """A run, and the warnings that it should give, by name."""

    name: str
    program: str
    flags: list[str]
    expected: set[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--only", choices=("faulty", "ordinary"), help="leave the other runs out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = [*(faulty(Path(folder)) if arguments.only != "ordinary" else ()),
                 *(ordinary() if arguments.only != "faulty" else ())]
        results = [outcome(case, Path(folder) / f"out {number}") for number, case in enumerate(cases)]
    if arguments.json:
        record = {"command": ["python", "proofs/run_warnings.py", *sys.argv[1:]], "runs": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(not all(result["as_expected"] for result in results))


def faulty(folder: Path) -> list[Case]:
    """Writes data with faults, and returns the runs that have them."""
    rows = [json.loads(line) for line in Path(DATA).read_text(encoding="utf-8").splitlines()]
    held_out = [json.loads(line) for line in Path(HELD_OUT).read_text(encoding="utf-8").splitlines()]
    dice = random.Random(1)
    noise = [conversation("Say it.", "".join(dice.choices("bcdfghjklmnpqrstvwxz", k=400))) for _ in range(3)]
    long = [conversation("Read this. " + "It is a long story about nothing in particular. " * 40, "Yes.")] * 64
    few, noisy, one, longish, known = (
        write(folder / name, these) for name, these in (
            ("few.jsonl", rows[:150]), ("noisy.jsonl", [*rows[:2400], *noise]),
            ("one.jsonl", [*rows[:1] * 1000, noise[0]]), ("long.jsonl", long),
            ("known.jsonl", [*held_out[:50], *rows[:30]])))
    short = ["--max_steps", "6", "--eval_share", "0"]
    return [
        Case("150 rows, 12 times", SFT, [
            "--data_path", few, "--epochs", "12", "--eval_data_path", HELD_OUT, "--learning_rate", "2e-3",
            "--log_interval", "2"], {"validation_rises"}),
        Case("three rows of random letters among 2,400", SFT, [
            "--data_path", noisy, "--epochs", "1", "--log_interval", "1"], {"loss_spike"}),
        Case("one row 1,000 times, and then random letters", SFT, [
            "--data_path", one, "--epochs", "1", "--log_interval", "1", "--eval_share", "0", "--seed", "5",
            "--learning_rate", "2e-3"], {"loss_spike", "grad_norm_spike"}),
        Case("a learning rate of 1e-9", SFT, ["--learning_rate", "1e-9", "--max_steps", "40"], {"nothing_learned"}),
        Case("a warmup of 400 in 20 steps", SFT, ["--warmup_steps", "400", "--max_steps", "20"], {"long_warmup"}),
        Case("long questions, short answers", SFT, ["--data_path", longish, *short], {"supervised_share"}),
        Case("30 of 80 evaluation rows are trained on", SFT, ["--eval_data_path", known, "--max_steps", "6"],
             {"leaked_rows"}),
    ]


def ordinary() -> list[Case]:
    """Returns runs as people make them, from the README's first command to a rate that is rather high."""
    return [
        Case("README: full SFT", SFT, [], set()),
        Case("an adapter", LORA, [
            "--from_weight", "pretrain", "--modules_to_save", "embed_tokens", "--max_steps", "300"], set()),
        Case("pretraining", PRETRAIN, [
            "--preset", "demo", "--batch_size", "8", "--accumulation_steps", "1", "--max_steps", "100"], set()),
        Case("two rows a step", SFT, ["--batch_size", "2", "--max_steps", "400"], set()),
        Case("a high learning rate", SFT, ["--learning_rate", "4e-3", "--max_steps", "150"], set()),
        Case("warmup, peak and decay", SFT, ["--schedule", "wsd", "--warmup_steps", "20", "--max_steps", "150"], set()),
        Case("420 rows, 3 times, each step logged", SFT, [
            "--log_interval", "1", "--epochs", "3", "--data_path", HELD_OUT], set()),
    ]


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def outcome(case: Case, out: Path) -> dict[str, Any]:
    """Trains, prints the warnings that the metrics file has, and says whether they are the expected ones."""
    start = time.monotonic()
    command = [sys.executable, in_repository(case.program), *case.flags, "--save_dir", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (path,) = out.glob("*_metrics.jsonl")
    lines = read_metrics(path)
    given = [{"step": line["step"], "name": line["name"], "warning": line["warning"]} for line in lines
             if "warning" in line]
    is_right = {one["name"] for one in given} == case.expected
    print(f"{'right' if is_right else 'WRONG':<7}{case.name}", flush=True)
    for one in given:
        print(f"       {one['warning']}", flush=True)
    return {"run": case.name, "program": case.program, "flags": [shown_flag(flag, out.parent) for flag in case.flags],
            "steps": max(line["step"] for line in lines), "expected": sorted(case.expected), "warnings": given,
            "as_expected": is_right, "seconds": round(time.monotonic() - start, 1)}


def shown_flag(flag: str, made_in: Path) -> str:
    """Names a file as the repository does, or one that was made for the run without its folder."""
    if not flag.endswith(".jsonl"):
        return flag
    return Path(flag).name if made_in in Path(flag).parents else shown(flag)


if __name__ == "__main__":
    run_program(main)
