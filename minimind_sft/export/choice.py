"""Chooses the family in whose format a model can be written: one whose reader computes the same."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.families.family import Family

TRAINING_ONLY = ("dropout", "aux_loss_scope", "router_aux_loss_coef")
EXPERTS_ONLY = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "num_shared_experts")
ROPE_ONLY = ("rope_theta", "rope_scaling", "layers_without_rope")
SCALING_FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
"""The fields of `RopeScaling` that each type reads."""

REASONS = {"norm_topk_prob": "its readers divide the weights of the chosen experts by their sum, and no field tells "
                             "them not to"}
"""Why a field that is missing in a format matters."""


def choose_family(config: ModelConfig, families: Mapping[str, Family], first: str | None) -> Family:
    """Returns a family whose configuration can say what the model computes.

    Args:
        families: by name, in the order in which they are tried.
        first: the family that the weights come from, which is tried before all others; or None.

    Raises:
        UserError: if there is none; names the fields that the nearest family cannot express.
    """
    names = sorted(families, key=lambda name: name != first)
    lost: dict[str, list[str]] = {}
    for name in names:
        lost[name] = lost_fields(config, families[name])
        if not lost[name]:
            return families[name]
    nearest = min(names, key=lambda name: len(lost[name]))
    what = "; ".join(f"{field} {_shown(getattr(config, field))}" for field in lost[nearest])
    why = "".join(f"; {reason}" for field, reason in REASONS.items() if field in lost[nearest])
    raise UserError(f"no family among {', '.join(families)} can express this model; the nearest, {nearest}, has no "
                    f"place for {what}{why}")


def lost_fields(config: ModelConfig, family: Family) -> list[str]:
    """Lists the fields that a family's configuration cannot express; empty if its reader computes the same."""
    try:
        back = family.read_config(family.write_config(config))
    except UserError:  # no reader of this family accepts such a configuration
        return [one.name for one in fields(ModelConfig)]
    return differing_fields(config, back)


def differing_fields(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Lists the fields that make two models compute different things; what only training reads does not count."""
    mine, theirs = computed_by(one), computed_by(other)
    return [name for name in mine | theirs if mine.get(name) != theirs.get(name)]


def computed_by(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields that decide what a model computes, in float32, as GGUF files and the kernels have them."""
    unused = set(TRAINING_ONLY)
    unused |= {"intermediate_size"} if config.use_moe else set(EXPERTS_ONLY)
    if config.positions != "rope":
        unused |= set(ROPE_ONLY)
    if config.sliding_window is None:
        unused |= {"full_attention_layers"}
    values = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in unused}
    if isinstance(scaling := values.get("rope_scaling"), RopeScaling):
        values["rope_scaling"] = (scaling.rope_type, *(_as_float32(getattr(scaling, name))
                                                       for name in SCALING_FIELDS[scaling.rope_type]))
    return {name: _as_float32(value) for name, value in values.items()}


def _as_float32(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def _shown(value: Any) -> str:
    if not isinstance(value, RopeScaling):
        return repr(value)
    parameters = ", ".join(f"{name} {getattr(value, name):g}" for name in SCALING_FIELDS[value.rope_type])
    return f"{value.rope_type} ({parameters})"
