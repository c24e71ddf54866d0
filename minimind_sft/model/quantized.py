"""Keeps frozen matrices in 4 bits: the base of QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

NF4 cuts a matrix into blocks of 64 weights. A block keeps its largest absolute value, and for each weight which of 16
levels times that value is nearest; the levels are quantiles of a normal distribution. Double quantisation keeps the
blocks' values in 8 bits. Together that is 4.13 bits per weight. Products dequantise the matrix first, in the precision
of their input, and the backward pass does so again: no pass leaves a copy behind.

The bitsandbytes package quantises and dequantises, on every device that it supports.
"""

import copy
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.errors import UserError, first_line
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.loaded import Weights
from minimind_sft.model.precision import matmul_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The precisions that bitsandbytes dequantises to."""


class NF4Linear(nn.Linear):
    """A frozen projection whose matrix is kept in 4 bits; its bias stays as it is."""

    def __init__(self, linear: nn.Linear):
        """Quantises the float32 values of `linear` on the CPU, so that every device gets the same levels."""
        nn.Module.__init__(self)  # nn.Linear's would make a matrix
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach().to("cpu", torch.float32)
        functional = bitsandbytes()
        packed, self.state = functional.quantize_4bit(weight_OI, compress_statistics=True, quant_type="nf4")
        self._dequantize = functional.dequantize_4bit  # the compiler warns of `bitsandbytes`, which caches
        self.packed: Tensor
        self.register_buffer("packed", packed, persistent=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(matmul_dtype(x))
        bias_O = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, bias_O, self.dequantised)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Returns the matrix (O, I) that the 4 bits stand for."""
        state = copy.copy(self.state)
        state.dtype = dtype if dtype in DTYPES else torch.float32
        return self._dequantize(self.packed, state).to(dtype)

    @property
    def nbytes(self) -> int:
        """Returns the memory of the matrix in 4 bits, in bytes."""
        kept = (self.packed, self.state.absmax, self.state.state2.absmax)
        return sum(tensor.nbytes for tensor in kept)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NF4Linear":
        """Moves the statistics with the matrix; no change of the model's precision may round them."""
        super()._apply(fn, recurse)
        self.state.to(self.packed.device)
        return self


class _Product(torch.autograd.Function):
    """Computes x W^T + b, and in the backward pass g W. Neither keeps W (O, I), which is dequantised for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias_O: Tensor | None, dequantised: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.dequantised = dequantised
        return F.linear(x, dequantised(x.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        g, = gradients
        return g @ ctx.dequantised(g.dtype), None, None


def base_model(weights: Weights, kind: str, dropout: float = 0.0) -> MiniMindForCausalLM:
    """Builds the model of the weights; `kind` is `--quantize`.

    A quantised model never is in memory in float32: each layer is quantised before the next one is read.

    Raises:
        UserError: if the weights cannot be used, or cannot be quantised here.
    """
    if kind == "none":
        return weights.build_model(dropout)
    check_quantisable(weights.config)
    return weights.build_model(dropout, quantize_projections)


def quantize(model: MiniMindForCausalLM, kind: str) -> None:
    """Replaces the projections of all layers by quantised ones; head, embeddings and norms stay as they are.

    Raises:
        UserError: for a mixture of experts, or if bitsandbytes is missing or cannot run.
    """
    assert kind == "nf4", kind
    check_quantisable(model.config)
    for layer in model.model.layers:
        quantize_projections(layer)


def check_quantisable(config: ModelConfig) -> None:
    """
    Raises:
        UserError: for a mixture of experts, or if bitsandbytes is missing or cannot run.
    """
    if config.use_moe:
        raise UserError("--quantize nf4: the stacked experts of a mixture cannot be quantised; use a dense model")
    bitsandbytes()


def quantize_projections(layer: nn.Module) -> None:
    """Replaces the projections of one layer, one after the other."""
    for module in list(layer.modules()):
        for name, linear in list(module.named_children()):
            if type(linear) is nn.Linear:
                setattr(module, name, NF4Linear(linear))


def check_trains_no_4_bits(model: nn.Module, names: Sequence[str]) -> None:
    """
    Raises:
        UserError: if one of the modules that `--modules_to_save` names has a matrix in 4 bits.
    """
    for name in names:
        if quantised_weights(model.get_submodule(name)):
            raise UserError(f"--modules_to_save {name}: --quantize nf4 keeps its matrix in 4 bits, which cannot train")


def check_replaces_no_4_bits(model: nn.Module, parameters: Iterable[str], path: Path) -> None:
    """
    Raises:
        UserError: if one of the parameters that the adapter at `path` trained in full belongs to a matrix in 4 bits.
    """
    for name in parameters:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), NF4Linear):
            raise UserError(f"{path}: {name} was trained in full, but --quantize nf4 keeps that matrix in 4 bits")


def quantised_weights(model: nn.Module) -> int:
    """Counts the weights that are kept in 4 bits; they are no parameters."""
    return sum(linear.in_features * linear.out_features for linear in model.modules() if isinstance(linear, NF4Linear))


def describe_quantised(model: nn.Module) -> str:
    """Returns how much memory the quantised matrices take, in a line."""
    size = sum(linear.nbytes for linear in model.modules() if isinstance(linear, NF4Linear))
    weights = quantised_weights(model)
    return f"{weights:,} weights in 4 bits (nf4): {size / 2**20:.1f} MiB instead of {weights * 4 / 2**20:.1f}"


@cache
def bitsandbytes() -> Any:
    """Returns the functions of bitsandbytes, once they have shown that they run on this machine.

    Raises:
        UserError: saying how to install it, or what went wrong.
    """
    try:
        functional = _imported()
    except ImportError as error:
        raise UserError("--quantize nf4 needs the bitsandbytes package: pip install 'minimind-sft[qlora]' "
                        f"({first_line(error)})") from error
    except Exception as error:  # whatever its native library raises on this machine
        raise UserError(f"--quantize nf4: bitsandbytes cannot be loaded ({first_line(error)})") from error
    try:
        levels_OI = torch.linspace(-1, 1, 128).view(2, 64)
        packed, state = functional.quantize_4bit(levels_OI, compress_statistics=True, quant_type="nf4")
        right = (functional.dequantize_4bit(packed, state) - levels_OI).abs().max() < 0.2
    except Exception as error:
        raise UserError(f"--quantize nf4: bitsandbytes cannot run here ({first_line(error)})") from error
    if not right:
        raise UserError("--quantize nf4: bitsandbytes computes wrong values here")
    return functional


def _imported() -> ModuleType:
    """Imports bitsandbytes without a kernel from elsewhere.

    Where the package `kernels` is installed, bitsandbytes downloads native code for a product that is not used here;
    where it is not, it warns.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, kernels = logger.level, sys.modules.get("kernels")
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # importing it then fails
    try:
        import bitsandbytes.functional
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
    return bitsandbytes.functional
