"""Finds and reads adapters, whoever wrote them."""

from collections.abc import Sequence
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.checking import check_adapter
from minimind_sft.model.adapters.minimind import read_minimind
from minimind_sft.model.adapters.own_file import PREFIX, read_own
from minimind_sft.model.adapters.peft import CONFIG, read_peft
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.loaded import Weights


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


def read_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Reads an adapter for a model of this configuration: ours, a folder of PEFT's or a .pth of MiniMind's.

    Raises:
        UserError: if it cannot be read, or does not fit the model; names the file and the field or tensor.
    """
    if path.is_file() and (path.parent / CONFIG).is_file():
        path = path.parent  # a file of PEFT's folder means the folder
    if path.is_dir():
        adapter = read_peft(path, config)
    elif path.suffix == ".safetensors":
        adapter = read_own(path)
    else:
        adapter = read_minimind(path, config)
    check_adapter(adapter, config)
    return adapter


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
        adapters.append((read_adapter(find_adapter(name, save_dir, weights.config, flag), weights.config), weight))
    base = fingerprint(weights) if adapters else None
    for adapter, _ in adapters:
        if adapter.base not in (None, base):
            raise UserError(f"{flag} {adapter.path}: was trained on other weights than {weights.path}")
    return adapters
