"""Weights and adapters of tiny models, as the trainers write them."""

from dataclasses import asdict
from pathlib import Path

import torch
from export_models import random_weights

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.matching import encoding_facts
from minimind_sft.model.adapters.own_file import adapter_path, write_adapter
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.lora import LoraShape, adapted, add_adapters, own_parameters
from minimind_sft.model.lora_targets import projections
from minimind_sft.model.weights import read_weights, weights_path, write_weights

TOKENIZER = load_tokenizer(None)
FACTS = encoding_facts(TOKENIZER, ChatTemplate(TOKENIZER))


def write_base(folder: Path, config: ModelConfig, name: str = "full_sft", scale: float = 1.0) -> Path:
    """Writes random weights; another `scale` makes other ones."""
    model = random_weights(config).build_model()
    model.model.embed_tokens.weight.data.mul_(scale)
    path = weights_path(folder, name, config)
    write_weights(path, model, "float32", {"stage": "full_sft", **FACTS})
    return path


def write_lora(folder: Path, base: Path, name: str, seed: int = 1, rank: int = 4, alpha: float = 8.0,
               saved: tuple[str, ...] = (), targets: str = "", **sidecar) -> Path:
    """Writes a random adapter of all projections, or of those whose names contain `targets`."""
    weights = read_weights(base)
    model = weights.build_model()
    shape = LoraShape(rank, alpha)
    add_adapters(model, [one for one in projections(model) if targets in one], shape)
    generator = torch.Generator().manual_seed(seed)
    for _, change in adapted(model):
        for parameter in (change.lora_A, change.lora_B):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    for one in saved:
        for parameter in model.get_submodule(one).parameters():
            parameter.requires_grad_(True)
            parameter.data.mul_(1.25)
    path = adapter_path(folder, name, weights.config)
    write_adapter(path, own_parameters(model), "float32", {
        "stage": "lora", "base": fingerprint(weights), "model": asdict(weights.config), **FACTS,
        "lora": {"rank": rank, "scale": shape.scale},
        "training": {"step": 3}, **sidecar})
    return path
