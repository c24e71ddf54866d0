"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), stretched by YaRN where the configuration says so.

Shapes: T tokens, H heads, D head dim, R = D / 2 pairs of one head.
"""

import math

import torch
from torch import Tensor

from minimind_sft.model.config import ModelConfig


def rope_frequencies(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians per position of each pair (R,): theta^(-2i/head_dim), stretched by YaRN where the config says so."""
    pair_R = torch.arange(config.head_dim // 2, dtype=dtype, device=device)
    frequency_R = 1.0 / config.rope_theta ** (2 * pair_R / config.head_dim)
    yarn = config.rope_scaling
    if yarn is None or config.max_position_embeddings <= yarn.original_max_position_embeddings:
        return frequency_R

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that makes this many full turns within the original context."""
        wavelength = yarn.original_max_position_embeddings / times
        return config.head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), len(pair_R) - 1)
    stretched_R = ((pair_R - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency_R * (1 - stretched_R + stretched_R / yarn.factor)


def rope_turns(config: ModelConfig, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, R) of every pair's angle at every position, times YaRN's attention factor."""
    frequency_R = rope_frequencies(config, dtype, positions_T.device)
    angle_T1R = positions_T[:, None, None] * frequency_R
    scale = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return angle_T1R.cos() * scale, angle_T1R.sin() * scale


def apply_rope(x_THD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turns dimension i of each head with dimension i + D/2 (Qwen's arrangement of the pairs)."""
    return _Turn.apply(x_THD, *rope)


class _Turn(torch.autograd.Function):
    """The gradient of a turn is the turn back: nothing of `x` need be kept for it."""

    @staticmethod
    def forward(ctx, x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1R, sin_T1R)
        return _turned(x_THD, cos_T1R, sin_T1R, 1)

    @staticmethod
    def backward(ctx, grad_THD: Tensor) -> tuple[Tensor, None, None]:
        return _turned(grad_THD, *ctx.saved_tensors, -1), None, None


def _turned(x_THD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, direction: int) -> Tensor:
    first_THR, second_THR = x_THD.chunk(2, dim=-1)
    return torch.cat((
        (first_THR * cos_T1R).addcmul_(second_THR, sin_T1R, value=-direction),
        (second_THR * cos_T1R).addcmul_(first_THR, sin_T1R, value=direction),
    ), dim=-1)
