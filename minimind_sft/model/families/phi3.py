"""Phi-3 with a short context: Llama's architecture with joined projections. LongRoPE and partial RoPE are refused."""

import re
from collections.abc import Mapping
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import read_shape, write_shape
from minimind_sft.model.families.family import Entry, Family
from minimind_sft.model.families.fields import Fields
from minimind_sft.model.families.tensor_shapes import tensor_shapes

ABSENT: dict[str, Any] = {"head_dim": None, "num_key_value_heads": None, "tie_word_embeddings": False}
JOINED = {"q_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
          "gate_proj": ("gate_up_proj", ("gate_proj", "up_proj"))}
"""By the first part of each joined matrix: its name, and all its parts."""

PART = re.compile(r"(.*)\b(q_proj|k_proj|v_proj|gate_proj|up_proj)\.weight")


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape = read_shape(fields, ABSENT)
    if shape["rope_scaling"] is not None:  # transformers takes "yarn" here for longrope
        fields.refuse("rope_scaling", "the decoder computes Phi-3 only without it: use a version with a short context")
    window = fields.whole_or_null("sliding_window", None)
    fields.only("attention_bias", False)
    fields.without_influence("original_max_position_embeddings")  # longrope only
    fields.finish()
    return ModelConfig(**shape, sliding_window=window, qk_norm=False)


def write_config(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], **write_shape(config),
            "original_max_position_embeddings": config.max_position_embeddings,
            "sliding_window": config.sliding_window}


def entries(config: ModelConfig) -> list[Entry]:
    """Returns the tensors; queries, keys and values are one, gate and up projection another."""
    found = []
    for name in tensor_shapes(config):
        part = PART.fullmatch(name)
        if part is None:
            found.append(Entry(name, (name,)))
        elif part[2] in JOINED:
            theirs, ours = JOINED[part[2]]
            found.append(Entry(f"{part[1]}{theirs}.weight", tuple(f"{part[1]}{one}.weight" for one in ours)))
    return found


PHI3 = Family("phi3", read_config, write_config, entries, prefix="model.")
