"""Reads and writes RoPE's base and its scaling, in the two ways in which Hugging Face folders have them.

Until version 4, transformers wrote `rope_theta` and, for a scaled RoPE, `rope_scaling`; since version 5 it writes one
object, `rope_parameters`. vLLM reads either. Files with both are read if they agree, and `write_rope` writes both.
Formulas and defaults are those of modeling_rope_utils.py in transformers 5.
"""

import math
from collections.abc import Callable
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.families.fields import Fields

DEFAULT_THETA = 10_000.0
Rope = tuple[float, RopeScaling | None]


def read_rope(fields: Fields, max_position_embeddings: int, default_theta: float = DEFAULT_THETA) -> Rope:
    """Returns RoPE's base and scaling.

    Raises:
        UserError: if the kind of scaling is unknown, one of its fields is, or the two ways of writing it disagree.
    """
    theta = fields.number_or_null("rope_theta")
    readings = {name: _read(inner, theta, max_position_embeddings, default_theta)
                for name in ("rope_scaling", "rope_parameters") if (inner := fields.inner(name)) is not None}
    if not readings:
        return default_theta if theta is None else theta, None
    if len(set(readings.values())) > 1:
        raise UserError("rope_scaling: differs from what rope_theta and rope_parameters say: remove the one that is "
                        "wrong")
    return next(iter(readings.values()))


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json that describe RoPE, for all readers."""
    scaling = _written(config.rope_scaling)
    parameters = {"rope_type": "default", "rope_theta": config.rope_theta, **(scaling or {})}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": parameters}


def _read(inner: Fields, theta: float | None, max_position_embeddings: int, default_theta: float) -> Rope:
    kind = inner.text("rope_type", inner.text("type", "default"))
    inner.equal("type", kind, "rope_type")
    if kind == "default" and "factor" in inner:
        inner.refuse("rope_type", "missing or \"default\", but there is a factor: name the kind of scaling, such as "
                     '"linear", or remove the factor')
    inner.only("partial_rotary_factor", 1.0)
    if kind != "default" and kind not in READERS:
        inner.refuse("rope_type", f"is {kind!r}, the decoder computes only {', '.join(['default', *READERS])}: use "
                     "another model")
    own = inner.number_or_null("rope_theta")
    if theta is not None:
        inner.equal("rope_theta", theta, "the file's own rope_theta")
    scaling = None if kind == "default" else READERS[kind](inner, max_position_embeddings)
    inner.finish()
    return next(value for value in (own, theta, default_theta) if value is not None), scaling


def _linear(inner: Fields, max_position_embeddings: int) -> RopeScaling:
    return RopeScaling("linear", _factor(inner))


def _dynamic(inner: Fields, max_position_embeddings: int) -> RopeScaling:
    """transformers 5 counts from max_position_embeddings, version 4 from the other field if there is one."""
    inner.equal("original_max_position_embeddings", max_position_embeddings, "max_position_embeddings")
    return RopeScaling("dynamic", _factor(inner), max_position_embeddings)


def _llama3(inner: Fields, max_position_embeddings: int) -> RopeScaling:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if not 0 < low < high:
        inner.refuse("low_freq_factor", f"is {low:g}, expected a number between 0 and high_freq_factor {high:g}")
    return RopeScaling("llama3", _factor(inner), _original(inner, max_position_embeddings),
                       low_freq_factor=low, high_freq_factor=high)


def _yarn(inner: Fields, max_position_embeddings: int) -> RopeScaling:
    factor, attention_factor = _factor(inner), inner.number_or_null("attention_factor")
    mscale, mscale_all_dim = inner.number_or_null("mscale"), inner.number_or_null("mscale_all_dim")
    if attention_factor is None:
        attention_factor = (_mscale(factor, mscale) / _mscale(factor, mscale_all_dim) if mscale and mscale_all_dim
                            else _mscale(factor))
    return RopeScaling("yarn", factor, _original(inner, max_position_embeddings),
                       beta_fast=inner.number_or_null("beta_fast") or 32.0,
                       beta_slow=inner.number_or_null("beta_slow") or 1.0,
                       attention_factor=attention_factor, truncate=inner.flag("truncate", True))


READERS: dict[str, Callable[[Fields, int], RopeScaling]] = {
    "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}


def _factor(inner: Fields) -> float:
    factor = inner.number("factor")
    if factor < 1:
        inner.refuse("factor", f"is {factor:g}, expected a number from 1")
    return factor


def _original(inner: Fields, max_position_embeddings: int) -> int:
    return inner.whole("original_max_position_embeddings", max_position_embeddings)


def _mscale(factor: float, mscale: float = 1.0) -> float:
    """Returns YaRN's factor for the attention scores' square root (arXiv:2309.00071, section 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _written(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    written: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    names = {"llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
             "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate")}
    return written | {name: getattr(scaling, name) for name in names.get(scaling.rope_type, ())}
