"""Matrices laid out for products with few rows, which is what one token after the other asks for.

Such a product reads each weight once and does little with it: its time is that of reading. FBGEMM's kernel, which
PyTorch ships for x86, reads weights packed as float16, widens them in registers and computes in float32: half the bytes
of float32, and exactly the same weights wherever float16 can hold them, as in every file that was saved in half
precision. Other float32 weights become two float16 each and lose about 2^-23 of themselves.

Shapes: T tokens, K inputs, N outputs.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""(T, K) times the transpose of some weights: (T, N)."""

Pack = Callable[[Sequence[Tensor]], Product]
"""Makes the product with weights (N_i, K); the outputs of the several weights lie one behind the other."""

MANY_ROWS = 16
"""From here on arithmetic takes longer than reading, and one product in float32 less than two with float16."""

FEW_ROWS = 4
"""Up to here reading the weights takes longer than bfloat16 arithmetic could save."""

REMAINDER_SCALE = 2.0**11
"""float16 has 11 significant bits; what they leave over is stored as many times larger."""


def plain(weights: Sequence[Tensor]) -> Product:
    """The product as the model computes it, from the model's own memory."""
    def product(x_TK: Tensor) -> Tensor:
        return torch.cat([F.linear(x_TK, weight) for weight in weights], dim=-1)
    return product


class HalfProduct:
    """The product in float32 with weights packed as float16, or as two float16 where one is not enough."""

    def __init__(self, weights: Sequence[Tensor]):
        weight_NK = torch.cat([weight.detach().float() for weight in weights])
        self._inverse_scale = 1.0
        parts = [weight_NK]
        if not torch.equal(weight_NK.half().float(), weight_NK):
            # The largest weight becomes one of 2^14 to 2^15; a scale that is a power of two loses nothing.
            scale = 2.0 ** (15 - math.frexp(float(weight_NK.abs().max()))[1])
            self._inverse_scale = 1 / scale
            weight_NK = weight_NK * scale
            parts = [weight_NK.half().float()]
            remainder_NK = (weight_NK - parts[0]) * REMAINDER_SCALE
            if remainder_NK.any():
                parts.append(remainder_NK)
                self._plain = plain(weights)
        self._outputs = len(weight_NK)
        self.parts = len(parts)
        self._packed = torch.ops.quantized.linear_prepack_fp16(torch.cat(parts), None)

    def __call__(self, x_TK: Tensor) -> Tensor:
        if self.parts == 2 and len(x_TK) >= MANY_ROWS:
            return self._plain(x_TK)
        y_TN = torch.ops.quantized.linear_dynamic_fp16(x_TK, self._packed)
        if self.parts == 2:
            y_TN, remainder_TN = y_TN.split(self._outputs, dim=-1)
            y_TN = y_TN.add(remainder_TN, alpha=1 / REMAINDER_SCALE)
        return y_TN if self._inverse_scale == 1.0 else y_TN.mul_(self._inverse_scale)


class Bfloat16Product:
    """The product with bfloat16 weights: as `HalfProduct` for few rows, for more in bfloat16, packed by oneDNN.

    The second packing is made when the first larger batch comes.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self._few = HalfProduct(weights)
        self._weights = weights
        self._packed: Tensor | None = None

    def __call__(self, x_TK: Tensor) -> Tensor:
        if len(x_TK) <= FEW_ROWS:
            return self._few(x_TK)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(torch.cat(list(self._weights)), 16)
        return _onednn_product(x_TK.bfloat16(), self._packed)


def _onednn_product(x_TK: Tensor, packed: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_TK, packed, None, "none", [], "")


def best_pack(weight: Tensor) -> Pack | None:
    """The fastest packing for weights of this dtype and device that this PyTorch has; None: there is none."""
    if weight.device.type != "cpu" or weight.dtype == torch.float64 or not _half_works():
        return None
    return Bfloat16Product if weight.dtype == torch.bfloat16 and _onednn_works() else HalfProduct


@cache
def _half_works() -> bool:
    """Whether FBGEMM is in this build and runs on this processor: its operators are no stable interface."""
    return _agrees(HalfProduct, torch.float32, 1)


@cache
def _onednn_works() -> bool:
    return _agrees(Bfloat16Product, torch.bfloat16, FEW_ROWS + 1)


def _agrees(pack: Pack, dtype: torch.dtype, rows: int) -> bool:
    """Whether a product of small integers, in which nothing is rounded, is right."""
    weight_NK = (torch.arange(24 * 16).view(24, 16) % 7 - 3).to(dtype)
    x_TK = (torch.arange(rows * 16).view(rows, 16) % 5 - 2).float()
    try:
        return torch.equal(pack([weight_NK])(x_TK).float(), F.linear(x_TK, weight_NK.float()))
    except (RuntimeError, AttributeError):  # this build has no such operator, or not for this processor
        return False
