"""Packs matrices for products with few rows, as in decoding one token of several sequences.

Such a product reads each weight once and does little with it, so reading takes most of the time. FBGEMM's kernel, which
PyTorch ships for x86, reads weights packed as float16, widens them in registers and computes in float32. That halves
the bytes and keeps the weights exact if float16 can hold them, as in every file saved in half precision. Other float32
weights are packed as they are, by oneDNN.

Prompts have many rows, so arithmetic takes most of the time. For them, bfloat16 weights are packed once more, in
bfloat16 by oneDNN, where the processor multiplies it.

Every row of a product has the same bits whichever rows are beside it, which `F.linear` does not promise. So a sequence
gets the same tokens alone and among others (row_invariance.py checks it).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.device import cpu_multiplies_bfloat16

Product = Callable[[Tensor], Tensor]
"""product(x_TI) -> y_TO: x times the transposed weights, plus their bias if they have one."""

Pack = Callable[[Sequence[Tensor], Tensor | None], Product]
"""pack(weights_OI, bias_O) -> product with all these weights, whose outputs follow one another in O, plus the bias."""

EXPECTED_ROWS = 16
"""oneDNN arranges weights for about so many rows. Any number can be multiplied."""

ONE_THREAD_OPERATOR = "fbgemm_linear_fp16_weight_fp32_activation"
"""Calls the same kernel as `quantized::linear_dynamic_fp16` in 1 microsecond instead of 8, but in one thread."""

SMALL = 2**18
"""For so many weights, calling an operator costs more than other threads or bfloat16 arithmetic save."""

FEW_PRODUCTS = 2**21
"""Rows times weights up to which that is so for other threads; beyond, both operators are kept."""


def plain(weights: Sequence[Tensor], bias_O: Tensor | None = None) -> Product:
    """Returns the product as the model computes it, on the model's own weights."""
    def product(x_TI: Tensor) -> Tensor:
        y_TO = torch.cat([F.linear(x_TI, weight.to(x_TI.dtype)) for weight in weights], dim=-1)
        return y_TO if bias_O is None else y_TO.add_(bias_O)
    return product


class HalfProduct:
    """Multiplies in float32 with weights packed as float16.

    Args:
        scale: a power of two, times which float16 holds all weights (`half_scale`).
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None, scale: float = 1.0):
        self._inverse_scale = 1 / scale
        weight_OI = weight_OI.detach().float() * scale
        bias_O = None if bias_O is None else bias_O.detach().float() * scale
        self._one_thread: Product | None = None
        self._all_threads: Product | None = None
        threads, self._few_rows = torch.get_num_threads(), FEW_PRODUCTS // max(weight_OI.numel(), 1)
        if hasattr(torch, ONE_THREAD_OPERATOR) and (threads == 1 or weight_OI.numel() <= SMALL):
            one_thread = torch.fbgemm_pack_gemm_matrix_fp16(weight_OI)
            self._one_thread = lambda x_TI: torch.fbgemm_linear_fp16_weight_fp32_activation(x_TI, one_thread, bias_O)
        if threads > 1 or self._one_thread is None:
            packed = torch.ops.quantized.linear_prepack_fp16(weight_OI, bias_O)
            self._all_threads = lambda x_TI: torch.ops.quantized.linear_dynamic_fp16(x_TI, packed)

    def __call__(self, x_TI: Tensor) -> Tensor:
        one, all_threads = self._one_thread, self._all_threads  # they give the same bits
        multiply = one if one is not None and (all_threads is None or len(x_TI) <= self._few_rows) else all_threads
        assert multiply is not None, "one of the two is there"
        y_TO = multiply(x_TI)
        return y_TO if self._inverse_scale == 1.0 else y_TO.mul_(self._inverse_scale)


class OneDNNProduct:
    """Multiplies in the weights' dtype, float32 or bfloat16, with weights that oneDNN packed. The result is float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None):
        self._dtype, self._bias_O = weight_OI.dtype, bias_O
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), EXPECTED_ROWS)

    def __call__(self, x_TI: Tensor) -> Tensor:
        if len(x_TI) == 1:  # a single row would get a kernel of its own, which sums in another order
            return self(x_TI.expand(2, -1))[:1]
        x_TI = x_TI.to(self._dtype).contiguous()
        return torch.ops.mkldnn._linear_pointwise(x_TI, self._packed, self._bias_O, "none", [], "").float()


def pack(weights: Sequence[Tensor], bias_O: Tensor | None = None) -> Product:
    """Packs weights in the fastest form for many rows that keeps each of them exact."""
    weight_OI = torch.cat(list(weights))
    if multiplies_bfloat16(weight_OI) and weight_OI.numel() > SMALL:
        return OneDNNProduct(weight_OI, bias_O)
    scale = half_scale(weight_OI)
    if scale is not None:
        return HalfProduct(weight_OI, bias_O, scale)
    return OneDNNProduct(weight_OI.float(), None if bias_O is None else bias_O.float())


def pack_for_few_rows(weights: Sequence[Tensor], bias_O: Tensor | None = None) -> Product:
    """Packs weights in the fastest form for up to about 16 rows that keeps each of them exact."""
    weight_OI = torch.cat(list(weights))
    scale = half_scale(weight_OI)
    return pack([weight_OI], bias_O) if scale is None else HalfProduct(weight_OI, bias_O, scale)


def multiplies_bfloat16(weight: Tensor) -> bool:
    """Whether `pack` multiplies such weights in bfloat16, which `pack_for_few_rows` avoids."""
    return weight.dtype == torch.bfloat16 and _bfloat16_works()


def half_scale(weight_OI: Tensor) -> float | None:
    """Returns a power of two, times which float16 holds all weights exactly, or None if there is none.

    It is 1, or brings the largest weight to between 2^14 and 2^15.
    """
    float_OI = weight_OI.detach().float()
    for scale in (1.0, 2.0 ** (15 - math.frexp(float(float_OI.abs().max()))[1])):
        scaled_OI = float_OI * scale
        if torch.equal(scaled_OI.half().float(), scaled_OI):
            return scale
    return None


def best_pack(weight: Tensor) -> Pack | None:
    """Returns `pack` if its products work for weights of this dtype and device, or None."""
    packs = weight.device.type == "cpu" and weight.dtype != torch.float64 and _half_works() and _float32_works()
    return pack if packs else None


@cache
def _half_works() -> bool:
    """Whether FBGEMM is in this build and runs on this processor. Its operators are not a stable interface."""
    return _agrees(HalfProduct, torch.float32)


@cache
def _float32_works() -> bool:
    return _agrees(OneDNNProduct, torch.float32)


@cache
def _bfloat16_works() -> bool:
    """Whether oneDNN multiplies bfloat16 and the processor does too. Elsewhere float32 arithmetic is faster."""
    return cpu_multiplies_bfloat16() and _agrees(OneDNNProduct, torch.bfloat16)


def _agrees(product: Callable[[Tensor, Tensor], Product], dtype: torch.dtype) -> bool:
    """Whether products of small integers plus a bias, which need no rounding, are right for one row and for more."""
    weight_OI = (torch.arange(24 * 16).view(24, 16) % 7 - 3).to(dtype)
    bias_O = (torch.arange(24) % 3 - 1).to(dtype)
    x_TI = (torch.arange(5 * 16).view(5, 16) % 5 - 2).float()
    expected_TO = F.linear(x_TI, weight_OI.float(), bias_O.float())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fbgemm_.* is deprecated", UserWarning)  # PyTorch warns once
            multiply = product(weight_OI, bias_O)
            return all(torch.equal(multiply(x_TI[:rows]).float(), expected_TO[:rows]) for rows in (1, 5))
    except (RuntimeError, AttributeError):  # this build lacks the operator, or lacks it for this processor
        return False
