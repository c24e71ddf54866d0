"""Finds and reads adapters, whoever wrote them."""

import math
from collections.abc import Sequence
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.files import path_exists
from minimind_sft.gguf_file import is_gguf
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.checking import check_adapter
from minimind_sft.model.adapters.finding import find_adapter
from minimind_sft.model.adapters.minimind import read_minimind
from minimind_sft.model.adapters.own_file import read_own
from minimind_sft.model.adapters.peft import CONFIG, read_peft
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.loaded import Weights
from minimind_sft.model.sidecar import sidecar_path

SHOWN = 12
"""Digits of a fingerprint in an error."""


def read_adapter(path: Path, config: ModelConfig) -> Adapter:
    """Reads an adapter for a model of this configuration: ours, a folder of PEFT's or a .pth of MiniMind's.

    Raises:
        UserError: if it cannot be read, or does not fit the model; names the file and the field or tensor.
    """
    if path.is_file() and (path.parent / CONFIG).is_file():
        path = path.parent  # a file of PEFT's folder means the folder
    if path.is_dir():
        _check_folder(path)
        adapter = read_peft(path, config)
    elif path.suffix == ".safetensors":
        adapter = read_own(path, config)
    elif is_gguf(path):
        raise UserError(f"{path}: a GGUF file, expected an adapter: a .safetensors of this project, a folder of PEFT's "
                        "or a .pth of MiniMind's")
    else:
        adapter = read_minimind(path, config)
    check_adapter(adapter, config)
    return adapter


def _check_folder(path: Path) -> None:
    """
    Raises:
        UserError: if a folder is not an adapter's.
    """
    if not path_exists(path / CONFIG):
        what = "the folder of a model, which --weight takes" if path_exists(path / "config.json") else "a folder"
        raise UserError(f"{path}: {what}, without {CONFIG}; expected an adapter's folder as PEFT writes it")


def split_weight(text: str) -> tuple[str, float]:
    """Splits `style:0.5` into ("style", 0.5); without a weight: 1.

    Raises:
        UserError: if the weight is infinite or no number.
    """
    name, colon, number = text.rpartition(":")
    if not (colon and name) or path_exists(Path(text)):
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0
    if not math.isfinite(weight):
        raise UserError(f"{text}: the weight of an adapter is {number}, expected a finite number")
    return name, weight


def read_adapters(choices: Sequence[str], save_dir: str, weights: Weights, flag: str) -> list[tuple[Adapter, float]]:
    """Finds and reads the adapters that a flag names, each with its weight.

    Raises:
        UserError: if one cannot be found or read, or was trained on other weights.
    """
    adapters = []
    for choice in choices:
        name, weight = split_weight(choice)
        adapters.append((read_adapter(find_adapter(name, save_dir, weights.config, flag), weights.config), weight))
    base = fingerprint(weights) if any(adapter.base for adapter, _ in adapters) else None
    for adapter, _ in adapters:
        if base is not None and adapter.base not in (None, base):
            raise UserError(f"{flag} {adapter.path}: was trained on other weights than {weights.path}: base in "
                            f"{sidecar_path(adapter.path).name} is {adapter.base[:SHOWN]}..., their fingerprint is "
                            f"{base[:SHOWN]}...")
    return adapters
