"""Counts the code that one line of JSONL passes through on its way to one optimizer step.

    python proofs/row_path.py --json proofs/results/row_path.json

The trainer's own functions read, encode and batch a conversation of one question and one answer, and train on it for a
step. Every function of minimind_sft that they enter counts once, with the lines of its source. Setting up (tokenizer,
template, model, optimizer) does not count, and neither does the folder of prepared data. The line passes twice, and the
second time counts, when all caches are filled.
"""

import argparse
import inspect
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import minimind_sft
from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.chat_template import make_template
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.reading import parse_raw_row, read_raw_rows
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer

PACKAGE = Path(minimind_sft.__file__).parent
LINE = {"conversations": [{"role": "user", "content": "What is 2 plus 2?"}, {"role": "assistant", "content": "4."}]}
MAX_SEQ_LEN = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the functions to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "row.jsonl")
        file.write_text(json.dumps(LINE) + "\n", encoding="utf-8")
        take_step = prepare_step(file)
        take_step()
        files = by_file(functions_entered(take_step))
    counts = totals(files)
    for name, functions in files.items():
        print(f"{name:<34}{len(functions):>4} functions{sum(functions.values()):>6} lines  {', '.join(functions)}")
    print(", ".join(f"{count:,} {what}" for what, count in counts.items()))
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/row_path.py", *sys.argv[1:]]), **counts, "path": files}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def prepare_step(file: Path) -> Callable[[], None]:
    """Sets up what a run sets up once; returns what it does with the one line of a file."""
    encoder = SFTEncoder(make_template(load_tokenizer(None), None, None), MAX_SEQ_LEN)
    model = MiniMindForCausalLM(ModelConfig(hidden_size=64, num_hidden_layers=2))
    learner = Learner(model, model, build_optimizer(model, 1e-3, 0.1), torch.amp.GradScaler("cpu", enabled=False),
                      Ranks(0, 1, torch.device("cpu")), torch.float32)

    def take_step() -> None:
        (row,) = read_raw_rows(file)
        (encoded,) = encoder.encode([(row.place, parse_raw_row(row))])
        dataset = ExampleDataset(encoded.samples)
        steps = TrainingSteps(dataset, BatchLayout(MAX_SEQ_LEN), epochs=1, samples_per_step=1, seed=1)
        result = train_step(learner, steps[0], grad_clip=1.0)
        assert result.skipped is None

    return take_step


def functions_entered(action: Callable[[], None]) -> set[CodeType]:
    """Returns the named functions of the package that `action` enters; comprehensions and lambdas belong to theirs."""
    entered: set[CodeType] = set()

    def enter(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and Path(code.co_filename).is_relative_to(PACKAGE) and not code.co_name.startswith("<"):
            entered.add(code)

    sys.setprofile(enter)
    try:
        action()
    finally:
        sys.setprofile(None)
    return entered


def by_file(functions: set[CodeType]) -> dict[str, dict[str, int]]:
    """Returns the lines of each function, by file and name."""
    files: dict[str, dict[str, int]] = {}
    for code in sorted(functions, key=lambda one: (one.co_filename, one.co_firstlineno)):
        file = files.setdefault(str(Path(code.co_filename).relative_to(PACKAGE)), {})
        file[code.co_qualname] = len(inspect.getsourcelines(code)[0])
    return files


def totals(files: dict[str, dict[str, int]]) -> dict[str, int]:
    return {"functions": sum(map(len, files.values())), "files": len(files),
            "lines": sum(sum(functions.values()) for functions in files.values())}


if __name__ == "__main__":
    sys.exit(main())
