"""Measures the memory of real training steps in a process of their own.

    python benchmarks/memory_probe.py '{"preset": "demo", "micro_batches": [[512, 512], [1024]]}'

prints `{"peak": ..., "before": ..., "steps": [...]}` in bytes: the process's peak resident memory (on CUDA, what
PyTorch allocated), its memory before the model existed, and the peak up to each step. It takes three steps, because the
optimizer creates its moments at the end of the first.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from minimind_sft.data.batching import StepBatch, collate
from minimind_sft.data.example import make_example
from minimind_sft.model.config import PRESETS, ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.quantized import quantize
from minimind_sft.paths import REPOSITORY
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.training.adapting import attach, hold_frozen_matrices
from minimind_sft.training.distributed import Ranks, join_ranks
from minimind_sft.training.freezing import freeze
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.memory import Plan
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import parallelize


@dataclass(frozen=True)
class Probe:
    """The steps to measure; each takes `micro_batches`, lists of document lengths."""

    micro_batches: Sequence[Sequence[int]]
    preset: str = "demo"
    model: dict = field(default_factory=dict)
    """How the model differs from the preset."""
    dtype: str = "bfloat16"
    gradient_checkpointing: bool = False
    supervised_share: float = 1.0
    freeze: Sequence[str] = ()
    lora: dict | None = None
    """Settings of adapters; None: everything trains."""
    device: str = "cpu"
    parallel: str = "ddp"
    steps: int = 3

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(**{**asdict(PRESETS[self.preset]), "rope_scaling": None, **self.model})

    @property
    def plan(self) -> Plan:
        """The same run for the memory estimate."""
        return Plan(max(map(sum, self.micro_batches)), max(map(max, self.micro_batches)), getattr(torch, self.dtype),
                    on_cpu=self.device == "cpu", gradient_checkpointing=self.gradient_checkpointing,
                    several_micro_batches=len(self.micro_batches) > 1, supervised_share=self.supervised_share,
                    freeze=tuple(self.freeze), lora=self.adapters)

    @property
    def adapters(self) -> LoraSettings | None:
        return None if self.lora is None else LoraSettings(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in self.lora.items()})


def measure(probe: Probe, threads: int | None = None) -> dict:
    """Takes these steps in a fresh process; returns what it prints.

    Raises:
        RuntimeError: if it fails, with its output.
    """
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(probe))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(threads))
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def environment(threads: int | None) -> dict[str, str]:
    search = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": search, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


def random_step(probe: Probe, step: int) -> StepBatch:
    random = np.random.default_rng(step)

    def example(tokens: int):
        supervised = np.arange(tokens + 1) >= (1 - probe.supervised_share) * (tokens + 1)
        return make_example(random.integers(0, probe.config.vocab_size, tokens + 1), supervised)

    micro_batches = tuple(collate([example(tokens) for tokens in one]) for one in probe.micro_batches)
    return StepBatch(step, 0, (), micro_batches, sum(one.supervised for one in micro_batches),
                     sum(len(one.input_ids) for one in micro_batches))


def take_steps(probe: Probe, ranks: Ranks) -> dict:
    before, dtype = resident("VmRSS"), getattr(torch, probe.dtype)
    torch.manual_seed(0)
    model = MiniMindForCausalLM(probe.config).to(ranks.device)
    model.model.gradient_checkpointing = probe.gradient_checkpointing
    if probe.adapters:
        if probe.adapters.quantize != "none":
            quantize(model, probe.adapters.quantize)
        attach(model, probe.adapters)
        hold_frozen_matrices(model, dtype)
    freeze(model, probe.freeze)
    loaded = resident("VmHWM")
    keep_freed_memory()  # from here on, as in `fit`
    wrapped = parallelize(model, ranks, probe.parallel, dtype)
    optimizer, scaler = build_optimizer(model, 1e-4, 0.1), torch.amp.GradScaler(enabled=False)
    learner, peaks = Learner(model, wrapped, optimizer, scaler, ranks, dtype), []
    for step in range(probe.steps):
        train_step(learner, random_step(probe, step), 1.0)
        peaks.append(torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else resident("VmHWM"))
    return {"peak": peaks[-1], "before": before, "loaded": loaded, "steps": peaks}


def resident(what: str) -> int:
    """Returns the bytes this process has in memory now ("VmRSS"), or had at its peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


if __name__ == "__main__":
    asked = Probe(**json.loads(sys.argv[1]))
    with join_ranks(asked.device, 600.0) as joined:
        answer = take_steps(asked, joined)
    if joined.is_main:
        print(json.dumps(answer))
