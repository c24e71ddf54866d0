"""Relates the work of a step to what the device can do: FLOPs, the peak of its matrix products, its memory.

FLOPs are those that the model needs, whatever is computed again or padded: as in PaLM's "model FLOPs utilization"
(Chowdhery et al. 2022, arXiv:2204.02311, appendix B), with two per weight and token in the forward pass.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import nn

from minimind_sft.data.batching import StepBatch
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.kernels.selection import skips_unread_positions
from minimind_sft.model.quantized import quantised_weights
from minimind_sft.training.learner import Learner

SMALLEST, LARGEST = 256, 4096
"""Sizes of the square matrices that are multiplied to find the peak."""
LONG_ENOUGH = 0.002
"""Seconds of one product after which no larger one is tried."""
REPEATS = 3
MIB = 2**20


@dataclass(frozen=True)
class Work:
    """The work of some steps.

    tokens, supervised_tokens: of all ranks.
    peak_seconds: how long this rank would need for its part at the peak of its matrix products; None if unknown.
    """

    tokens: int = 0
    supervised_tokens: int = 0
    peak_seconds: float | None = 0.0

    def __add__(self, other: "Work") -> "Work":
        seconds = None
        if self.peak_seconds is not None and other.peak_seconds is not None:
            seconds = self.peak_seconds + other.peak_seconds
        return Work(self.tokens + other.tokens, self.supervised_tokens + other.supervised_tokens, seconds)


class Meter:
    """Tells the work of each step; measures the matmul peak once, on the main rank."""

    def __init__(self, learner: Learner):
        ranks = learner.ranks
        self._cost = StepCost.of(learner.model, ranks.device)
        self._peak = matmul_peak(ranks.device, learner.dtype) if ranks.is_main else None

    def work(self, batch: StepBatch) -> Work:
        """Returns the work of a step."""
        return Work(batch.real_tokens, batch.supervised_tokens,
                    self._cost.flops(batch) / self._peak if self._peak else None)


@dataclass(frozen=True)
class StepCost:
    """The FLOPs of one rank's part of a step, forward and backward.

    per_token: of the matrices that every token passes through.
    per_supervised: of those that only supervised ones do: the head, and on a CPU the last feed-forward network.
    per_pair: of attention, for each pair of a token and one it attends to; {sliding window of some layers: their sum}.
    """

    per_token: float
    per_supervised: float
    per_pair: Mapping[int | None, float]

    @classmethod
    def of(cls, model: MiniMindForCausalLM, device: torch.device) -> Self:
        """Counts for a model whose frozen parts stay so: these need no gradient of their weights, and none of their
        inputs if nothing below them trains."""
        config = model.config
        active = config.num_experts_per_tok / config.num_experts if config.use_moe else 1.0
        layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        reached = any(parameter.requires_grad for name, child in model.model.named_children()
                      if name.startswith("embed_") for parameter in child.parameters())
        per_token = last = 0.0
        per_pair: Counter[int | None] = Counter()
        for layer in layers:
            reached = reached or any(parameter.requires_grad for parameter in layer.parameters())
            last = _matrices(layer.mlp, reached, active)
            per_token += _matrices(layer.self_attn, reached) + last
            passes = 3 if reached else 1
            per_pair[layer.self_attn.window] += passes * 4 * config.num_attention_heads * config.head_dim
        per_supervised = _matrices(model.lm_head, reached)
        if skips_unread_positions(device):
            per_token, per_supervised = per_token - last, per_supervised + last
        return cls(per_token, per_supervised, per_pair)

    def flops(self, batch: StepBatch) -> float:
        """Returns the FLOPs of this rank's micro-batches."""
        tokens = sum(one.cu_seqlens[-1] for one in batch.micro_batches)
        supervised = sum(one.supervised for one in batch.micro_batches)
        lengths = [end - start for one in batch.micro_batches for start, end in pairwise(one.cu_seqlens)]
        attention = sum(flops * sum(_pairs(length, window) for length in lengths)
                        for window, flops in self.per_pair.items())
        return self.per_token * tokens + self.per_supervised * supervised + attention


def _pairs(length: int, window: int | None) -> int:
    """Returns how many tokens the tokens of a document attend to, all together."""
    unread = 0 if window is None else max(length - window, 0)
    return (length * (length + 1) - unread * (unread + 1)) // 2


def _matrices(module: nn.Module, reached: bool, active: float = 1.0) -> float:
    """Returns the FLOPs per token of a module's matrices; `active` is the share of stacked ones that a token uses."""
    flops = (4.0 if reached else 2.0) * quantised_weights(module)
    for parameter in module.parameters():
        if parameter.dim() >= 2:
            passes = 1 + reached + parameter.requires_grad
            flops += 2.0 * passes * parameter.numel() * (active if parameter.dim() == 3 else 1.0)
    return flops


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Measures how many FLOPs per second the device reaches in one large matrix product; None if it has no room.

    It takes some hundredths of a second, draws no random numbers and leaves no memory in use.
    """
    best, size = 0.0, SMALLEST
    with suppress(torch.OutOfMemoryError):
        while size <= LARGEST:
            matrix = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)
            torch.mm(matrix, matrix)  # sets up the kernel
            seconds = min(_seconds(matrix, device) for _ in range(REPEATS))
            best = max(best, 2.0 * size**3 / seconds)
            if seconds > LONG_ENOUGH:
                break
            size *= 2
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best or None


def _seconds(matrix: torch.Tensor, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    _wait_for(device)
    return max(time.perf_counter() - start, 1e-9)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> float | None:
    """Returns in MiB the most memory so far: on a CPU that of this process, on a GPU what PyTorch had allocated.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / MIB, 1)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    if device.type != "cpu":
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(largest / (MIB if sys.platform == "darwin" else 1024), 1)
