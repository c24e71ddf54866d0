"""Llama's architecture in GGUF files: Llama 2 and 3, Mistral, SmolLM2, TinyLlama, MiniMind-2; and SmolLM3's.

Biases are found by their tensors. llama.cpp ignores a sliding window in this architecture.
"""

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
from minimind_sft.model.families.gguf_rope import DIVISORS, frequency_divisors, read_rope, write_rope

SMOLLM3_ROPE_EVERY = 4
"""Every fourth layer has no RoPE: a constant in llama.cpp (src/models/smollm3.cpp)."""


def read_config(description: Description, architecture: str) -> ModelConfig:
    """Returns our configuration.

    Raises:
        UserError: naming a key that is missing, unknown or says what the decoder cannot compute.
    """
    fields = fields_of(description, architecture)
    shape = read_shape(fields, description)
    without_rope = range(SMOLLM3_ROPE_EVERY - 1, shape["num_hidden_layers"], SMOLLM3_ROPE_EVERY)
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)
    config = ModelConfig(
        **shape, **read_rope(fields, shape, description.rope_divisors), qk_norm=False,
        attention_bias=description.attention_bias, mlp_bias=description.mlp_bias,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        layers_without_rope=tuple(without_rope) if architecture == "smollm3" else ())
    fields.finish()
    return config


def write_config(config: ModelConfig, architecture: str) -> Description:
    """Returns the description of a model."""
    values = write_shape(config) | write_rope(config) | {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    return describe(config, architecture, values,
                    frequency_divisors(config.head_dim, config.rope_theta, config.rope_scaling))


def _family(architecture: str) -> Family:
    return Family(architecture, partial(read_config, architecture=architecture),
                  partial(write_config, architecture=architecture),
                  partial(decoder_entries, pairs_neighbours=True), no_weights=(DIVISORS,))


LLAMA, SMOLLM3 = _family("llama"), _family("smollm3")
