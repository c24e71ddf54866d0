"""Finds and reads adapters, whoever wrote them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minimind_sft.errors import UserError
from minimind_sft.files import read_object, sha256_of_file
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.own_file import PREFIX
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.loaded import Weights
from minimind_sft.model.lora import LoraShape
from minimind_sft.model.sidecar import sidecar_path


def find_adapter(name: str, save_dir: str | Path, config: ModelConfig, flag: str) -> Path:
    """Finds the adapter that a name means: `<save_dir>/lora_<name>_<hidden_size>[_moe].safetensors`, or a path.

    Raises:
        UserError: if there is none.
    """
    path = Path(name)
    if path.exists():
        return path
    moe = "_moe" if config.use_moe else ""
    short = name.removeprefix(PREFIX)
    found = Path(save_dir) / f"{PREFIX}{short}_{config.hidden_size}{moe}.safetensors"
    if found.is_file():
        return found
    raise UserError(f"{flag} {name}: no {found}, and no file or folder of that name")


def read_adapter(path: Path) -> Adapter:
    """Reads an adapter of this project.

    Raises:
        UserError: if it cannot be read.
    """
    described_by = sidecar_path(path)
    sidecar = read_object(described_by)
    if sidecar.get("sha256") != sha256_of_file(path):
        raise UserError(f"{path} is not the file that {described_by} describes (sha256)")
    lora = sidecar["lora"]
    scale = LoraShape(lora["lora_rank"], lora["lora_alpha"], use_rslora=lora["use_rslora"]).scale
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not an adapter that can be read ({error})") from error
    names = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    changes = {name: Change(tensors.pop(f"{name}.lora_A"), tensors.pop(f"{name}.lora_B"), scale) for name in names}
    return Adapter(path, changes, tensors, sidecar["base"], sidecar)


def split_weight(text: str) -> tuple[str, float]:
    """Splits `style:0.5` into ("style", 0.5); without a weight: 1."""
    name, colon, number = text.rpartition(":")
    try:
        return (name, float(number)) if colon and name and not Path(text).exists() else (text, 1.0)
    except ValueError:
        return text, 1.0


def read_adapters(choices: Sequence[str], save_dir: str, weights: Weights, flag: str) -> list[tuple[Adapter, float]]:
    """Finds and reads the adapters that a flag names, each with its weight.

    Raises:
        UserError: if one cannot be found or read, or was trained on other weights.
    """
    adapters = []
    for choice in choices:
        name, weight = split_weight(choice)
        adapters.append((read_adapter(find_adapter(name, save_dir, weights.config, flag)), weight))
    base = fingerprint(weights) if adapters else None
    for adapter, _ in adapters:
        if adapter.base not in (None, base):
            raise UserError(f"{flag} {adapter.path}: was trained on other weights than {weights.path}")
    return adapters
