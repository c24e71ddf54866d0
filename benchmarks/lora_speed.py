"""Times training with adapters beside TRL with PEFT, and measures the memory of both, in one run.

    python benchmarks/lora_speed.py --from_weight SmolLM2-135M-Instruct.Q4_1.gguf --data_path toolcall.jsonl \\
        --chat_template chatml --max_seq_len 1024 --truncation turns --batch_size 4 --micro_batch_tokens 1024 \\
        --rounds 3 --json benchmarks/results/lora_speed.json

Both start from the same Hugging Face folder, train adapters of rank 16 on all projections, and see the same ids and
labels. Flags that are not listed below are those of our trainers. Model and data are those of docs/base_model.md.

1. Searches for TRL's best configuration with PEFT: padded and packed, several rows per step.
2. Lets the best padded one, the best packed one, the faster one with a base in 4 bits, and our full SFT, LoRA and QLoRA
   take turns of some thousand tokens, `--rounds` times. Medians count, and ratios are those within a round. Useful
   tokens are those of the conversations; padding counts for no one.

Each contender has its own process. Its peak is the resident memory of all of it, from the first import on.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from lora_contenders import RANK, Contender, Ours, OwnProcess, Theirs, Turn, prepare
from memory_probe import environment
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.paths import REPOSITORY

Some = TypeVar("Some", bound=Contender)
MIB = 2**20
SEARCHED = {False: (1, 2, 4), True: (1, 2)}
"""Rows per step of TRL's configurations: padded, packed. Eight padded rows of SmolLM2 need 12 GB."""
WARM_UP, SEARCH = 500, 1500
"""Tokens of a contender's first turn, which does not count, and of a turn in the search."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from_weight", type=Path, required=True, help="the base: a GGUF file or a folder")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--turn_tokens", type=int, default=3000, help="useful tokens of a turn (default: 3000)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        base = hugging_face_folder(arguments.from_weight, Path(folder))
        report = measure(arguments, ("--from_weight", str(base), "--tokenizer_path", str(base), "--save_dir", folder,
                                     "--eval_share", "0", "--epochs", "1000", *flags))
    print_table(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def hugging_face_folder(weights: Path, folder: Path) -> Path:
    """Returns the folder that both read; writes it if the weights are a file.

    transformers would read a GGUF file too, but in float32, and its memory would count for TRL.
    """
    if weights.is_dir():
        return weights
    subprocess.run([sys.executable, REPOSITORY / "scripts/convert_model.py", "--weight", weights, "--to", "huggingface",
                    "--output", folder / "base"], check=True, stdout=subprocess.DEVNULL, env=environment(None))
    return folder / "base"


def measure(arguments: argparse.Namespace, flags: tuple[str, ...]) -> dict:
    methods = ["full SFT", "LoRA", *(["QLoRA"] if find_spec("bitsandbytes") else [])]
    ours = [Ours(method) for method in methods]
    searched = [Theirs(packed, rows) for packed in SEARCHED for rows in SEARCHED[packed]]
    prepare(flags)
    in_4_bits = "QLoRA" in methods
    turns = 2 * len(searched) + len(ours) + in_4_bits + arguments.rounds * (len(ours) + len(SEARCHED) + in_4_bits)
    search: dict[str, Turn] = {}
    with tqdm(total=turns, unit=" turns") as bar:
        places = best_of_theirs(searched, flags, search, bar)
        if in_4_bits:
            fastest = max((theirs for theirs, _ in places), key=lambda theirs: rate(search[theirs.name]))
            places.append(start(replace(fastest, in_4_bits=True), flags, bar))
        everyone = [*(start(one, flags, bar) for one in ours), *places]
        rounds = take_turns(everyone, arguments.rounds, arguments.turn_tokens, bar)
    for _, process in everyone:
        process.end()
    return {"command": " ".join(["python", "benchmarks/lora_speed.py", *sys.argv[1:]]),
            **{name: version(name) for name in ("torch", "transformers", "trl", "peft")},
            "machine": platform.machine(), "threads": torch.get_num_threads(), "rank": RANK,
            "search": {name: as_row([turn]) for name, turn in search.items()},
            "predicted_peak_mib": {one.name: round(one.predicted_peak(flags) / MIB) for one in ours},
            "contenders": {one.name: as_row([turns[place] for turns in rounds])
                           for place, (one, _) in enumerate(everyone)},
            "ratios": ratios([one.name for one, _ in everyone], rounds)}


def start(contender: Some, flags: tuple[str, ...], bar: tqdm) -> tuple[Some, OwnProcess]:
    """Starts a contender, and lets it take its first steps."""
    bar.set_description(contender.name)
    process = OwnProcess(contender, flags)
    process.turn(WARM_UP)
    bar.update()
    return contender, process


def best_of_theirs(searched: Sequence[Theirs], flags: tuple[str, ...], search: dict[str, Turn],
                   bar: tqdm) -> list[tuple[Theirs, OwnProcess]]:
    """Returns the fastest padded and the fastest packed configuration, started; fills in `search`."""
    best: dict[bool, tuple[Theirs, OwnProcess]] = {}
    for theirs in searched:
        _, process = start(theirs, flags, bar)
        search[theirs.name] = turn = process.turn(SEARCH)
        bar.update()
        loser = process
        if theirs.packed not in best or rate(turn) > rate(search[best[theirs.packed][0].name]):
            loser = best[theirs.packed][1] if theirs.packed in best else None
            best[theirs.packed] = theirs, process
        if loser:
            loser.end()
    return list(best.values())


def take_turns(places: Sequence[tuple[Contender, OwnProcess]], rounds: int, tokens: int,
               bar: tqdm) -> list[list[Turn]]:
    """Returns each round's turns in the order of `places`; another one begins in each round."""
    taken = []
    for number in range(rounds):
        order = [(number + place) % len(places) for place in range(len(places))]
        turns: dict[int, Turn] = {}
        for place in order:
            contender, process = places[place]
            bar.set_description(contender.name)
            turns[place] = process.turn(tokens)
            bar.update()
        taken.append([turns[place] for place in range(len(places))])
    return taken


def rate(turn: Turn) -> float:
    return turn.tokens / turn.seconds


def as_row(turns: Sequence[Turn]) -> dict[str, float]:
    rates = [rate(turn) for turn in turns]
    return {"useful_tokens_per_second": round(statistics.median(rates), 1), "least": round(min(rates), 1),
            "most": round(max(rates), 1), "peak_mib": round(max(turn.peak for turn in turns) / MIB)}


def ratios(names: Sequence[str], rounds: Sequence[Sequence[Turn]]) -> dict[str, dict[str, float]]:
    """Compares each with TRL's LoRA: with the faster of its two configurations in each round, and the lower peak."""
    lora = [place for place, name in enumerate(names) if name.startswith("TRL + PEFT, LoRA")]
    found = {}
    for place, name in enumerate(names):
        speeds = [rate(turns[place]) / max(rate(turns[theirs]) for theirs in lora) for turns in rounds]
        peak = rounds[-1][place].peak
        found[name] = {"speed": round(statistics.median(speeds), 3), "least": round(min(speeds), 3),
                       "most": round(max(speeds), 3),
                       "peak": round(peak / min(rounds[-1][theirs].peak for theirs in lora), 3)}
    return found


def print_table(report: dict) -> None:
    print(f"\n{'':<40}{'tokens/s':>10}{'spread':>14}{'peak':>12}{'x speed':>10}{'x peak':>9}"
          "   (of TRL + PEFT, LoRA)")
    for name, row in report["contenders"].items():
        spread, ratio = f"{row['least']:,.0f}-{row['most']:,.0f}", report["ratios"][name]
        predicted = f"   predicted {report['predicted_peak_mib'][name]:,} MiB" if name.startswith("ours") else ""
        print(f"{name:<40}{row['useful_tokens_per_second']:>10,.0f}{spread:>14}{row['peak_mib']:>8,.0f} MiB"
              f"{ratio['speed']:>10.2f}{ratio['peak']:>9.2f}{predicted}")


if __name__ == "__main__":
    run_program(main)
