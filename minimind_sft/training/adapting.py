"""Builds the model of a run that trains adapters: a frozen base, and what trains beside it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.device import resolve_dtype
from minimind_sft.errors import UserError
from minimind_sft.matching import base_notices
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.own_file import adapter_path
from minimind_sft.model.adapters.reading import read_adapters
from minimind_sft.model.build import place_model
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.loaded import Weights
from minimind_sft.model.lora import LoraShape, adapted, add_adapters, own_parameters
from minimind_sft.model.lora_targets import check_choice, chosen_modules, chosen_projections, tied_notices
from minimind_sft.model.quantized import (
    base_model,
    check_replaces_no_4_bits,
    check_trains_no_4_bits,
    describe_quantised,
)
from minimind_sft.paths import shown
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.training import LoraSFTSettings
from minimind_sft.terminal import counted
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.start import starting_weights
from minimind_sft.training.summary import describe_model


def adapted_model(settings: LoraSFTSettings, start: Path | None, tokenizer: Tokenizer, template: ChatTemplate,
                  ranks: Ranks) -> tuple[MiniMindForCausalLM, str]:
    """Builds the base model of the weights at `start` with adapters, on this rank's device, and describes it.

    Also returns the base's fingerprint.

    Raises:
        UserError: if the weights disagree with the flags, the tokenizer or the chat template, a pattern names nothing,
            or the adapter to start from cannot be used with these weights.
    """
    assert start is not None, "the settings refuse --from_weight none"
    weights, lora = starting_weights(settings, start, tokenizer, template, ranks), settings.lora
    base = fingerprint(weights)
    model = base_model(weights, lora.quantize, settings.model.dropout)
    if lora.quantize != "none":
        ranks.say(f"quantised   {describe_quantised(model)}")
    if lora.from_lora is None:
        torch.manual_seed(settings.data.seed)
        attach(model, lora)
    else:
        adapter = adapter_to_continue(settings, weights)
        attach_trained(model, adapter, lora.lora_dropout)
        ranks.say(*(f"adapter     {notice}" for notice in (*adapter.notices, *base_notices(adapter, lora.quantize))),
                  f"adapter     {shown(adapter.path)}: {describe_adapters(model)}")
    hold_frozen_matrices(model, resolve_dtype(settings.runtime.dtype, ranks.device))
    ranks.say(*(f"adapter     {notice}" for notice in tied_notices(model)))
    ranks.say(describe_model(model, start, weights.family, settings.runtime.dtype, ranks.device))
    place_model(model, settings.runtime, ranks.device)
    return model, base


def adapter_to_continue(settings: LoraSFTSettings, weights: Weights) -> Adapter:
    """Reads the adapter that `--from_lora` names.

    Raises:
        UserError: if it cannot be found, read or used with these weights, or this run would replace it.
    """
    lora, save_dir = settings.lora, settings.saving.save_dir
    assert lora.from_lora is not None
    (adapter, weight), = read_adapters([lora.from_lora], save_dir, weights, "--from_lora")
    if weight != 1:
        raise UserError(f"--from_lora {lora.from_lora}: an adapter to train on has no weight")
    if not adapter.changes:
        raise UserError(f"--from_lora {shown(adapter.path)}: changes no projection, so there is no adapter to train")
    written = adapter_path(save_dir, lora.lora_name, weights.config)
    if written.exists() and written.samefile(adapter.path):
        raise UserError(f"--from_lora reads {shown(adapter.path)}, and this run would replace it: choose another "
                        "--lora_name")
    return adapter


def attach(model: MiniMindForCausalLM, lora: LoraSettings) -> None:
    """Wraps the projections that the settings name, and lets only adapters and `--modules_to_save` train."""
    targets = chosen_projections(model, lora.targets)
    in_full = chosen_modules(model, lora.modules_to_save)
    check_trains_no_4_bits(model, in_full)
    check_choice(model, targets, in_full, lora.rank)
    add_adapters(model, targets, lora_shape(lora))
    for name in in_full:
        model.get_submodule(name).requires_grad_(True)


def lora_shape(lora: LoraSettings) -> LoraShape:
    """Returns the shape of the adapters that the settings ask for."""
    return LoraShape(lora.rank, lora.alpha, lora.lora_dropout, lora.use_rslora)


@torch.no_grad()
def attach_trained(model: MiniMindForCausalLM, adapter: Adapter, dropout: float) -> None:
    """Wraps the projections that an adapter changes, each with its own rank and scale, to train it further."""
    check_replaces_no_4_bits(model, adapter.saved, adapter.path)
    add_adapters(model, list(adapter.changes), LoraShape(rank=1, dropout=dropout))  # matrices and scales follow
    for name, place in adapted(model):
        change = adapter.changes[name]
        place.lora_A, place.lora_B = (nn.Parameter(matrix.to(torch.float32, copy=True)) for matrix in change[:2])
        place.scale = change.scale
    for name, tensor in adapter.saved.items():
        model.get_parameter(name).copy_(tensor).requires_grad_(True)


def hold_frozen_matrices(model: MiniMindForCausalLM, dtype: torch.dtype) -> None:
    """Keeps the frozen matrices of all layers in the precision of the products.

    Autocast would round them to it again in every forward pass, and they would take twice the memory.
    """
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        for matrix in layer.matrices():
            for parameter in matrix.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def adapter_facts(model: MiniMindForCausalLM, lora: LoraSettings, base: str) -> dict[str, Any]:
    """Describes adapters for their sidecar: their base, the model's shape, and what they change by how much."""
    return {"base": base, "model": asdict(replace(model.config, dropout=0.0)),
            "lora": {**_structure(model), "quantize": lora.quantize}}


def adapter_identity(model: MiniMindForCausalLM, lora: LoraSettings, base: str) -> dict[str, Any]:
    """Returns what a resumed run must have in common with the one it continues, beside `run_identity`.

    Which layers have adapters shows when the tensors are loaded.
    """
    structure = _structure(model)
    return {"base": base, "lora_rank": structure.pop("rank"), "lora_scale": structure.pop("scale"), **structure,
            "quantize": lora.quantize}


def _structure(model: MiniMindForCausalLM) -> dict[str, Any]:
    """Says what the adapters of a model change; rank and scale are numbers, or by projection where they differ."""
    changes = dict(adapted(model))
    in_full = [name for name in own_parameters(model) if not name.endswith((".lora_A", ".lora_B"))]
    return {"rank": _common({name: change.lora_A.shape[-2] for name, change in changes.items()}),
            "scale": _common({name: change.scale for name, change in changes.items()}),
            "target_modules": sorted({name.rpartition(".")[2] for name in changes}),
            "modules_to_save": in_full}


def describe_adapters(model: MiniMindForCausalLM) -> str:
    """Gives rank, scale and number of a model's adapters in words."""
    changes = [change for _, change in adapted(model)]
    ranks = sorted({change.lora_A.shape[-2] for change in changes})
    scales = sorted({change.scale for change in changes})
    return (f"rank {_range(ranks)}, scale {_range(scales)}, "
            f"{counted(len(changes), 'projection')}")


def _common(values: Mapping[str, Any]) -> Any:
    """Returns the one value that all have, or else the values by name."""
    different = set(values.values())
    return different.pop() if len(different) == 1 else dict(values)


def _range(numbers: list[Any]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"
