"""RMSNorm with its gradient written out, and PyTorch's norms. Plain twins: layers.rms_norm, layers.layer_norm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """Writes the gradient out.

    With n = x / rms(x) and g the gradient of the output: dweight = sum g n, and dx = (g w - n mean(g w n)) / rms(x),
    the second part because rms(x) moves with x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        inverse_rms = (_mean_of_product(x, x) + eps).rsqrt()
        ctx.save_for_backward(x, weight_D, inverse_rms)
        return (x * inverse_rms).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, inverse_rms = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        normed, grad_x, grad_weight_D = x * inverse_rms, None, None
        if wants_x:
            grad_normed = grad * weight_D
            mean = _mean_of_product(grad_normed, normed)
            grad_x = grad_normed.addcmul_(normed, mean, value=-1).mul_(inverse_rms)
        if wants_weight:
            grad_weight_D = normed.mul_(grad).flatten(0, -2).sum(0)
        return grad_x, grad_weight_D, None


def _mean_of_product(x: Tensor, y: Tensor) -> Tensor:
    """Returns mean(x y) over the last dimension, which stays.

    `vecdot` is fastest, but autocast takes it for a matrix product and would round its inputs.
    """
    with torch.autocast(x.device.type, enabled=False):
        return torch.linalg.vecdot(x, y).unsqueeze(-1) / x.shape[-1]


rms_norm = _RMSNorm.apply


def pytorch_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Calls PyTorch's norm, which is a single kernel on a GPU and about ten operations on a CPU."""
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def pytorch_layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Calls PyTorch's norm, which is a single kernel on every device."""
    return F.layer_norm(x, weight_D.shape, weight_D, bias_D, eps)
