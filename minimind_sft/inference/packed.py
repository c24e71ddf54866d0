"""Packs matrices for products with few rows, as in decoding one token at a time.

Such a product reads each weight once and does little with it, so reading takes most of the time. FBGEMM's kernel, which
PyTorch ships for x86, reads weights packed as float16, widens them in registers and computes in float32. That halves
the bytes and keeps the weights exact if float16 can hold them, as in every file saved in half precision. Other float32
weights become two float16 each, with an error of about 2^-23.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""product(x_TI) -> y_TO: x times the transposed weights, plus their bias if they have one."""

Pack = Callable[[Sequence[Tensor], Tensor | None], Product]
"""pack(weights_OI, bias_O) -> product with all these weights, whose outputs follow one another in O, plus the bias."""

MANY_ROWS = 16
"""From here on arithmetic takes longer than reading, so one float32 product beats two with float16."""

FEW_ROWS = 4
"""Up to here bfloat16 arithmetic saves less time than reading the weights takes."""

REMAINDER_SCALE = 2.0**11
"""float16 has 11 significant bits; the remainder is stored multiplied by this."""


def plain(weights: Sequence[Tensor], bias_O: Tensor | None = None) -> Product:
    """Returns the product as the model computes it, on the model's own weights."""
    def product(x_TI: Tensor) -> Tensor:
        y_TO = torch.cat([F.linear(x_TI, weight.to(x_TI.dtype)) for weight in weights], dim=-1)
        return y_TO if bias_O is None else y_TO.add_(bias_O)
    return product


class HalfProduct:
    """Multiplies in float32 with weights packed as float16, or as two float16 if one is not exact."""

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None = None):
        weight_OI = torch.cat([weight.detach().float() for weight in weights])
        self._inverse_scale = 1.0
        parts = [weight_OI]
        if not torch.equal(weight_OI.half().float(), weight_OI):
            # The scale brings the largest weight to between 2^14 and 2^15. As a power of two it is exact.
            scale = 2.0 ** (15 - math.frexp(float(weight_OI.abs().max()))[1])
            self._inverse_scale = 1 / scale
            weight_OI = weight_OI * scale
            parts = [weight_OI.half().float()]
            remainder_OI = (weight_OI - parts[0]) * REMAINDER_SCALE
            if remainder_OI.any():
                parts.append(remainder_OI)
                self._plain = plain(weights, bias_O)
        self._outputs = len(weight_OI)
        self.parts = len(parts)
        if bias_O is not None:  # joins the first part
            bias_O = F.pad(bias_O.detach().float() / self._inverse_scale, (0, self._outputs * (self.parts - 1)))
        self._packed = torch.ops.quantized.linear_prepack_fp16(torch.cat(parts), bias_O)

    def __call__(self, x_TI: Tensor) -> Tensor:
        if self.parts == 2 and len(x_TI) >= MANY_ROWS:
            return self._plain(x_TI)
        y_TO = torch.ops.quantized.linear_dynamic_fp16(x_TI, self._packed)
        if self.parts == 2:
            y_TO, remainder_TO = y_TO.split(self._outputs, dim=-1)
            y_TO = y_TO.add(remainder_TO, alpha=1 / REMAINDER_SCALE)
        return y_TO if self._inverse_scale == 1.0 else y_TO.mul_(self._inverse_scale)


class Bfloat16Product:
    """Multiplies bfloat16 weights like `HalfProduct` for few rows, and in bfloat16, packed by oneDNN, for more.

    The second packing is made when the first larger batch comes.
    """

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None = None):
        self._few = HalfProduct(weights, bias_O)
        self._weights, self._bias_O = weights, bias_O
        self._packed: Tensor | None = None

    def __call__(self, x_TI: Tensor) -> Tensor:
        if len(x_TI) <= FEW_ROWS:
            return self._few(x_TI)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(torch.cat(list(self._weights)), 16)
        return torch.ops.mkldnn._linear_pointwise(x_TI.bfloat16(), self._packed, self._bias_O, "none", [], "")


def best_pack(weight: Tensor) -> Pack | None:
    """Returns the fastest packing that this PyTorch has for weights of this dtype and device, or None."""
    if weight.device.type != "cpu" or weight.dtype == torch.float64 or not _half_works():
        return None
    return Bfloat16Product if weight.dtype == torch.bfloat16 and _onednn_works() else HalfProduct


@cache
def _half_works() -> bool:
    """Whether FBGEMM is in this build and runs on this processor. Its operators are not a stable interface."""
    return _agrees(HalfProduct, torch.float32, 1)


@cache
def _onednn_works() -> bool:
    return _agrees(Bfloat16Product, torch.bfloat16, FEW_ROWS + 1)


def _agrees(pack: Pack, dtype: torch.dtype, rows: int) -> bool:
    """Whether a product of small integers plus a bias, which needs no rounding, is right."""
    weight_OI = (torch.arange(24 * 16).view(24, 16) % 7 - 3).to(dtype)
    bias_O = (torch.arange(24) % 3 - 1).to(dtype)
    x_TI = (torch.arange(rows * 16).view(rows, 16) % 5 - 2).float()
    try:
        return torch.equal(pack([weight_OI], bias_O)(x_TI).float(), F.linear(x_TI, weight_OI.float(), bias_O.float()))
    except (RuntimeError, AttributeError):  # this build lacks the operator, or lacks it for this processor
        return False
