"""This project's adapter file: `out/lora_<name>_<hidden_size>[_moe].safetensors` and its sidecar.

The tensors are `<projection>.lora_A` and `<projection>.lora_B`, and whole parameters that were trained in full. The
sidecar says how strong the adapter is, and which weights it was trained on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.files import read_object, sha256_of_file, temporary_name, write_together
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.loaded import all_finite
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.model.weights_file import read_tensors

PREFIX = "lora_"


def adapter_path(save_dir: str | Path, name: str, config: ModelConfig) -> Path:
    """Returns the path of an adapter; `lora_x` and `x` are the same name."""
    moe = "_moe" if config.use_moe else ""
    return Path(save_dir) / f"{PREFIX}{name.removeprefix(PREFIX)}_{config.hidden_size}{moe}.safetensors"


def read_own(path: Path) -> Adapter:
    """Reads an adapter of this project.

    Raises:
        UserError: if it cannot be read.
    """
    described_by = sidecar_path(path)
    sidecar = read_object(described_by)
    if sidecar.get("sha256") != sha256_of_file(path):
        raise UserError(f"{path} is not the file that {described_by} describes (sha256)")
    scale = sidecar["lora"]["scale"]  # a number, or one for each projection
    tensors, _, notices = read_tensors(path)
    read = {name: tensors[name].to(torch.float32) for name in tensors}
    names = [name.removesuffix(".lora_A") for name in read if name.endswith(".lora_A")]
    changes = {name: Change(read.pop(f"{name}.lora_A"), read.pop(f"{name}.lora_B"),
                            scale[name] if isinstance(scale, dict) else scale) for name in names}
    return Adapter(path, changes, read, sidecar["base"], sidecar, tuple(notices))


def write_adapter(path: Path, parameters: Mapping[str, Tensor], dtype: str, sidecar: dict[str, Any]) -> None:
    """Writes the parameters of adapters, and what trained beside them, in `dtype`, with a sidecar; both or neither.

    Raises:
        UserError: if they are not finite in `dtype` or cannot be written. The old files then stay in place.
    """
    tensors = {name: parameter.detach().to("cpu", getattr(torch, dtype)).contiguous()
               for name, parameter in parameters.items()}
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise UserError(f"{path}: {name} is not finite in {dtype}; nothing was written (--save_dtype float32 holds "
                            "larger numbers)")

    def save_sidecar(to: Path) -> None:
        record = {"sha256": sha256_of_file(temporary_name(path)), "dtype": dtype,
                  "parameters": sum(tensor.numel() for tensor in tensors.values()), **sidecar}
        to.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    write_together({path: lambda to: save_file(tensors, to), sidecar_path(path): save_sidecar})
