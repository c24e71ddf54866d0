"""Times a training step with experts beside that of a dense model with as many active parameters.

    python benchmarks/moe_speed.py --rounds 25 --json benchmarks/results/moe_speed.json

Both models multiply each token by about 30 million parameters. The mixture has 4 experts and sends each token to one;
it converts, clips and updates all of its 91 million parameters. Whole steps of `train_step` (forward, backward,
clipping, AdamW) over the same documents take turns: dense, experts with one grouped multiply, experts in a loop. The
ratio to the dense step is taken within a round, so that other load slows both sides.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peak import timed_dtypes
from tqdm import tqdm

from minimind_sft.data.batching import BatchLayout, StepBatch, TrainingSteps
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.example import make_example
from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.errors import run_program
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kernels import selection
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer

MAX_RATIO = 1.35
SHAPE = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1664}
MODELS = {"dense": ModelConfig(**SHAPE), "experts": ModelConfig(**SHAPE, use_moe=True)}
CONTENDERS = {"dense": "dense", "grouped": "experts", "loop": "experts"}
"""Each contender's model; two of them share one."""


@dataclass
class Bench:
    """The models with their optimizers, and the steps that all contenders take."""

    ranks: Ranks
    dtype: torch.dtype
    steps: list[StepBatch]

    def __post_init__(self) -> None:
        keep_freed_memory()
        self.learners = {}
        for name, config in MODELS.items():
            torch.manual_seed(0)
            model = MiniMindForCausalLM(config).train().to(self.ranks.device)
            scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=False)
            optimizer = build_optimizer(model, 1e-4, 0.1)
            self.learners[name] = Learner(model, model, optimizer, scaler, self.ranks, self.dtype)

    def seconds(self, contender: str, step: int) -> float:
        learner = self.learners[CONTENDERS[contender]]
        usual = selection.can_be_grouped
        if contender == "loop":
            selection.can_be_grouped = lambda *tensors: False
        try:
            start = time.perf_counter()
            result = train_step(learner, self.steps[step], 1.0)
            if self.ranks.device.type == "cuda":
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - start
        finally:
            selection.can_be_grouped = usual
        assert result.skipped is None
        return elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each contender (default 15)")
    parser.add_argument("--tokens", type=int, default=1300, help="tokens of a step (default 1300)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"),
                        help="(default auto: bfloat16 where the device computes in it)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()

    device = resolve_device(arguments.device)
    dtype = resolve_dtype(arguments.dtype, device)
    if not timed_dtypes([dtype], device):
        return 0
    bench = Bench(Ranks(0, 1, device), dtype, documents(arguments.tokens))
    seconds = {contender: [] for contender in CONTENDERS}
    for round_ in tqdm(range(-2, arguments.rounds), unit="round"):  # two warm-up rounds
        for contender, own in seconds.items():
            elapsed = bench.seconds(contender, round_ % len(bench.steps))
            if round_ >= 0:
                own.append(elapsed)
    rows = {contender: summary(own, seconds["dense"]) for contender, own in seconds.items()}
    print(f"| {'step':<8} | {'seconds':>8} | {'x dense':>8} | {'quartiles':>13} |\n|{'-' * 10}|{'-' * 9}:|{'-' * 9}:|"
          f"{'-' * 14}:|")
    for contender, row in rows.items():
        low, high = row["quartiles"]
        print(f"| {contender:<8} | {row['seconds']:8.3f} | {row['x_dense']:8.2f} | {low:5.2f} to {high:4.2f} |")
    print(f"\nwanted: grouped at most {MAX_RATIO} x dense")
    if arguments.json:
        record = {"command": " ".join(["python", "benchmarks/moe_speed.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "device": str(device), "dtype": str(dtype).removeprefix("torch."),
                  "threads": torch.get_num_threads(), "tokens": bench.steps[0].real_tokens, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(rows["grouped"]["x_dense"] > MAX_RATIO)


def documents(tokens: int) -> list[StepBatch]:
    """Makes four steps of about `tokens` tokens, in documents of about 90, half of them supervised."""
    random = np.random.default_rng(0)
    per_step = max(tokens // 90, 1)
    lengths = random.integers(20, 161, 4 * per_step)
    dataset = ExampleDataset([[make_example(random.integers(0, 6400, length), random.random(length) < 0.5)]
                              for length in lengths])
    steps = TrainingSteps(dataset, BatchLayout(4 * tokens + 1000), epochs=1, samples_per_step=per_step, seed=1)
    return [steps[i] for i in range(4)]


def summary(own: list[float], dense: list[float]) -> dict:
    """Returns median seconds, and median and quartiles of the ratio to the dense step of the same round."""
    ratios = [one / other for one, other in zip(own, dense, strict=True)]
    return {"seconds": statistics.median(own), "x_dense": statistics.median(ratios),
            "quartiles": [float(x) for x in np.quantile(ratios, (0.25, 0.75))]}


if __name__ == "__main__":
    run_program(main)
