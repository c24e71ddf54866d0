"""Qwen3 and Qwen3-MoE: Llama's architecture with normalised queries and keys. MiniMind-3 has the same layout."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import read_shape, same_names, write_shape, write_windows
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.fields import Fields
from minimind_sft.model.families.qwen2 import read_upper_windows

ABSENT = {"tie_word_embeddings": False}
MOE_ABSENT: dict[str, Any] = {"head_dim": None, "tie_word_embeddings": False}


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape = read_shape(fields, ABSENT)
    windows = read_upper_windows(fields, shape["num_hidden_layers"])
    bias = _bias(fields)
    fields.finish()
    return ModelConfig(**shape, **windows, attention_bias=bias)


def write_config(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], **write_shape(config),
            **write_windows(config), "attention_bias": config.attention_bias == "all"}


def read_moe_config(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the configuration of a mixture. A window is in every layer or in none: transformers has no other."""
    fields = Fields(values)
    shape = read_shape(fields, MOE_ABSENT)
    mixture = _mixture(fields)
    has_window = fields.flag("use_sliding_window", False)
    if has_window:
        fields.only("max_window_layers", 0)
    else:
        fields.without_influence("sliding_window", "max_window_layers")
    window = fields.whole_or_null("sliding_window") if has_window else None
    bias = _bias(fields)
    fields.finish()
    return ModelConfig(**shape, **mixture, sliding_window=window, attention_bias=bias, use_moe=True)


def write_moe_config(config: ModelConfig) -> dict[str, Any]:
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef")
    window = config.sliding_window
    return {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **write_shape(config),
            **{name: getattr(config, name) for name in names}, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "use_sliding_window": window is not None, "sliding_window": window,
            "max_window_layers": config.num_hidden_layers if window is None else 0,
            "attention_bias": config.attention_bias == "all"}


def _mixture(fields: Fields) -> dict[str, Any]:
    fields.only("decoder_sparse_step", 1)
    fields.only("mlp_only_layers", [])
    fields.without_influence("output_router_logits")  # of the auxiliary loss, only the coefficient is taken over
    name = "num_local_experts" if "num_local_experts" in fields else "num_experts"  # transformers 5 and 4
    experts = fields.whole(name)
    fields.equal("num_experts", experts, name)
    return {
        "num_experts": experts,
        "num_experts_per_tok": fields.whole("num_experts_per_tok"),
        "moe_intermediate_size": fields.whole("moe_intermediate_size"),
        "norm_topk_prob": fields.flag("norm_topk_prob"),
        "router_aux_loss_coef": fields.number("router_aux_loss_coef", 0.001),
    }


def _bias(fields: Fields) -> str:
    return "all" if fields.flag("attention_bias", False) else "none"


QWEN3 = Family("qwen3", read_config, write_config, same_names, prefix="model.")
QWEN3_MOE = Family("qwen3_moe", read_moe_config, write_moe_config, same_names, prefix="model.")
