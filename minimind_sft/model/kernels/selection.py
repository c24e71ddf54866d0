"""Decides which implementation of a formula runs: the plain one, or a kernel of this folder.

The model is defined by plain formulas. Where one is marked `@accelerated`, a call runs the kernel that
`implementation` names for it; `plain_formulas()` runs the formulas themselves instead.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.model.kernels import cross_entropy, gated, grouped_experts, norm, rope
from minimind_sft.model.kernels.padded_attention import PaddedAttention
from minimind_sft.model.precision import matmul_dtype

SHORT = 384
"""Up to this (padded) length a CPU keeps the attention weights of documents, see short_attention.py."""

Attend = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]
"""attend(q_THK, k_TGK, v_TGK, window) -> out_THK, for the documents it was made for."""

_plain: set[str] = set()

FORMULAS = ("rms_norm", "layer_norm", "apply_rope", "gated", "cross_entropy_sum", "mixture",
            "adapted_mixture", "document_attention")


def accelerated(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Marks a plain formula that has kernels. `__wrapped__` of the result is the formula itself."""
    @wraps(formula)
    def run(*tensors: Tensor, **options: Any) -> Tensor:
        return implementation(formula, *tensors)(*tensors, **options)
    return run


def implementation(formula: Callable[..., Tensor], *tensors: Tensor) -> Callable[..., Tensor]:
    """Returns what computes `formula` fastest for these tensors."""
    if formula.__name__ in _plain:
        return formula
    match formula.__name__:
        case "rms_norm":
            return norm.rms_norm if tensors[0].device.type == "cpu" else norm.pytorch_rms_norm
        case "layer_norm":
            return norm.pytorch_layer_norm
        case "apply_rope":
            return rope.apply_rope
        case "gated":
            return gated.gated
        case "cross_entropy_sum":
            return cross_entropy.cross_entropy_sum
        case "mixture" | "adapted_mixture":
            multiply = grouped_experts.grouped_mm if can_be_grouped(*tensors) else grouped_experts.looped_mm
            return partial(getattr(grouped_experts, formula.__name__), multiply=multiply)
    raise KeyError(formula.__name__)


@contextmanager
def plain_formulas(*names: str) -> Iterator[None]:
    """Runs formulas as they are written: those of these names (of FORMULAS), or all."""
    assert set(names) <= set(FORMULAS), names
    before = set(_plain)
    _plain.update(names or FORMULAS)
    try:
        yield
    finally:
        _plain.clear()
        _plain.update(before)


def can_be_grouped(x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor, *weights: Tensor) -> bool:
    """Whether PyTorch's grouped multiply takes these: rows of whole 16 bytes, no float64, and not on an Apple GPU.

    On CUDA it is one kernel for bfloat16 from compute capability 9.0 on, else a loop inside PyTorch that waits for
    the group sizes; a compiler knows it for bfloat16 only; without tokens there is nothing to launch.
    """
    dtype = matmul_dtype(weights[0])
    dtypes = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.bfloat16, torch.float16, torch.float32)
    whole = all(size * dtype.itemsize % 16 == 0 for weight in weights for size in weight.shape[1:])
    return dtype in dtypes and whole and weights[0].device.type != "mps" and len(x_TD) > 0


def attention_kernel(cu_seqlens: Sequence[int], v_TGK: Tensor, dropout: float) -> Attend | None:
    """Returns the fastest kernel for attention.document_attention over these documents; None: the formula itself.

    Args:
        v_TGK: values like those it will be called with.
    """
    if "document_attention" in _plain:
        return None
    if v_TGK.device.type == "cuda" and varlen_fits(v_TGK, dropout):
        from minimind_sft.model.kernels.varlen_attention import VarlenAttention  # takes a second to import

        return VarlenAttention(cu_seqlens, v_TGK.device)
    return PaddedAttention(cu_seqlens, v_TGK, dropout, short=0 if dropout or v_TGK.device.type != "cpu" else SHORT)


def varlen_fits(v_TGK: Tensor, dropout: float) -> bool:
    """Whether PyTorch's varlen attention takes values like these, on this GPU, in this release."""
    if dropout or not len(v_TGK) or v_TGK.dtype not in (torch.bfloat16, torch.float16) or v_TGK.shape[-1] % 8:
        return False
    if torch.cuda.get_device_capability(v_TGK.device) < (8, 0):
        return False
    from minimind_sft.model.kernels.varlen_attention import groups_heads

    return groups_heads()


def fill_up(positions_N: Tensor) -> Tensor:
    """Repeats position 0 until the number of positions is one that the cross-entropy kernel computes fast."""
    return F.pad(positions_N, (0, -len(positions_N) % cross_entropy.ROWS))


def skips_unread_positions(device: torch.device) -> bool:
    """Whether the last layer leaves out its feed-forward network at positions that the head does not read.

    A CPU does. A GPU does not: their number differs in every batch, and each number would be compiled anew.
    """
    return device.type == "cpu"
