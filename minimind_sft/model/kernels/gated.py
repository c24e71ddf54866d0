"""silu(gate) * up, keeping less for the backward pass. Plain twin: layers.gated."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Gated(torch.autograd.Function):
    """Keeps gate and up only; the backward pass computes silu(gate) again. Autograd would keep that third tensor.

    With s = sigmoid(gate): silu(gate) = gate s, and its derivative is s (1 + gate (1 - s)).
    """

    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        assert gate_TF.dtype == up_TF.dtype
        ctx.save_for_backward(gate_TF, up_TF)
        return F.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF), F.silu(gate_TF).mul_(grad_TF)


gated = _Gated.apply
