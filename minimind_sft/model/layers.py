"""Norms, RoPE, feed-forward networks and the loss as their papers state them.

Functions marked `@accelerated` define what is computed; kernels/ has faster ways to compute it, and the tests compare
each with the function here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kernels.selection import accelerated
from minimind_sft.model.precision import at_least_float32, matmul_dtype
from minimind_sft.model.rope_scaling import rope_frequencies


class RMSNorm(nn.Module):
    """Normalises over the last dimension, in at least float32; the result has the weight's dtype."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(at_least_float32(x), at_least_float32(self.weight), self.eps).to(self.weight.dtype)


@accelerated
def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D


class LayerNorm(nn.Module):
    """Normalises mean and variance over the last dimension, in at least float32; the result has the weight's dtype."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        weight_D, bias_D = at_least_float32(self.weight), at_least_float32(self.bias)
        return layer_norm(at_least_float32(x), weight_D, bias_D, self.eps).to(self.weight.dtype)


@accelerated
def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Returns (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450)."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D + bias_D


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


def rope_cos_sin(config: ModelConfig, positions_T: Tensor, dtype: torch.dtype,
                 length_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns cos and sin (T, 1, R) of each pair's angle at each position, times YaRN's attention factor.

    Args:
        length_T: the length of each token's document, for dynamic scaling only.
    """
    angle_TR = positions_T[:, None] * rope_frequencies(config, dtype, positions_T.device, length_T)
    scaling = config.rope_scaling
    scale = scaling.attention_factor if scaling and scaling.rope_type == "yarn" else 1.0
    return angle_TR[:, None].cos() * scale, angle_TR[:, None].sin() * scale


@accelerated
def apply_rope(x_THK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates dimensions i and i + K/2 of each head by their angle (Su et al. 2021, arXiv:2104.09864).

    The paper pairs neighbours 2i and 2i + 1; Qwen and Llama pair the two halves, which permutes the dimensions.
    """
    cos_T1R, sin_T1R = rope
    first_THR, second_THR = x_THK.chunk(2, dim=-1)
    return torch.cat((
        first_THR * cos_T1R - second_THR * sin_T1R,
        second_THR * cos_T1R + first_THR * sin_T1R,
    ), dim=-1)


class SwiGLU(nn.Module):
    """A feed-forward network: down(silu(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, width: int, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias)
        self.up_proj = nn.Linear(hidden_size, width, bias)
        self.down_proj = nn.Linear(width, hidden_size, bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.to(matmul_dtype(x_TD))  # autocast by itself would convert it for each product
        return self.down_proj(gated(self.gate_proj(x_TD), self.up_proj(x_TD)))


class GELUNetwork(nn.Module):
    """A feed-forward network: down(gelu(up x)) (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    With the approximation of GELU by tanh, as GPT-2 has it.
    """

    def __init__(self, hidden_size: int, width: int, bias: bool = False):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, width, bias)
        self.down_proj = nn.Linear(width, hidden_size, bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x_TD), approximate="tanh"))


FEED_FORWARDS = {"swiglu": SwiGLU, "gelu": GELUNetwork}


@accelerated
def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Returns silu(gate) * up."""
    return F.silu(gate_TF) * up_TF


@accelerated
def cross_entropy_sum(hidden_ND: Tensor, head_VD: Tensor, labels: Tensor) -> Tensor:
    """Returns the sum of -log softmax(hidden @ head.T)[label], a scalar of at least float32.

    `labels` belong to the first rows of `hidden_ND`; rows without a label have no influence.
    """
    logits_NV = at_least_float32(F.linear(hidden_ND[: len(labels)], head_VD))
    return F.cross_entropy(logits_NV, labels, reduction="sum")
