"""SmolLM3: Llama's architecture, where every fourth layer does without RoPE."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.common import read_shape, read_windows, same_names, write_shape, write_windows
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.fields import Fields

ABSENT: dict[str, Any] = {"head_dim": None, "tie_word_embeddings": True}
DEFAULT_THETA = 2_000_000.0
DEFAULT_INTERVAL = 4


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(values)
    shape = read_shape(fields, ABSENT, DEFAULT_THETA)
    rotates = _rotating_layers(fields, shape["num_hidden_layers"])
    window = fields.whole_or_null("sliding_window", None) if fields.flag("use_sliding_window", False) else None
    windows = read_windows(fields, window, [not rotated for rotated in rotates])
    attention_bias = "all" if fields.flag("attention_bias", False) else "none"
    mlp_bias = fields.flag("mlp_bias", False)
    fields.without_influence("sliding_window", "max_window_layers", "pretraining_tp")
    fields.finish()
    without_rope = tuple(layer for layer, rotated in enumerate(rotates) if not rotated)
    return ModelConfig(**shape, **windows, attention_bias=attention_bias, mlp_bias=mlp_bias,
                       layers_without_rope=without_rope, qk_norm=False)


def _rotating_layers(fields: Fields, layers: int) -> list[bool]:
    """Returns which layers rotate queries and keys; despite its name, that is what a 1 in `no_rope_layers` means."""
    interval = fields.whole("no_rope_layer_interval", DEFAULT_INTERVAL)
    rotates = fields.listed("no_rope_layers", int, layers)
    if rotates is None:
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if any(value not in (0, 1) for value in rotates):
        fields.refuse("no_rope_layers", "expected a 1 for each layer with RoPE and a 0 for each layer without")
    return [value == 1 for value in rotates]


def write_config(config: ModelConfig) -> dict[str, Any]:
    rotates = [int(layer not in config.layers_without_rope) for layer in range(config.num_hidden_layers)]
    return {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], **write_shape(config),
            **write_windows(config), "no_rope_layers": rotates, "attention_bias": config.attention_bias == "all",
            "mlp_bias": config.mlp_bias}


SMOLLM3 = Family("smollm3", read_config, write_config, same_names, prefix="model.")
