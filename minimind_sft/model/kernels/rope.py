"""RoPE whose gradient keeps nothing of its input. Plain twin: layers.apply_rope."""

from typing import Any

import torch
from torch import Tensor


class _Rotation(torch.autograd.Function):
    """Rotates forward, and back for the gradient, which needs nothing of `x`."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        ctx.save_for_backward(*rope)
        return _rotated(x_THK, *rope, 1)

    @staticmethod
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor, None]:
        cos_T1R, sin_T1R = ctx.saved_tensors
        return _rotated(grad_THK, cos_T1R, sin_T1R, -1), None


def _rotated(x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, direction: int) -> Tensor:
    first_THR, second_THR = x_THK.chunk(2, dim=-1)
    return torch.cat((
        (first_THR * cos_T1R).addcmul_(second_THR, sin_T1R, value=-direction),
        (second_THR * cos_T1R).addcmul_(first_THR, sin_T1R, value=direction),
    ), dim=-1)


apply_rope = _Rotation.apply
