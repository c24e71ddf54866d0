"""Builds the model of a run that trains adapters: a frozen base, and what trains beside it."""

from pathlib import Path
from typing import Any

import torch

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.model.build import place_model
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.lora import LoraShape, add_adapters
from minimind_sft.model.lora_targets import chosen_modules, chosen_projections
from minimind_sft.model.quantized import base_model, check_trains_no_4_bits, describe_quantised
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.training import LoraSFTSettings
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.start import starting_weights
from minimind_sft.training.summary import describe_model


def adapted_model(settings: LoraSFTSettings, start: Path, tokenizer: Tokenizer, template: ChatTemplate,
                  ranks: Ranks, dtype: torch.dtype) -> tuple[MiniMindForCausalLM, str]:
    """Builds the base model of the weights at `start` with new adapters, on this rank's device, and describes it.

    Also returns the base's fingerprint.

    Raises:
        UserError: if the weights disagree with the flags, the tokenizer or the chat template, or a pattern names
            nothing.
    """
    weights = starting_weights(settings, start, tokenizer, template, ranks)
    base = fingerprint(weights)
    model = base_model(weights, settings.lora.quantize, settings.model.dropout)
    if settings.lora.quantize != "none":
        ranks.say(f"quantised   {describe_quantised(model)}")
    torch.manual_seed(settings.data.seed)
    attach(model, settings.lora)
    hold_frozen_matrices(model, dtype)
    ranks.say(describe_model(model, start, weights.family, settings.runtime.dtype, ranks.device))
    place_model(model, settings.runtime, ranks.device)
    return model, base


def attach(model: MiniMindForCausalLM, lora: LoraSettings) -> None:
    """Wraps the projections that the settings name, and lets only adapters and `--modules_to_save` train."""
    targets = chosen_projections(model, lora.target_modules)
    in_full = chosen_modules(model, lora.modules_to_save)
    check_trains_no_4_bits(model, in_full)
    shape = LoraShape(lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.use_rslora)
    add_adapters(model, targets, shape)
    for name in in_full:
        model.get_submodule(name).requires_grad_(True)


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


def adapter_identity(lora: LoraSettings, base: str) -> dict[str, Any]:
    """Returns what a resumed run must have in common with the one it continues, beside `run_identity`."""
    return {"base": base, "lora_rank": lora.lora_rank, "lora_alpha": lora.lora_alpha, "use_rslora": lora.use_rslora,
            "target_modules": list(lora.target_modules), "modules_to_save": list(lora.modules_to_save),
            "quantize": lora.quantize}
