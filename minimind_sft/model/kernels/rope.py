"""RoPE whose gradient keeps nothing of its input. Plain twin: layers.apply_rope."""

from typing import Any

import torch
from torch import Tensor


def apply_rope(x_THK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    return _Rotation.apply(x_THK, *rope)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing of `x` need be kept for it."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1R, sin_T1R)
        return _rotated(x_THK, cos_T1R, sin_T1R, 1)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor, None, None]:
        cos_T1R, sin_T1R = ctx.saved_tensors
        return _rotated(grad_THK, cos_T1R, sin_T1R, -1), None, None


def _rotated(x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, direction: int) -> Tensor:
    first_THR, second_THR = x_THK.chunk(2, dim=-1)
    return torch.cat((
        (first_THR * cos_T1R).addcmul_(second_THR, sin_T1R, value=-direction),
        (second_THR * cos_T1R).addcmul_(first_THR, sin_T1R, value=direction),
    ), dim=-1)
