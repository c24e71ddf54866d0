"""Compares full SFT, LoRA and QLoRA on one model and task: what is learned, what is forgotten, what it costs.

    python benchmarks/lora_value.py --from_weight SmolLM2-135M-Instruct.Q4_1.gguf --data_path toolcall.jsonl \\
        --eval_data_path toolcall_eval.jsonl --questions calls.jsonl --text text.jsonl --folder lora_value \\
        --json benchmarks/results/lora_value.json --plot docs/lora.png -- --chat_template chatml \\
        --max_seq_len 1024 --truncation turns --batch_size 8 --epochs 1 --warmup_steps 3 --eval_interval 13

The flags after `--` go to the trainer of each run (--chat_template also to eval_llm.py). docs/base_model.md says how to
make the files. A run is `full:RATE`, `lora:RANK:RATE` or `qlora:RANK:RATE`. Each trains, answers the questions and
reads the text in processes of its own; at the end, each takes a few steps once more for speed and memory. What is
finished stays in --folder, so the same command continues after an interruption, and --runs adds to it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from minimind_sft.errors import UserError, run_program
from minimind_sft.paths import REPOSITORY

TABLE = ("base", "full:3e-4", "lora:8:3e-3", "lora:16:3e-3", "lora:64:3e-3", "qlora:16:3e-3")
TIMED_STEPS = 8
CHAT_FLAGS = ("--chat_template", "--end_of_turn")
"""Flags of the trainers that the chat must be given too."""


class Run(NamedTuple):
    """A run by its name, as in --runs."""

    kind: str
    rank: int | None = None
    rate: str | None = None

    @classmethod
    def of(cls, text: str) -> "Run":
        """Reads `base`, `full:RATE`, `lora:RANK:RATE` or `qlora:RANK:RATE`.

        Raises:
            UserError: if the text is none of these.
        """
        if text == "base":
            return cls("base")
        if found := re.fullmatch(r"full:([\d.e+-]+)", text):
            return cls("full", rate=found[1])
        if found := re.fullmatch(r"(q?lora):(\d+):([\d.e+-]+)", text):
            return cls(found[1], int(found[2]), found[3])
        raise UserError(f"--runs {text}: expected base, full:RATE, lora:RANK:RATE or qlora:RANK:RATE")

    @property
    def title(self) -> str:
        names = {"base": "before", "full": "full SFT", "lora": f"LoRA, rank {self.rank}",
                 "qlora": f"QLoRA, rank {self.rank}"}
        return names[self.kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from_weight", required=True, help="base model, as a path")
    parser.add_argument("--data_path", required=True, help="conversations to train on")
    parser.add_argument("--eval_data_path", required=True, help="conversations for the validation loss")
    parser.add_argument("--questions", required=True, help="questions for the exact match")
    parser.add_argument("--text", required=True, help="plain text, on which the loss shows what was forgotten")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--runs", nargs="+", default=TABLE, help=f"runs (default: {' '.join(TABLE)})")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    parser.add_argument("trainer_flags", nargs="*", help="flags of the trainer, after --")
    arguments = parser.parse_args()
    runs = [Run.of(text) for text in arguments.runs]
    folders = [arguments.folder / text.replace(":", "_") for text in arguments.runs]
    for stage in STAGES.values():  # the timed steps of all runs follow each other, under the same load
        for run, folder in zip(runs, folders, strict=True):
            do(stage, run, folder, arguments)
    results = [{"run": text, **figures_in(folder)} for text, folder in zip(arguments.runs, folders, strict=True)]
    before = [figures["eval_loss_before"] for figures in results if "eval_loss_before" in figures]
    for run, figures in zip(runs, results, strict=True):
        if run.kind == "base" and before:
            figures["eval_loss"] = before[0]  # every run measures it first
    print(*table(runs, results), sep="\n")
    if arguments.plot:
        draw([f"{run.title}, rate {run.rate}" if run.rate else run.title for run in runs], results, arguments.plot)
    if arguments.json:
        command = ["python", "benchmarks/lora_value.py", *sys.argv[1:]]
        arguments.json.write_text(json.dumps({"command": command, "results": results}, indent=2) + "\n",
                                  encoding="utf-8")


def do(stage: Callable, run: Run, folder: Path, arguments: argparse.Namespace) -> None:
    """Keeps the figures of one stage of a run in `folder`, unless they are there already."""
    kept = folder / f"{stage.__name__}.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        figures = stage(run, folder, arguments)
        kept.write_text(json.dumps(figures) + "\n", encoding="utf-8")
        print(f"{folder.name}: {json.dumps(figures)}", flush=True)


def figures_in(folder: Path) -> dict:
    """Returns the figures of all stages of a run."""
    found: dict = {}
    for stage in STAGES:
        found |= json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    return found


def train(run: Run, folder: Path, arguments: argparse.Namespace) -> dict:
    """Trains; returns validation losses, trained parameters and the size of what was written."""
    if run.kind == "base":
        return {}
    trained(run, folder, arguments, "--eval_data_path", arguments.eval_data_path)
    (metrics,) = folder.glob("*_metrics.jsonl")
    losses = [line["eval_loss"] for line in map(json.loads, metrics.open(encoding="utf-8")) if "eval_loss" in line]
    written = weights_in(folder)
    return {"eval_loss_before": losses[0], "eval_loss": min(losses),  # the trainer keeps the weights of the lowest
            "trained_parameters": json.loads(written.with_suffix(".json").read_text(encoding="utf-8"))["parameters"],
            "file_bytes": written.stat().st_size}


def time_steps(run: Run, folder: Path, arguments: argparse.Namespace) -> dict:
    """Trains for a few steps; returns the speed and the peak memory."""
    if run.kind == "base":
        return {}
    said, peak = trained(run, folder / "timed", arguments, "--eval_share", "0", "--max_steps", str(TIMED_STEPS))
    return {"supervised_tokens_per_second": float(number(r"time .* ([\d,.]+) supervised tokens/s", said)),
            "peak_bytes": peak}


def trained(run: Run, folder: Path, arguments: argparse.Namespace, *more: str) -> tuple[str, int]:
    """Trains into `folder`; returns what the trainer said and its peak memory in bytes."""
    assert run.rate is not None
    flags = ["--from_weight", arguments.from_weight, "--data_path", arguments.data_path, "--learning_rate", run.rate,
             "--save_dir", str(folder), "--overwrite"]  # what an interrupted run has left
    if run.kind == "full":
        program, flags = "trainer/train_full_sft.py", [*flags, "--save_weight", "value"]
    else:
        program, flags = "trainer/train_lora.py", [*flags, "--lora_name", "value", "--lora_rank", str(run.rank)]
    if run.kind == "qlora":
        flags += ["--quantize", "nf4"]
    return output_of(program, *flags, *arguments.trainer_flags, *more)


def answer(run: Run, folder: Path, arguments: argparse.Namespace) -> dict:
    """Returns the exact match on the questions in percent, and their number."""
    said, _ = output_of("eval_llm.py", *chosen_weights(run, folder, arguments), "--score", arguments.questions,
                        "--score_out", str(folder / "answers.jsonl"), "--max_new_tokens", "150",
                        *chat_flags(arguments.trainer_flags))
    return {"exact_match": float(number(r"exact match: ([\d.]+)%", said)),
            "questions": int(number(r"exact match: .*\((\d+) questions", said))}


def remember(run: Run, folder: Path, arguments: argparse.Namespace) -> dict:
    """Returns the loss on the plain text."""
    said, _ = output_of("benchmarks/text_loss.py", *chosen_weights(run, folder, arguments),
                        "--data_path", arguments.text)
    return {"text_loss": float(number(r"loss on text: ([\d.]+)", said))}


STAGES: dict[str, Callable[[Run, Path, argparse.Namespace], dict]] = {
    stage.__name__: stage for stage in (train, answer, remember, time_steps)}


def chosen_weights(run: Run, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Returns the flags that choose the weights that a run has trained."""
    if run.kind == "full":
        return ["--weight", str(weights_in(folder))]
    flags = ["--weight", arguments.from_weight]
    if run.kind != "base":
        flags += ["--lora_weight", str(weights_in(folder))]
    return flags + (["--quantize", "nf4"] if run.kind == "qlora" else [])


def weights_in(folder: Path) -> Path:
    (written,) = (path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))
    return written


def chat_flags(flags: list[str]) -> list[str]:
    """Returns those of the trainer's flags that also decide how the chat writes its prompt."""
    return [part for at, flag in enumerate(flags) if flag in CHAT_FLAGS for part in flags[at:at + 2]]


def number(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    assert found, f"{pattern}: not in {said}"
    return found[1].replace(",", "")


def output_of(program: str, *arguments: str) -> tuple[str, int]:
    """Runs a program of this repository; returns its standard output and its peak resident memory in bytes.

    Raises:
        UserError: if it fails.
    """
    command = [sys.executable, str(REPOSITORY / program), *arguments]
    print(f"$ {program} {' '.join(arguments)}", file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{program}: exit status {process.returncode}")
    return said, usage.ru_maxrss * 1024


def table(runs: list[Run], results: list[dict]) -> list[str]:
    """Returns the figures as a Markdown table, a row per run."""
    lines = ["| | learning rate | exact match | validation loss | loss on text | trained parameters | "
             "supervised tokens/s | peak memory | file |", "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for run, figures in zip(runs, results, strict=True):
        cells = [run.title, run.rate or "", f"{figures['exact_match']:.1f}%"]
        cells += [f"{figures['eval_loss']:.4f}" if "eval_loss" in figures else "", f"{figures['text_loss']:.4f}"]
        if run.kind == "base":
            cells += ["", "", "", ""]
        else:
            cells += [f"{figures['trained_parameters'] / 1e6:.2f}M", f"{figures['supervised_tokens_per_second']:.0f}",
                      f"{figures['peak_bytes'] / 2**30:.1f} GiB", f"{figures['file_bytes'] / 2**20:.1f} MiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(titles: list[str], results: list[dict], path: Path) -> None:
    """Draws what was learned, what was forgotten and what it cost, a bar per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (("exact_match", "exact match, %", 1), ("eval_loss", "validation loss", 1),
              ("text_loss", "loss on plain text", 1), ("file_bytes", "file written, MiB", 2**20))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 0.5 + 0.4 * len(titles)), sharey=True,
                                   layout="constrained")
    for axis, (name, label, unit) in zip(axes, panels, strict=True):
        values = [figures.get(name, 0) / unit for figures in results]
        axis.barh(titles, values, color="#2a6f97")
        for place, value in enumerate(values):
            axis.text(value, place, f" {value:.4g}" if name in results[place] else "", va="center", fontsize=8)
        axis.set_xlim(0, max(values) * 1.3)
        axis.set_title(label, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    run_program(main)
