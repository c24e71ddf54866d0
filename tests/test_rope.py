"""RoPE and YaRN by hand; they agree with transformers' in test_decoder.py."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import TINY

from minimind_sft.model.config import YarnScaling
from minimind_sft.model.layers import apply_rope, rope_cos_sin, rope_frequencies

YARN = YarnScaling(factor=4.0, original_max_position_embeddings=1024, beta_fast=32.0, beta_slow=1.0,
                   attention_factor=1.5)
YARN_CONFIG = replace(TINY, head_dim=16, rope_theta=10000.0, rope_scaling=YARN, max_position_embeddings=4096)


def test_yarn_frequencies_literally():
    """By hand: the pair with 32 turns in 1024 positions is 16 ln(1024 / 64 pi) / (2 ln 10^4) = 1.41, that with one
    turn 4.42. Pairs up to 1 keep their frequency, from 5 on it is a quarter, and between them the blend is linear.
    """
    plain = [1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 10**-2.5, 0.001, 10**-3.5]
    blend = [1.0, 1.0, 0.8125, 0.625, 0.4375, 0.25, 0.25, 0.25]
    frequencies = rope_frequencies(YARN_CONFIG, torch.float64, torch.device("cpu"))
    assert frequencies.tolist() == pytest.approx([f * b for f, b in zip(plain, blend, strict=True)], rel=1e-12)


def test_yarn_stretches_the_last_pair_wholly_where_no_pair_turns_less_than_once():
    """MiniMind's bound is the last pair (transformers' lies beyond it): the blend is complete there."""
    yarn = YarnScaling(factor=4.0, original_max_position_embeddings=1_000_000, beta_fast=1e5, beta_slow=1.0)
    config = replace(TINY, head_dim=4, rope_theta=10000.0, rope_scaling=yarn, max_position_embeddings=2_000_000)
    frequencies = rope_frequencies(config, torch.float64, torch.device("cpu"))
    assert frequencies.tolist() == pytest.approx([1.0, 0.01 / 4], rel=1e-12)


def test_yarn_leaves_a_model_alone_that_stays_within_its_original_context():
    inside = replace(YARN_CONFIG, max_position_embeddings=1024)
    frequencies = rope_frequencies(inside, torch.float64, torch.device("cpu"))
    assert frequencies.tolist() == pytest.approx([10 ** (-i / 2) for i in range(8)], rel=1e-12)


def test_rope_cos_sin_are_cos_and_sin_times_the_attention_factor():
    cos, sin = rope_cos_sin(YARN_CONFIG, torch.tensor([0, 3]), torch.float64)
    assert cos.shape == sin.shape == (2, 1, 8)
    assert cos[:, 0, 0].tolist() == pytest.approx([1.5, 1.5 * math.cos(3.0)])
    assert sin[:, 0, 2].tolist() == pytest.approx([0.0, 1.5 * math.sin(0.1 * 0.8125 * 3)])


def test_rope_makes_scores_depend_on_distance_only():
    config = replace(TINY, head_dim=16)
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    scores = []
    for start in (0, 1000):
        rope_q, rope_k = (rope_cos_sin(config, torch.tensor([start + offset]), torch.float64) for offset in (7, 2))
        scores.append((apply_rope(q, rope_q) * apply_rope(k, rope_k)).sum().item())
    assert scores[0] == pytest.approx(scores[1], rel=1e-10)


def test_the_gradient_of_a_turn_is_that_of_the_formula_written_out():
    torch.manual_seed(0)
    x, direction = torch.randn(2, 5, 3, 16, dtype=torch.float64)
    x.requires_grad_()
    cos, sin = rope_cos_sin(YARN_CONFIG, torch.tensor([0, 1, 2, 0, 7]), torch.float64)
    first, second = x[..., :8], x[..., 8:]
    plain = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    torch.testing.assert_close(apply_rope(x, (cos, sin)), plain, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(apply_rope(x, (cos, sin)), x, direction),
                               torch.autograd.grad(plain, x, direction), rtol=1e-14, atol=1e-14)
