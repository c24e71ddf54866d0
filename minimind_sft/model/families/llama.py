"""Llama 2 and 3, and the models with their architecture: TinyLlama, SmolLM and SmolLM2, Yi, DeepSeek LLM."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import read_shape, same_names, write_shape
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.fields import Fields

ABSENT: dict[str, Any] = {"head_dim": None, "num_key_value_heads": None, "tie_word_embeddings": False}
ROTARY_TABLE = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape = read_shape(fields, ABSENT)
    attention_bias = "all" if fields.flag("attention_bias", False) else "none"
    mlp_bias = fields.flag("mlp_bias", False)
    fields.only("pretraining_tp", 1)
    fields.without_influence("is_llama_config", "max_sequence_length")
    fields.finish()
    return ModelConfig(**shape, attention_bias=attention_bias, mlp_bias=mlp_bias, qk_norm=False)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """
    Raises:
        UserError: if the heads do not divide the hidden size; transformers refuses such a Llama, whatever its head_dim.
    """
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"num_attention_heads: {config.num_attention_heads} heads do not divide hidden_size "
                        f"{config.hidden_size}, as transformers requires of a Llama")
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **write_shape(config),
            "attention_bias": config.attention_bias == "all", "mlp_bias": config.mlp_bias}


LLAMA = Family("llama", read_config, write_config, same_names, (ROTARY_TABLE,), prefix="model.")
