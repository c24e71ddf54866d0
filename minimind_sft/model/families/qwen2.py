"""Qwen2 and Qwen2.5: Llama's architecture with biases on queries, keys and values, and windows in the upper layers."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import read_shape, read_windows, same_names, write_shape, write_windows
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.fields import Fields

ABSENT: dict[str, Any] = {"head_dim": None, "tie_word_embeddings": False}


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape = read_shape(fields, ABSENT)
    windows = read_upper_windows(fields, shape["num_hidden_layers"])
    fields.finish()
    return ModelConfig(**shape, **windows, attention_bias="qkv", qk_norm=False)


def read_upper_windows(fields: Fields, layers: int) -> dict[str, Any]:
    """Reads the windows of Qwen2 and Qwen3: in the layers from `max_window_layers` on, unless `layer_types` says."""
    if not fields.flag("use_sliding_window", False):
        fields.without_influence("sliding_window", "max_window_layers")
        return read_windows(fields, None, [False] * layers)
    without = fields.whole("max_window_layers", least=0)
    return read_windows(fields, fields.whole_or_null("sliding_window"), [layer >= without for layer in range(layers)])


def write_config(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **write_shape(config),
            **write_windows(config)}


QWEN2 = Family("qwen2", read_config, write_config, same_names, prefix="model.")
