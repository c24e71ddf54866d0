"""GPT-2: learned positions, LayerNorm, GELU, biases everywhere, and matrices kept as (inputs, outputs)."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import NO_SPECIAL_TOKENS
from minimind_sft.model.families.family import Entry, Family
from minimind_sft.model.families.fields import Fields

NAMES = {"vocab_size": "vocab_size", "n_embd": "hidden_size", "n_head": "num_attention_heads",
         "n_positions": "max_position_embeddings"}
KIND: dict[str, Any] = {"attention_bias": "all", "mlp_bias": True, "qk_norm": False, "norm": "layer", "mlp": "gelu",
        "positions": "learned"}


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape: dict[str, Any] = {ours: fields.whole(theirs) for theirs, ours in NAMES.items()}
    shape["num_hidden_layers"] = fields.layers("n_layer")
    heads, hidden_size = shape["num_attention_heads"], shape["hidden_size"]
    if hidden_size % heads:
        fields.refuse("n_head", f"{heads} heads do not divide n_embd {hidden_size}")
    width = fields.whole_or_null("n_inner", None) or 4 * hidden_size
    eps, tied = fields.number("layer_norm_epsilon"), fields.flag("tie_word_embeddings", True)
    fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.equal("n_ctx", shape["max_position_embeddings"], "n_positions")
    # The first is another order of the same computation, for half precision; the others are of the first releases.
    fields.without_influence("reorder_and_upcast_attn", "n_special", "output_past", "predict_special_tokens")
    fields.finish()
    return ModelConfig(**shape, num_key_value_heads=heads, intermediate_size=width, rms_norm_eps=eps,
                       tie_word_embeddings=tied, **KIND)


def write_config(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            **{theirs: getattr(config, ours) for theirs, ours in NAMES.items()}, "n_layer": config.num_hidden_layers,
            "n_inner": config.intermediate_size,
            "layer_norm_epsilon": config.rms_norm_eps, "tie_word_embeddings": config.tie_word_embeddings,
            "activation_function": "gelu_new", **NO_SPECIAL_TOKENS}


def entries(config: ModelConfig) -> list[Entry]:
    """Returns the tensors; queries, keys and values are one, c_attn."""
    found = [Entry("transformer.wte.weight", ("model.embed_tokens.weight",)),
             Entry("transformer.wpe.weight", ("model.embed_positions.weight",)),
             *_both("transformer.ln_f", "model.norm")]
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"transformer.h.{layer}.", f"model.layers.{layer}."
        qkv = tuple(f"{ours}self_attn.{part}_proj" for part in "qkv")
        found += [
            *_both(theirs + "ln_1", ours + "input_layernorm"),
            *_both(theirs + "attn.c_attn", *qkv, transposed=True),
            *_both(theirs + "attn.c_proj", ours + "self_attn.o_proj", transposed=True),
            *_both(theirs + "ln_2", ours + "post_attention_layernorm"),
            *_both(theirs + "mlp.c_fc", ours + "mlp.up_proj", transposed=True),
            *_both(theirs + "mlp.c_proj", ours + "mlp.down_proj", transposed=True),
        ]
    return found if config.tie_word_embeddings else [*found, Entry("lm_head.weight", ("lm_head.weight",))]


def _both(theirs: str, *ours: str, transposed: bool = False) -> list[Entry]:
    """Returns the entries of a weight and its bias."""
    return [Entry(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), transposed),
            Entry(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours))]


GPT2 = Family("gpt2", read_config, write_config, entries, (r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
              prefix="transformer.")
