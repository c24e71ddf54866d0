"""Reads and writes what GGUF architectures share: metadata under llama.cpp's names, and the tensors of a decoder.

Names are those of gguf-py's constants.py and of llama.cpp's src/llama-arch.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Entry
from minimind_sft.model.families.fields import Fields

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Description:
    """A model as a GGUF file describes it: by metadata, and by which tensors there are.

    attention_bias, mlp_bias, has_head, layers: as the tensors' names show.
    vocab_size: the number of rows of the embedding.
    rope_divisors: the numbers by which RoPE's frequencies are divided (R,), or None.
    """

    metadata: Mapping[str, Any]
    layers: int
    vocab_size: int
    has_head: bool
    attention_bias: str
    mlp_bias: bool
    rope_divisors: Tensor | None


def fields_of(description: Description, architecture: str) -> Fields:
    """Returns the metadata of the architecture, without its prefix.

    A number that a file gives for each layer is one number if it is the same in all.
    """
    prefix = f"{architecture}."
    return Fields({name.removeprefix(prefix): value[0] if isinstance(value, list) and len(set(value)) == 1 else value
                   for name, value in description.metadata.items() if name.startswith(prefix)}, prefix)


def describe(config: ModelConfig, architecture: str, values: Mapping[str, Any],
             rope_divisors: Tensor | None = None) -> Description:
    """Returns the description of a model.

    Args:
        values: the metadata of the architecture, without its prefix.
    """
    metadata = {f"{architecture}.{name}": value for name, value in values.items()}
    return Description(metadata, config.num_hidden_layers, config.vocab_size, not config.tie_word_embeddings,
                       config.attention_bias, config.mlp_bias, rope_divisors)


def read_shape(fields: Fields, description: Description) -> dict[str, Any]:
    """Returns the fields of our configuration that every architecture has.

    Raises:
        UserError: naming a key that is missing or says what the decoder cannot compute.
    """
    hidden_size, heads = fields.whole("embedding_length"), fields.whole("attention.head_count")
    head_dim = fields.whole("attention.key_length", hidden_size // heads)
    fields.only("attention.value_length", head_dim)
    fields.only("attention.causal", True)
    for name, found in (("block_count", description.layers), ("vocab_size", description.vocab_size)):
        if fields.whole(name, found) != found:
            fields.refuse(name, f"is {fields.whole(name)}, but the tensors are those of {found}: the file is damaged "
                          "or incomplete")
    fields.only("tensor_data_layout", "Meta AI original pth", "Reference")
    return {
        "vocab_size": description.vocab_size, "hidden_size": hidden_size,
        "num_hidden_layers": description.layers, "num_attention_heads": heads, "head_dim": head_dim,
        "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
        "intermediate_size": fields.whole("feed_forward_length"),
        "max_position_embeddings": fields.whole("context_length"), "tie_word_embeddings": not description.has_head,
    }


def write_shape(config: ModelConfig) -> dict[str, Any]:
    """Returns the metadata, without the architecture's prefix, that every architecture has."""
    return {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        "vocab_size": config.vocab_size,
    }


def decoder_entries(config: ModelConfig, pairs_neighbours: bool = False) -> list[Entry]:
    """Returns the tensors of a decoder with RMSNorm and SwiGLU, dense or with experts.

    pairs_neighbours: whether RoPE rotates dimensions 2i and 2i + 1 of a head.
    """
    entries = outer_entries(config)
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"blk.{layer}.", f"model.layers.{layer}."
        names = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight"}
        if config.qk_norm:
            names |= {"attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight"}
        if not config.use_moe:
            names |= _with_bias({f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
                                config.mlp_bias)
        names |= _with_bias({"attn_v": "self_attn.v_proj"}, config.attention_bias != "none")
        names |= _with_bias({"attn_output": "self_attn.o_proj"}, config.attention_bias == "all")
        entries += [Entry(theirs + their, (ours + our,)) for their, our in names.items()]
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            rotary_heads = heads if pairs_neighbours else 0
            rotated = _with_bias({f"attn_{part}": f"self_attn.{part}_proj"}, config.attention_bias != "none")
            entries += [Entry(theirs + their, (ours + our,), rotary_heads=rotary_heads)
                        for their, our in rotated.items()]
        if config.use_moe:
            entries += _expert_entries(config, theirs, ours + "mlp.")
    return entries


def outer_entries(config: ModelConfig) -> list[Entry]:
    """Returns the tensors outside the layers."""
    names = {EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not config.tie_word_embeddings:
        names[HEAD] = "lm_head.weight"
    return [Entry(theirs, (ours,)) for theirs, ours in names.items()]


def _expert_entries(config: ModelConfig, theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}ffn_gate_inp.weight", (f"{ours}gate.weight",)), *(
        Entry(f"{theirs}ffn_{part}_exps.weight",
              tuple(f"{ours}experts.{expert}.{part}_proj.weight" for expert in range(config.num_experts)), stacked=True)
        for part in ("gate", "up", "down"))]


def _with_bias(names: dict[str, str], bias: bool) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items()
            for kind in (("weight", "bias") if bias else ("weight",))}
