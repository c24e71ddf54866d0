"""Mistral 7B and the models with its architecture: Llama's, with a sliding window in every layer or none."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import read_shape, same_names, write_shape
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.fields import Fields

ABSENT: dict[str, Any] = {"head_dim": None, "tie_word_embeddings": False}


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape = read_shape(fields, ABSENT)
    window = fields.whole_or_null("sliding_window")
    fields.finish()
    return ModelConfig(**shape, sliding_window=window, qk_norm=False)


def write_config(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **write_shape(config),
            "sliding_window": config.sliding_window}


MISTRAL = Family("mistral", read_config, write_config, same_names, prefix="model.")
