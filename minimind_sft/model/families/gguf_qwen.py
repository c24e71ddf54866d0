"""Qwen2, Qwen3 and Qwen3-MoE in GGUF files; MiniMind-3 is a Qwen3."""

from functools import partial

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.gguf_common import (
    Description,
    decoder_entries,
    describe,
    fields_of,
    read_shape,
    write_shape,
)
from minimind_sft.model.families.gguf_rope import read_rope, write_rope

SOFTMAX = 1
"""A value of `expert_gating_func`."""


def read_config(description: Description, architecture: str) -> ModelConfig:
    """Returns our configuration.

    Raises:
        UserError: naming a key that is missing, unknown or says what the decoder cannot compute.
    """
    fields = fields_of(description, architecture)
    values = read_shape(fields, description)
    values |= read_rope(fields, values)
    if architecture == "qwen3moe":
        # llama.cpp normalises the weights of the chosen experts, whatever a file says.
        fields.only("expert_weights_norm", True)
        fields.only("expert_weights_scale", 1.0, 0.0)
        fields.only("expert_gating_func", SOFTMAX)
        fields.only("expert_shared_count", 0)
        values |= {"use_moe": True, "norm_topk_prob": True, "num_experts": fields.whole("expert_count"),
                   "num_experts_per_tok": fields.whole("expert_used_count"),
                   "moe_intermediate_size": fields.whole("expert_feed_forward_length")}
    config = ModelConfig(**values, rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
                         qk_norm=architecture != "qwen2", attention_bias="qkv" if architecture == "qwen2" else "none")
    fields.finish()
    return config


def write_config(config: ModelConfig, architecture: str) -> Description:
    """Returns the description of a model."""
    values = write_shape(config) | write_rope(config) | {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    if architecture == "qwen3moe":
        values |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok,
                   "expert_feed_forward_length": config.moe_intermediate_size}
    return describe(config, architecture, values)


def _family(architecture: str) -> Family:
    return Family(architecture, partial(read_config, architecture=architecture),
                  partial(write_config, architecture=architecture), decoder_entries)


QWEN2, QWEN3, QWEN3_MOE = _family("qwen2"), _family("qwen3"), _family("qwen3moe")
