"""Builds a model: a new one from settings, or one that starts from weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minimind_sft.device import main_memory
from minimind_sft.errors import UserError
from minimind_sft.model.config import PRESETS, ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.finding import find_weights
from minimind_sft.settings.model import ModelSettings
from minimind_sft.settings.runtime import RuntimeSettings
from minimind_sft.settings.spec import names_of
from minimind_sft.terminal import counted

FLOAT, LAYER_OBJECTS, GIB = 4, 2**16, 2**30
"""Bytes of a value in float32, of a layer's Python objects, and of a GiB."""


def find_start(settings: ModelSettings, save_dir: str, tokenizer: Callable[[], str]) -> Path | None:
    """Finds the weights that `--from_weight` names; returns None for a new model.

    Args:
        tokenizer: returns the fingerprint of a tokenizer, which decides among several files of that name.
    """
    if settings.from_weight == "none":
        return None
    return find_weights(settings.from_weight, save_dir, flag="--from_weight", hidden_size=settings.hidden_size,
                        use_moe=settings.use_moe, preset=PRESETS[settings.preset] if settings.preset else None,
                        tokenizer=tokenizer)


def new_model(settings: ModelSettings, vocab_size: int, seed: int) -> MiniMindForCausalLM:
    """Builds a model with random weights.

    Raises:
        UserError: if it is larger than this machine's memory.
    """
    torch.manual_seed(seed)
    config = new_model_config(settings, vocab_size)
    check_memory(config, main_memory())
    return MiniMindForCausalLM(config)


def check_memory(model: ModelConfig, memory: int | None) -> None:
    """Counts the values of the largest matrices, before anything is allocated.

    Args:
        memory: bytes of this machine.

    Raises:
        UserError: if they alone take more than the memory.
    """
    attention = 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim * model.hidden_size
    feed_forward = (2 + (model.mlp == "swiglu")) * model.intermediate_size * model.hidden_size
    layer = FLOAT * (attention + feed_forward) + LAYER_OBJECTS
    size = FLOAT * model.vocab_size * model.hidden_size + model.num_hidden_layers * layer
    if memory is not None and size > memory:
        raise UserError(f"--hidden_size {model.hidden_size} with {counted(model.num_hidden_layers, 'layer')}: the "
                        f"model takes {size / GIB:,.0f} GiB, and this machine has {memory / GIB:,.0f} GiB of memory")


def new_model_config(settings: ModelSettings, vocab_size: int) -> ModelConfig:
    """Returns the shape that `--preset` names, or that of the other shape flags, with MiniMind's proportions.

    Raises:
        UserError: if no model has that `--hidden_size`, or `--preset` has another one.
    """
    given = given_shape(settings)
    if settings.preset is None:
        try:
            return ModelConfig(**given, vocab_size=vocab_size, dropout=settings.dropout)
        except UserError as error:
            raise UserError(f"--hidden_size {settings.hidden_size}: {error}; a multiple of 16 always works") from error
    preset = PRESETS[settings.preset]
    if given.get("hidden_size", preset.hidden_size) != preset.hidden_size:
        raise UserError(f"--preset {settings.preset} has hidden_size {preset.hidden_size}, "
                        f"--hidden_size says {settings.hidden_size}")
    return replace(preset, **given, vocab_size=vocab_size, dropout=settings.dropout)


def given_shape(settings: Any) -> dict[str, Any]:
    """Returns the part of a model's shape that the flags name, by the fields of `ModelConfig`."""
    return {name: value for name in names_of(settings, "shape") if (value := getattr(settings, name)) is not None}


def check_shape(settings: Any, model: ModelConfig, path: Path) -> None:
    """
    Raises:
        UserError: if a flag names another shape than the weights at `path` have.
    """
    for name, value in given_shape(settings).items():
        has = getattr(model, name)
        if value != has:
            raise UserError(f"--{name} is {int(value)}, but {path} has {name} {int(has)}")


def check_size(settings: ModelSettings, model: ModelConfig, path: Path) -> None:
    """Checks that the weights at `path` have the shape that the flags give, if they give one.

    Raises:
        UserError: naming the flag and both values.
    """
    check_shape(settings, model, path)
    if settings.preset:
        preset = PRESETS[settings.preset]
        for name in names_of(settings, "shape"):
            has, expected = int(getattr(model, name)), int(getattr(preset, name))
            if expected != has:
                raise UserError(f"--preset {settings.preset} has {name} {expected}, but {path} has {has}")


def check_context(max_seq_len: int, model: ModelConfig, start: Path | None) -> None:
    """
    Raises:
        UserError: if documents may be longer than the context of the weights at `start`, or of a new model.
    """
    if max_seq_len > model.context:
        raise UserError(f"--max_seq_len is {max_seq_len:,}, but {start or 'a new model'} has a context of "
                        f"{model.context:,} tokens (max_position_embeddings)")


def stretched(model: ModelConfig, path: Path) -> ModelConfig:
    """Applies YaRN for longer contexts, as MiniMind does: if the model has more positions than YaRN starts from.

    Raises:
        UserError: if the weights at `path` have no RoPE to stretch, or a scaling of their own.
    """
    yarn = RopeScaling()
    if model.positions != "rope":
        raise UserError(f"--inference_rope_scaling 1: {path} has learned positions")
    if model.rope_scaling is not None and model.rope_scaling != yarn:
        raise UserError(f"--inference_rope_scaling 1: {path} has a RoPE scaling of its own, "
                        f"{model.rope_scaling.rope_type}")
    is_longer = model.max_position_embeddings > yarn.original_max_position_embeddings
    return replace(model, rope_scaling=yarn) if is_longer else model


def place_model(model: MiniMindForCausalLM, runtime: RuntimeSettings, device: torch.device) -> None:
    """Moves the model to its device and makes it compute as the settings ask."""
    model.to(device)
    model.model.gradient_checkpointing = runtime.gradient_checkpointing
    if runtime.use_compile:
        for layer in model.model.layers:
            layer.compile(dynamic=device.type != "cuda")  # on CUDA, batches have two sizes (device.position_multiple)
