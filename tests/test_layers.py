"""The formulas of layers.py against values by hand. Their kernels have their own test files."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY

from minimind_sft.model.config import RopeScaling
from minimind_sft.model.layers import (
    GELUNetwork,
    SwiGLU,
    apply_rope,
    cross_entropy_sum,
    layer_norm,
    rms_norm,
    rope_cos_sin,
)

YARN = RopeScaling(factor=4.0, original_max_position_embeddings=1024, beta_fast=32.0, beta_slow=1.0,
                   attention_factor=1.5)
YARN_CONFIG = replace(TINY, head_dim=16, rope_theta=10000.0, rope_scaling=YARN, max_position_embeddings=4096)


def test_rope_cos_sin_include_the_attention_factor():
    cos, sin = rope_cos_sin(YARN_CONFIG, torch.tensor([0, 3]), torch.float64)
    assert cos.shape == sin.shape == (2, 1, 8)
    assert cos[:, 0, 0].tolist() == pytest.approx([1.5, 1.5 * math.cos(3.0)])
    assert sin[:, 0, 2].tolist() == pytest.approx([0.0, 1.5 * math.sin(0.1 * 0.8125 * 3)])


def test_rope_is_a_complex_product():
    """The pair (x_i, x_{i + K/2}) is a complex number, multiplied by exp(i angle)."""
    torch.manual_seed(0)
    x, angle = torch.randn(5, 3, 16, dtype=torch.float64), 7 * torch.rand(5, 1, 8, dtype=torch.float64)
    turned = torch.complex(x[..., :8], x[..., 8:]) * torch.polar(torch.ones_like(angle), angle)
    for function in (apply_rope, apply_rope.__wrapped__):
        torch.testing.assert_close(function(x, (angle.cos(), angle.sin())), torch.cat((turned.real, turned.imag), -1),
                                   rtol=1e-13, atol=1e-13)


def test_rope_makes_scores_depend_on_distance_only():
    config = replace(TINY, head_dim=16)
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    scores = []
    for start in (0, 1000):
        rope_q, rope_k = (rope_cos_sin(config, torch.tensor([start + offset]), torch.float64) for offset in (7, 2))
        scores.append((apply_rope(q, rope_q) * apply_rope(k, rope_k)).sum().item())
    assert scores[0] == pytest.approx(scores[1], rel=1e-10)


def test_rms_norm_literally():
    x, weight = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64), torch.full((2,), 3.0, dtype=torch.float64)
    # mean square 2.5, plus eps 3: 3 / sqrt(3) = sqrt(3)
    expected = torch.tensor([[3 ** 0.5, 2 * 3 ** 0.5], [0, 0]], dtype=torch.float64)
    for function in (rms_norm, rms_norm.__wrapped__):
        torch.testing.assert_close(function(x, weight, 0.5), expected)


def test_rms_norm_equals_pytorch_s():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(rms_norm.__wrapped__(x, weight, 1e-2), F.rms_norm(x, (6,), weight, 1e-2))


def test_layer_norm_literally():
    """By hand: mean 3, variance 4, eps 5: (x - 3) / 3 * 6 + 1."""
    x, weight = torch.tensor([[1.0, 5.0], [7.0, 7.0]], dtype=torch.float64), torch.full((2,), 6.0, dtype=torch.float64)
    expected = torch.tensor([[-3.0, 5.0], [1.0, 1.0]], dtype=torch.float64)
    for function in (layer_norm, layer_norm.__wrapped__):
        torch.testing.assert_close(function(x, weight, torch.ones_like(weight), 5.0), expected)


def test_swiglu_literally():
    """gate 2 and up 3 x of x = 1: silu(2) = 2 / (1 + exp(-2)) = 1.761594, times 3, times down's 10."""
    module = SwiGLU(1, 1)
    with torch.no_grad():
        for projection, weight in ((module.gate_proj, 2.0), (module.up_proj, 3.0), (module.down_proj, 10.0)):
            projection.weight.fill_(weight)
    assert module(torch.ones(1, 1)).item() == pytest.approx(52.84782, rel=1e-6)


def test_swiglu_with_biases_literally():
    """As above, but the 2 and the 3 are 1 + 1 and 1 + 2, and 5 is added at the end."""
    module = SwiGLU(1, 1, bias=True)
    with torch.no_grad():
        for projection, weight, bias in ((module.gate_proj, 1.0, 1.0), (module.up_proj, 1.0, 2.0),
                                         (module.down_proj, 10.0, 5.0)):
            projection.weight.fill_(weight)
            projection.bias.fill_(bias)
    assert module(torch.ones(1, 1)).item() == pytest.approx(57.84782, rel=1e-6)


def test_gelu_network_literally():
    """up 2 x of x = 1: gelu(2) = 1 + tanh(sqrt(2 / pi) * (2 + 0.044715 * 8)) = 1.9545977, times down's 10."""
    module = GELUNetwork(1, 1)
    with torch.no_grad():
        module.up_proj.weight.fill_(2.0)
        module.down_proj.weight.fill_(10.0)
    assert module(torch.ones(1, 1)).item() == pytest.approx(19.545977, rel=1e-6)


def test_two_equally_likely_tokens_cost_log_2_per_position():
    hidden, head, labels = torch.zeros(3, 4), torch.ones(2, 4), torch.tensor([0, 1])
    for function in (cross_entropy_sum, cross_entropy_sum.__wrapped__):
        assert function(hidden, head, labels).item() == pytest.approx(2 * 0.693147, abs=1e-5)
