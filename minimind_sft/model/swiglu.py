"""SwiGLU (Shazeer 2020, arXiv:2002.05202): down(silu(gate x) * up x).

Shapes: T tokens, N of them that are wanted, D hidden size, F width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.precision import for_matmul
from minimind_sft.model.rows import rows


class SwiGLU(nn.Module):
    """The dense feed-forward network."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_TD: Tensor, wanted_N: Tensor | None = None) -> Tensor:
        """(T, D), or (N, D) of the rows `wanted_N`."""
        x_ND = for_matmul(rows(x_TD, wanted_N), self.gate_proj.weight)
        return self.down_proj(gated(self.gate_proj(x_ND), self.up_proj(x_ND)))


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up, both of one dtype."""
    assert gate_TF.dtype == up_TF.dtype
    return _Gated.apply(gate_TF, up_TF)


class _Gated(torch.autograd.Function):
    """Keeps gate and up only. Autograd would keep silu(gate) too, as large as each; here it is computed once more.

    With s = sigmoid(gate): silu(gate) = gate s, and its derivative is s (1 + gate (1 - s)).
    """

    @staticmethod
    def forward(ctx, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        return F.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx, grad_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad_TF * up_TF, gate_TF), F.silu(gate_TF).mul_(grad_TF)
