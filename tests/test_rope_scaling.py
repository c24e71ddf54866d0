"""RoPE's frequencies by hand, and those of transformers."""

from dataclasses import replace

import pytest
import torch
from tiny import TINY

from minimind_sft.model.config import RopeScaling
from minimind_sft.model.rope_scaling import rope_frequencies

CPU = torch.device("cpu")
CONFIG = replace(TINY, head_dim=16, rope_theta=10000.0, max_position_embeddings=4096)
YARN = RopeScaling(factor=4.0, original_max_position_embeddings=1024, beta_fast=32.0, beta_slow=1.0,
                   attention_factor=1.5)
LLAMA3 = RopeScaling("llama3", factor=8.0, original_max_position_embeddings=1024, low_freq_factor=1.0,
                     high_freq_factor=4.0)
PLAIN = [1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 10**-2.5, 0.001, 10**-3.5]


def frequencies(scaling: RopeScaling | None, lengths: list[int] | None = None) -> list[list[float]]:
    length_T = None if lengths is None else torch.tensor(lengths)
    return rope_frequencies(replace(CONFIG, rope_scaling=scaling), torch.float64, CPU, length_T).tolist()


def scaled(factors: list[float]) -> list[list[float]]:
    return [pytest.approx([f * by for f, by in zip(PLAIN, factors, strict=True)], rel=1e-12)]


def test_without_scaling_they_are_powers_of_theta():
    assert frequencies(None) == scaled([1.0] * 8)


def test_linear_scaling_divides_all_of_them():
    assert frequencies(RopeScaling("linear", factor=4.0)) == scaled([0.25] * 8)


def test_yarn_literally():
    """By hand: the pair with 32 turns in 1024 positions is 16 ln(1024 / 64 pi) / (2 ln 10^4) = 1.41, that with one
    turn 4.42. Pairs up to 1 keep their frequency, from 5 on it is a quarter, and between them the blend is linear.
    """
    assert frequencies(YARN) == scaled([1.0, 1.0, 0.8125, 0.625, 0.4375, 0.25, 0.25, 0.25])


def test_yarn_without_rounded_bounds():
    """By hand: the blend runs from 1.41395 to 4.42422; at pair 2 it is 1 - 0.75 * (2 - 1.41395) / 3.01027."""
    [[_, second, third, *_, sixth, _, _]] = frequencies(replace(YARN, truncate=False))
    assert (second, third, sixth) == pytest.approx((PLAIN[1], 0.853987 * PLAIN[2], 0.25 * PLAIN[5]), rel=1e-5)


def test_llama3_literally():
    """By hand: in 1024 positions pair i makes 163 / sqrt(10)^i turns: 163, 51.5, 16.3, 5.15, 1.63, 0.515, ...

    Four turns and more are kept, at most one is an eighth, and 1.63 is 0.209915 of the way between.
    """
    assert frequencies(LLAMA3) == [pytest.approx(
        [*PLAIN[:4], PLAIN[4] * (0.209915 + 0.790085 / 8), *(f / 8 for f in PLAIN[5:])], rel=1e-5)]


def test_dynamic_scaling_goes_by_each_document():
    """By hand: at 2048 of 1024 positions and factor 2 theta grows by (2 * 2 - 1)^(16 / 14)."""
    rows = frequencies(RopeScaling("dynamic", factor=2.0, original_max_position_embeddings=1024), [3, 1024, 2048])
    assert rows[:2] == 2 * scaled([1.0] * 8)
    assert rows[2] == pytest.approx([(1e4 * 3 ** (16 / 14)) ** (-i / 8) for i in range(8)], rel=1e-12)


@pytest.mark.parametrize("length", [60, 64, 65, 200])
@pytest.mark.parametrize(("scaling", "theirs"), [
    (RopeScaling("linear", factor=3.0), {"factor": 3.0}),
    (RopeScaling("dynamic", factor=3.0, original_max_position_embeddings=64), {"factor": 3.0}),
    (RopeScaling("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=4.0),
     {"factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    (RopeScaling("yarn", 4.0, 16, attention_factor=1.1), {
        "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.1}),
    (RopeScaling("yarn", 4.0, 16, beta_fast=4.0, attention_factor=1.0, truncate=False), {
        "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.0, "beta_fast": 4.0,
        "truncate": False}),
    (RopeScaling("yarn", 4.0, 9000, beta_fast=40.0, attention_factor=1.0), {  # every pair turns at least once
        "factor": 4.0, "original_max_position_embeddings": 9000, "attention_factor": 1.0, "beta_fast": 40.0}),
], ids=["linear", "dynamic", "llama3", "yarn", "yarn_exact_bounds", "yarn_beyond_the_last_pair"])
@pytest.mark.parametrize("theta", [100.0, 1e6])
def test_they_are_those_of_transformers(scaling: RopeScaling, theirs: dict, length: int, theta: float):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = replace(CONFIG, rope_theta=theta, max_position_embeddings=64, rope_scaling=scaling)
    their_config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, head_dim=16, max_position_embeddings=64,
        rope_parameters={"rope_type": scaling.rope_type, "rope_theta": theta, **theirs})
    expected, attention_factor = ROPE_INIT_FUNCTIONS[scaling.rope_type](their_config, CPU, seq_len=length)
    ours = rope_frequencies(config, torch.float32, CPU, torch.tensor([length]))
    torch.testing.assert_close(ours, expected[None], rtol=1e-6, atol=0)
    assert attention_factor == scaling.attention_factor
