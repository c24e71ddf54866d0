"""GPT-2 in GGUF files: learned positions, LayerNorm, GELU, and biases everywhere.

Matrices are (outputs, inputs) here; only Hugging Face's files have them transposed.
"""

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Entry, Family
from minimind_sft.model.families.gguf_common import (
    Description,
    describe,
    fields_of,
    outer_entries,
    read_shape,
    write_shape,
)

JOINED = tuple(f"self_attn.{part}_proj" for part in "qkv")


def read_config(description: Description) -> ModelConfig:
    """Returns our configuration.

    Raises:
        UserError: naming a key that is missing, unknown or says what the decoder cannot compute.
    """
    fields = fields_of(description, "gpt2")
    config = ModelConfig(
        **read_shape(fields, description), rms_norm_eps=fields.number("attention.layer_norm_epsilon"),
        attention_bias="all", mlp_bias=True, qk_norm=False, norm="layer", mlp="gelu", positions="learned")
    fields.finish()
    return config


def write_config(config: ModelConfig) -> Description:
    """Returns the description of a model."""
    return describe(config, "gpt2", write_shape(config) | {"attention.layer_norm_epsilon": config.rms_norm_eps})


def entries(config: ModelConfig) -> list[Entry]:
    """Returns the tensors."""
    found = [*outer_entries(config), Entry("position_embd.weight", ("model.embed_positions.weight",)),
             Entry("output_norm.bias", ("model.norm.bias",))]
    names = {"attn_norm": ("input_layernorm",), "attn_qkv": JOINED, "attn_output": ("self_attn.o_proj",),
             "ffn_norm": ("post_attention_layernorm",), "ffn_up": ("mlp.up_proj",), "ffn_down": ("mlp.down_proj",)}
    for layer in range(config.num_hidden_layers):
        found += [Entry(f"blk.{layer}.{theirs}.{kind}", tuple(f"model.layers.{layer}.{our}.{kind}" for our in ours))
                  for theirs, ours in names.items() for kind in ("weight", "bias")]
    return found


GPT2 = Family("gpt2", read_config, write_config, entries)
