"""RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

Shapes: D the normalised dimension; any others before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.precision import at_least_float32


class RMSNorm(nn.Module):
    """Computed in at least float32, whatever the dtype of `x`; the result has the weight's."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        x, weight_D = at_least_float32(x), at_least_float32(self.weight)
        # PyTorch has one kernel for all of it on a GPU; on a CPU it is put together from ten, half of them backward.
        normed = _RMSNorm.apply(x, weight_D, self.eps) if x.device.type == "cpu" else F.rms_norm(
            x, weight_D.shape, weight_D, self.eps)
        return normed.to(self.weight.dtype)


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm` with its gradient written out.

    With n = x / rms(x) and g the gradient of the output: dweight = sum g n, and dx = (g w - n mean(g w n)) / rms(x),
    the second part because rms(x) moves with x.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        inverse_rms = (_mean_of_product(x, x) + eps).rsqrt()
        ctx.save_for_backward(x, weight_D, inverse_rms)
        return (x * inverse_rms).mul_(weight_D)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, inverse_rms = ctx.saved_tensors
        normed, grad_normed = x * inverse_rms, grad * weight_D
        mean = _mean_of_product(grad_normed, normed)
        grad_x = grad_normed.addcmul_(normed, mean, value=-1).mul_(inverse_rms)
        return grad_x, normed.mul_(grad).flatten(0, -2).sum(0), None


def _mean_of_product(x: Tensor, y: Tensor) -> Tensor:
    """mean(x y) over the last dimension, which stays. `vecdot` is faster, but one of autocast's matrix products."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.linalg.vecdot(x, y).unsqueeze(-1) / x.shape[-1]
