"""Reads and writes RoPE's base and scaling in GGUF metadata, as llama.cpp computes them (src/llama-context.cpp).

Llama 3's scaling has no metadata: a tensor holds the number by which each pair's frequency is divided. The parameters
are found again from these numbers. Files written here also have them under names that llama.cpp does not read.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.families.fields import Fields
from minimind_sft.model.rope_scaling import rope_frequencies

DIVISORS = "rope_freqs.weight"
DEFAULT_THETA = 10_000.0
NOT_READ = {"yarn_log_multiplier": 0.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
"""Keys of `rope.scaling` that llama.cpp reads for other architectures only, with the values that it uses for these."""
LOW, HIGH = 1.0, 4.0
"""Of every published model with Llama 3's scaling."""
TOLERANCE = 1e-5
"""Relative; converters compute the divisors in float32."""


def read_rope(fields: Fields, shape: dict[str, Any], divisors_R: Tensor | None = None) -> dict[str, Any]:
    """Returns RoPE's base and scaling as fields of our configuration.

    Args:
        shape: what `read_shape` returned.
        divisors_R: the numbers by which the file divides the frequencies.

    Raises:
        UserError: naming a key or the tensor, if it says what the decoder cannot compute.
    """
    fields.only("rope.dimension_count", shape["head_dim"])
    fields.only("rope.scale_linear", 1.0)
    for name, value in NOT_READ.items():
        fields.only(f"rope.scaling.{name}", value)
    fields.without_influence("rope.scaling.finetuned")
    theta = fields.number("rope.freq_base", DEFAULT_THETA)
    kind, factor = fields.text("rope.scaling.type", "linear"), fields.number("rope.scaling.factor", 1.0) or 1.0
    if kind not in ("none", "linear", "yarn"):
        fields.refuse("rope.scaling.type", f"is {kind!r}, the decoder computes only none, linear and yarn: use another "
                      "model")
    if divisors_R is not None:
        fields.only("rope.scaling.type", "none", "linear")
        fields.only("rope.scaling.factor", 1.0, 0.0)
        candidates = _llama3_candidates(fields, shape["max_position_embeddings"])
        return {"rope_theta": theta, "rope_scaling": _llama3(divisors_R, shape["head_dim"], theta, candidates)}
    if kind == "yarn":
        return {"rope_theta": theta, "rope_scaling": _yarn(fields, factor, shape["max_position_embeddings"])}
    fields.without_influence("rope.scaling.original_context_length", "rope.scaling.yarn_ext_factor")
    fields.only("rope.scaling.attn_factor", 1.0)
    scaled = kind == "linear" and factor != 1
    return {"rope_theta": theta, "rope_scaling": RopeScaling("linear", factor) if scaled else None}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns the metadata, without the architecture's prefix; of what they cannot express, nothing."""
    scaling = config.rope_scaling
    values: dict[str, Any] = {"rope.freq_base": config.rope_theta, "rope.dimension_count": config.head_dim}
    if scaling is None or scaling.rope_type == "dynamic":
        return values
    if scaling.rope_type == "linear":
        return values | {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    values["rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
    if scaling.rope_type == "llama3":
        return values | {"rope.scaling.low_freq_factor": scaling.low_freq_factor,
                         "rope.scaling.high_freq_factor": scaling.high_freq_factor}
    return values | {
        "rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor,
        "rope.scaling.attn_factor": scaling.attention_factor / _default_attention_factor(scaling.factor),
    }


def frequency_divisors(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor | None:
    """Returns the numbers by which llama.cpp divides the frequencies (R,), or None without Llama 3's scaling."""
    if scaling is None or scaling.rope_type != "llama3":
        return None
    plain = ModelConfig(head_dim=head_dim, rope_theta=theta)
    plain_R, scaled_R = (rope_frequencies(config, torch.float64, torch.device("cpu"))[0]
                         for config in (plain, replace(plain, rope_scaling=scaling)))
    return (plain_R / scaled_R).float()


def _yarn(fields: Fields, factor: float, context_length: int) -> RopeScaling:
    fields.only("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    attention_factor = fields.number("rope.scaling.attn_factor", 1.0) * _default_attention_factor(factor)
    return RopeScaling("yarn", factor, fields.whole("rope.scaling.original_context_length", context_length),
                       beta_fast=NOT_READ["yarn_beta_fast"], beta_slow=NOT_READ["yarn_beta_slow"],
                       attention_factor=attention_factor)


def _default_attention_factor(factor: float) -> float:
    """Returns what llama.cpp multiplies into `attn_factor` (arXiv:2309.00071, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(divisors_R: Tensor, head_dim: int, theta: float, candidates: Iterable[RopeScaling]) -> RopeScaling | None:
    """Returns the parameters with which Llama 3's formula gives the divisors in a file."""
    if bool((divisors_R == 1).all()):
        return None
    factor = float(str(divisors_R.float().max().numpy()))  # the slowest pair's: as a decimal number, without rounding
    for candidate in candidates:
        scaling = replace(candidate, factor=factor)
        expected_R = frequency_divisors(head_dim, theta, scaling)
        if expected_R is not None and expected_R.shape == divisors_R.shape and torch.allclose(
                expected_R, divisors_R.float(), rtol=TOLERANCE, atol=0):
            return scaling
    raise UserError(f"{DIVISORS}: no parameters of Llama 3's RoPE scaling are known that give these {len(divisors_R)} "
                    "numbers: use the model's Hugging Face folder")


def _llama3_candidates(fields: Fields, context_length: int) -> list[RopeScaling]:
    """Returns parameters to try; their factor is found in the divisors."""
    low = fields.number("rope.scaling.low_freq_factor", LOW)
    high = fields.number("rope.scaling.high_freq_factor", HIGH)
    stated = fields.whole("rope.scaling.original_context_length", context_length)
    return [RopeScaling("llama3", 1.0, original, low_freq_factor=low, high_freq_factor=high)
            for original in dict.fromkeys((stated, *(2**power for power in range(10, 18))))]
