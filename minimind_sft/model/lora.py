"""LoRA: learns a low-rank change of each matrix instead of the matrix itself (Hu et al. 2021, arXiv:2106.09685).

A projection y = W x becomes y = W x + scale * B A x, with A of shape (rank, inputs) and B of shape (outputs, rank). W
stays as it is. B starts at 0, so a run starts from exactly the base model. The scale is alpha / rank, or with rsLoRA
alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732). Merging adds scale * B A to W, so that nothing is left to
compute.

Local letter: r rank.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kernels.selection import accelerated
from minimind_sft.model.layers import gated
from minimind_sft.model.moe import Experts

STACKED = ("gate_proj", "up_proj", "down_proj")
"""The stacked matrices of `Experts`."""


@dataclass(frozen=True)
class LoraShape:
    """The shape of an adapter: how large it is, how strong, and where."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class LowRank(nn.Module):
    """The change scale * B A of a matrix, or of each of several stacked ones.

    Args:
        shape: of the matrix (O, I), or of the stack (E, O, I).
    """

    def __init__(self, shape: torch.Size, rank: int, scale: float):
        super().__init__()
        *stack, outputs, inputs = shape
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(*stack, rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(*stack, outputs, rank))
        for a_rI in self.lora_A.detach().view(-1, rank, inputs):
            nn.init.kaiming_uniform_(a_rI, a=math.sqrt(5))  # as nn.Linear, and as PEFT

    def delta(self) -> Tensor:
        """Returns scale * B A, of the shape of the matrix or of the stack."""
        return self.scale * (self.lora_B @ self.lora_A)


class LoRALinear(LowRank):
    """A projection with its adapter: base(x) + scale * B A dropout(x)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(torch.Size((base.out_features, base.in_features)), rank, scale)
        self.base = base
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TI: Tensor) -> Tensor:
        low_Tr = F.linear(self.dropout(x_TI), self.lora_A)
        # The narrow factor is scaled, and the sum is part of the product: nothing passes over (T, O) once more.
        return torch.addmm(self.base(x_TI), low_Tr * self.scale, self.lora_B.T)


class LoRAExperts(nn.Module):
    """Stacked experts with an adapter for each expert's matrices."""

    def __init__(self, base: Experts, names: tuple[str, ...], rank: int, scale: float, dropout: float = 0.0):
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(dropout)
        for name in STACKED:
            change = LowRank(base.get_parameter(name).shape, rank, scale) if name in names else None
            self.add_module(name, change)

    def forward(self, x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor) -> Tensor:
        matrices = [matrix for name in STACKED for matrix in self.factors(name)]
        return adapted_mixture(x_TD, weight_TC, chosen_TC, *matrices, dropout=self.dropout)

    def factors(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a stack W (E, O, I), and A (E, r, I) and scale * B (E, O, r) of its change; without one r is 0."""
        change, base_EOI = getattr(self, name), self.base.get_parameter(name)
        if change is None:
            return base_EOI, base_EOI[:, :0], base_EOI[:, :, :0]
        return base_EOI, change.lora_A, change.lora_B * change.scale

    def changed(self, name: str) -> Tensor:
        """Returns one of the base's stacks with its change."""
        base_EOI, a_ErI, b_EOr = self.factors(name)
        return base_EOI + b_EOr @ a_ErI


@accelerated
def adapted_mixture(x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor, *matrices: Tensor,
                    dropout: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the mixture of experts (moe.mixture) whose projections are W x + B A dropout(x).

    Args:
        matrices: stacks of W, A and B, three for each of gate, up and down.
    """
    def project(x: Tensor, w_OI: Tensor, a_rI: Tensor, b_Or: Tensor) -> Tensor:
        return F.linear(x, w_OI) + F.linear(F.linear(dropout(x), a_rI), b_Or)

    total_TD = torch.zeros_like(x_TD)
    for e, expert in enumerate(zip(*matrices, strict=True)):
        gate, up, down = expert[:3], expert[3:6], expert[6:]
        y_TD = project(gated(project(x_TD, *gate), project(x_TD, *up)), *down)
        total_TD = total_TD + (weight_TC * (chosen_TC == e)).sum(-1, keepdim=True) * y_TD
    return total_TD.to(matrices[-3].dtype)


def add_adapters(model: MiniMindForCausalLM, targets: list[str], shape: LoraShape) -> None:
    """Wraps the projections that `targets` name (lora_targets.py), and freezes everything else."""
    model.requires_grad_(False)
    stacks: dict[str, list[str]] = {}
    for name in targets:
        parent, _, own = name.rpartition(".")
        module = model.get_submodule(parent)
        if isinstance(module, Experts):
            stacks.setdefault(parent, []).append(own)
        else:
            linear = module.get_submodule(own)
            assert isinstance(linear, nn.Linear)
            setattr(module, own, LoRALinear(linear, shape.rank, shape.scale, shape.dropout))
    for name, matrices in stacks.items():
        parent, _, own = name.rpartition(".")
        experts = model.get_submodule(name)
        assert isinstance(experts, Experts)
        setattr(model.get_submodule(parent), own, LoRAExperts(
            experts, tuple(matrices), shape.rank, shape.scale, shape.dropout))


def adapted(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Yields each adapter of a model with the name of the projection that it changes."""
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            yield name, module


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that a run keeps: all, or with adapters only those that train.

    The others are the base's, which a resumed run reads again.
    """
    has_adapters = any(True for _ in adapted(model))
    return {name: parameter for name, parameter in model.named_parameters()
            if parameter.requires_grad or not has_adapters}


@torch.no_grad()
def merge_adapters(model: MiniMindForCausalLM) -> None:
    """Adds each change to its matrix and removes the adapters; the logits stay the same up to rounding."""
    for name, change in list(adapted(model)):
        if isinstance(change, LoRALinear):
            change.base.weight += change.delta().to(change.base.weight.dtype)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, change.base)
    for name, experts in [(name, module) for name, module in model.named_modules() if isinstance(module, LoRAExperts)]:
        for matrix in STACKED:
            experts.base.get_parameter(matrix).copy_(experts.changed(matrix))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, experts.base)
