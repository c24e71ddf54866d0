"""Reads and writes what the families after Llama have in common: the shape, and windows by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Entry
from minimind_sft.model.families.fields import REQUIRED, Fields
from minimind_sft.model.families.rope import DEFAULT_THETA, read_rope, write_rope
from minimind_sft.model.families.tensor_shapes import tensor_shapes

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
NO_SPECIAL_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""Written out, because transformers has other defaults, which may lie outside the vocabulary."""
WINDOW, FULL = "sliding_attention", "full_attention"


def same_names(config: ModelConfig) -> list[Entry]:
    """Returns the entries of a family that names its tensors as we do."""
    return [Entry(name, (name,)) for name in tensor_shapes(config)]


def read_shape(fields: Fields, defaults: Mapping[str, Any], default_theta: float = DEFAULT_THETA) -> dict[str, Any]:
    """Returns the values of ModelConfig that every family writes under the same names.

    Args:
        defaults: what absent fields mean; without a default they are refused.
    """
    shape: dict[str, Any] = {name: fields.whole(name) for name in SIZES}
    shape["num_hidden_layers"] = fields.layers("num_hidden_layers")
    head_dim = fields.whole_or_null("head_dim", defaults.get("head_dim", REQUIRED))
    kv_heads = fields.whole_or_null("num_key_value_heads", defaults.get("num_key_value_heads", REQUIRED))
    theta, scaling = read_rope(fields, shape["max_position_embeddings"], default_theta)
    return shape | {
        "head_dim": head_dim or max(shape["hidden_size"] // shape["num_attention_heads"], 1),
        "num_key_value_heads": kv_heads or shape["num_attention_heads"],
        "rms_norm_eps": fields.number("rms_norm_eps"),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", defaults["tie_word_embeddings"]),
        "rope_theta": theta, "rope_scaling": scaling,
    }


def write_shape(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json that `read_shape` reads."""
    names = (*SIZES, "num_hidden_layers", "head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings")
    return {name: getattr(config, name) for name in names} | write_rope(config) | {
        "hidden_act": "silu", **NO_SPECIAL_TOKENS}


def read_windows(fields: Fields, window: int | None, windowed: Sequence[bool]) -> dict[str, Any]:
    """Returns the values of ModelConfig that describe windows.

    Args:
        window: the window's size, or None where there is none.
        windowed: which layers have it if the file has no `layer_types`.
    """
    kinds = fields.listed("layer_types", str, len(windowed))
    for layer, kind in enumerate(kinds or ()):
        if kind not in (FULL, WINDOW):
            fields.refuse("layer_types", f"layer {layer} is {kind!r}, the decoder computes only {FULL!r} and "
                          f"{WINDOW!r}: use another model")
        if kind == WINDOW and window is None:
            fields.refuse("layer_types", f"layer {layer} is {WINDOW!r}, but the file has no window for it "
                          "(use_sliding_window, sliding_window)")
    windowed = windowed if kinds is None else [kind == WINDOW for kind in kinds]
    if window is None or not any(windowed):
        return {}
    return {"sliding_window": window,
            "full_attention_layers": tuple(layer for layer, has_window in enumerate(windowed) if not has_window)}


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json that describe windows, where a switch decides whether there are any."""
    windowed = [config.sliding_window is not None and layer not in config.full_attention_layers
                for layer in range(config.num_hidden_layers)]
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window,
            "max_window_layers": (*windowed, True).index(True),
            "layer_types": [WINDOW if has_window else FULL for has_window in windowed]}
