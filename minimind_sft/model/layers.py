"""RMSNorm, RoPE, SwiGLU and the loss as their papers state them.

Functions marked `@accelerated` define what is computed; kernels/ has faster ways to compute it, and the tests compare
each with the function here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kernels.selection import accelerated
from minimind_sft.model.precision import at_least_float32, matmul_dtype


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


def rope_frequencies(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the radians per position of each pair of dimensions (R,): theta^(-2i/K), stretched by YaRN if configured.

    YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2) divides by `factor` the frequencies of pairs that turn at
    most `beta_slow` times within the original context, keeps those that turn at least `beta_fast` times, and blends
    linearly in between.
    """
    pair_R = torch.arange(config.head_dim // 2, dtype=dtype, device=device)
    frequency_R = 1.0 / config.rope_theta ** (2 * pair_R / config.head_dim)
    yarn = config.rope_scaling
    if yarn is None or config.max_position_embeddings <= yarn.original_max_position_embeddings:
        return frequency_R

    def pair_that_turns(times: float) -> float:
        """Returns the (fractional) pair that makes this many full turns within the original context."""
        wavelength = yarn.original_max_position_embeddings / times
        return config.head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), len(pair_R) - 1)
    stretched_R = ((pair_R - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency_R * (1 - stretched_R + stretched_R / yarn.factor)


def rope_cos_sin(config: ModelConfig, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns cos and sin (T, 1, R) of each pair's angle at each position, times YaRN's attention factor."""
    angle_T1R = positions_T[:, None, None] * rope_frequencies(config, dtype, positions_T.device)
    scale = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return angle_T1R.cos() * scale, angle_T1R.sin() * scale


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
    """The dense feed-forward network: down(silu(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.to(matmul_dtype(x_TD))  # autocast by itself would convert it for each product
        return self.down_proj(gated(self.gate_proj(x_TD), self.up_proj(x_TD)))


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
