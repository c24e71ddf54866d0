"""Measures what a resume state costs, written while training waits and in the background (--async_save 1).

    python benchmarks/save_speed.py --json benchmarks/results/save_speed.json

Each round trains the same number of steps three times, in changing order: without a state, with one that training waits
for, and with one written in the background. The table shows how long training stood still, and how much later its steps
were done than without a state, since the writing thread takes its share of the machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from moe_speed import documents
from tqdm import tqdm

from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.errors import UserError, run_program
from minimind_sft.model.config import PRESETS
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.resume_state import TrainState
from minimind_sft.writing import check_writable

WAITS = {"waiting": True, "in the background": False}


class Training:
    """A model in training, and a folder for its states."""

    def __init__(self, preset: str, tokens: int, device: torch.device, checkpoints: Checkpoints):
        keep_freed_memory()
        torch.manual_seed(0)
        self.model = MiniMindForCausalLM(PRESETS[preset]).train().to(device)
        self.optimizer = build_optimizer(self.model, 1e-4, 0.1)
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.dtype = resolve_dtype("auto", device)
        self.batches = documents(tokens)
        self.checkpoints = checkpoints
        self.states = 0

    def steps(self, count: int) -> None:
        learner = Learner(self.model, self.model, self.optimizer, self.scaler, self.checkpoints.ranks, self.dtype)
        for number in range(count):
            train_step(learner, self.batches[number % len(self.batches)], 1.0)
            if not self.checkpoints.is_writing:
                self.checkpoints.advance()

    def turn(self, steps: int, wait: bool | None) -> tuple[float, float]:
        """Returns the seconds that training stood still, and its total, for some steps; `wait` None writes no state."""
        start = time.perf_counter()
        if wait is not None:
            self.save(wait)
        stood_still = time.perf_counter() - start
        self.steps(steps)
        self.checkpoints.finish()
        if self.checkpoints.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return stood_still, time.perf_counter() - start

    def save(self, wait: bool) -> None:
        self.states += 1
        self.checkpoints.save(TrainState(step=self.states), self.model, self.optimizer, self.scaler, wait)

    def bytes_of_a_state(self) -> int:
        return sum(file.stat().st_size for file in max(self.checkpoints.folder.glob("step-*")).iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="26m", choices=PRESETS, help="model (default: 26m)")
    parser.add_argument("--tokens", type=int, default=1300, help="tokens of a step (default: 1300)")
    parser.add_argument("--steps", type=int, default=4, help="steps after each state (default: 4)")
    parser.add_argument("--rounds", type=int, default=9, help="states of each kind (default: 9)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--folder", type=Path, help="where the states are written (default: the system's for temporary "
                                                    "files)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    for name in ("tokens", "steps", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}, expected at least 1")
    if arguments.folder:
        check_writable(arguments.folder, "--folder")

    device = resolve_device(arguments.device)
    kinds = [None, *WAITS.values()]
    rounds = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, Checkpoints(
            Path(folder) / "states", keep=1, ranks=Ranks(0, 1, device), fresh=True) as checkpoints:
        training = Training(arguments.preset, arguments.tokens, device, checkpoints)
        training.turn(2, wait=True)
        for number in tqdm(range(arguments.rounds), unit="round"):
            first = number % len(kinds)
            rounds.append({wait: training.turn(arguments.steps, wait) for wait in kinds[first:] + kinds[:first]})
        size = training.bytes_of_a_state()
    rows = {}
    for kind, wait in WAITS.items():
        later = [round_[wait][1] - round_[None][1] for round_ in rounds]
        rows[kind] = {"stood_still": statistics.median(round_[wait][0] for round_ in rounds),
                      "later": statistics.median(later), "later_least_and_most": [min(later), max(later)]}
    print(f"a state of {size / 1e6:,.0f} MB; seconds, median of {arguments.rounds} rounds\n")
    print(f"{'written':<20}{'stood still':>12}{'steps later by':>16}   least to most")
    for kind, row in rows.items():
        least, most = row["later_least_and_most"]
        print(f"{kind:<20}{row['stood_still']:12.2f}{row['later']:16.2f}   {least:.2f} to {most:.2f}")
    if arguments.json:
        record = {"command": " ".join(["python", "benchmarks/save_speed.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads(),
                  "preset": arguments.preset, "tokens": arguments.tokens, "steps": arguments.steps,
                  "rounds": arguments.rounds, "bytes": size, "seconds": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_program(main)
