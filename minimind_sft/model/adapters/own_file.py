"""This project's adapter file: `out/lora_<name>_<hidden_size>[_moe].safetensors` and its sidecar.

The tensors are `<projection>.lora_A` and `<projection>.lora_B`, and whole parameters that were trained in full. The
sidecar says how strong the adapter is, and which weights it was trained on.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minimind_sft.errors import UserError, describe, printable
from minimind_sft.files import sha256_of_file
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.checking import paired, projection_shapes
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import EMBEDDING, HEAD, all_finite, equal_values
from minimind_sft.model.sidecar import model_config, read_sidecar, sidecar_path
from minimind_sft.model.weights_file import read_tensors
from minimind_sft.writing import create_text, write_together

PREFIX = "lora_"
NAME = re.compile(r"(.+)\.lora_([AB])")
SHA256 = re.compile("[0-9a-f]{64}")
WITHOUT_SHAPE = ("max_position_embeddings", "rope_scaling", "dropout")
"""Fields of a configuration that may differ from the base's without making it another model."""


def adapter_path(save_dir: str | Path, name: str, config: ModelConfig) -> Path:
    """Returns the path of an adapter; `lora_x` and `x` are the same name."""
    moe = "_moe" if config.use_moe else ""
    return Path(save_dir) / f"{PREFIX}{name.removeprefix(PREFIX)}_{config.hidden_size}{moe}.safetensors"


def read_own(path: Path, config: ModelConfig) -> Adapter:
    """Reads an adapter of this project for a model of this configuration.

    Raises:
        UserError: if file or sidecar cannot be read, or they contradict each other or the model; names the file, the
            field or tensor, and both values.
    """
    described_by = sidecar_path(path)
    sidecar = _read_sidecar(described_by, path)
    tensors, _, notices = read_tensors(path)  # first, as a file of any size can pretend to be an adapter
    if sidecar["sha256"] != sha256_of_file(path):
        raise UserError(f"{path} is not the file that {described_by} describes (sha256): copy both files together; if "
                        "a run was killed between writing the two, --from_resume 1 writes them again")
    _check_model(sidecar, described_by, config)
    pairs, saved = paired(tensors, NAME, path)
    ranks, scales = (_by_projection(sidecar, name, pairs, described_by) for name in ("rank", "scale"))
    shapes = projection_shapes(config)
    for name, (a, _) in pairs.items():
        if a.ndim == len(shapes.get(name, ())) and a.shape[-2] != ranks[name]:
            raise UserError(f"{described_by}: lora.rank: is {ranks[name]}, but {printable(name)}.lora_A in {path} has "
                            f"{a.shape[-2]}")
    changes = {name: Change(a, b, float(scales[name])) for name, (a, b) in pairs.items()}
    return Adapter(path, changes, _untied(saved, config, path), sidecar["base"], sidecar, tuple(notices))


def _read_sidecar(described_by: Path, path: Path) -> dict[str, Any]:
    sidecar = read_sidecar(described_by)
    if sidecar is None:
        raise UserError(f"{path}: has no sidecar {described_by.name} beside it, which says how strong the adapter is "
                        "and which weights it belongs to: copy both files together")
    if not isinstance(sidecar.get("lora"), dict):
        found = describe(sidecar["lora"]) if "lora" in sidecar else "no such field"
        raise UserError(f"{described_by}: lora: expected an object with rank and scale of the adapter, found {found}"
                        f"{'' if 'lora' in sidecar else f': {path.name} is a model, which --weight takes'}")
    if "model" not in sidecar:
        raise UserError(f"{described_by}: model: expected an object with the model's configuration, found no such "
                        "field")
    for name in ("sha256", "base"):
        if not isinstance(sidecar.get(name), str) or not SHA256.fullmatch(sidecar[name]):
            raise UserError(f"{described_by}: {name}: expected a SHA-256 (64 hexadecimal digits), found "
                            f"{describe(sidecar[name]) if name in sidecar else 'no such field'}")
    return sidecar


def _check_model(sidecar: dict[str, Any], described_by: Path, config: ModelConfig) -> None:
    """Compares the model that the adapter was trained on with the one that it is for, as far as shapes go."""
    trained = model_config(sidecar, described_by)
    if tensor_shapes(trained) == tensor_shapes(config):
        return
    for name, value in asdict(trained).items():
        if getattr(config, name) != value and name not in WITHOUT_SHAPE:
            raise UserError(f"{described_by}: model.{name}: is {value}, but the model has {getattr(config, name)}: the "
                            "adapter belongs to other weights")


def _by_projection(sidecar: dict[str, Any], name: str, projections: Collection[str],
                   described_by: Path) -> dict[str, float]:
    """Returns a number of `lora` in the sidecar for each projection: there it is one for all, or one for each."""
    value = sidecar["lora"].get(name)
    values = value if isinstance(value, dict) else dict.fromkeys(projections, value)
    expected = "a whole number of at least 1" if name == "rank" else "a finite number"
    for one in projections:
        if not _is_usable(values.get(one), name):
            place = f"lora.{name}.{printable(one)}" if isinstance(value, dict) else f"lora.{name}"
            found = "no such field" if values.get(one) is None else describe(values[one])
            raise UserError(f"{described_by}: {place}: expected {expected}, found {found}")
    return {one: values[one] for one in projections}


def _is_usable(value: Any, name: str) -> bool:
    if name == "rank":
        return type(value) is int and value >= 1
    return type(value) in (int, float) and math.isfinite(value)


def _untied(saved: dict[str, Tensor], config: ModelConfig, path: Path) -> dict[str, Tensor]:
    """Returns the parameters that were trained in full without the second name of a tied matrix."""
    if not config.tie_word_embeddings or HEAD not in saved:
        return saved
    if EMBEDDING not in saved or not equal_values(saved[EMBEDDING], saved[HEAD]):
        raise UserError(f"{path}: {HEAD}: differs from {EMBEDDING}, but the model ties them (tie_word_embeddings is "
                        "true)")
    return {name: tensor for name, tensor in saved.items() if name != HEAD}


def write_adapter(path: Path, parameters: Mapping[str, Tensor], dtype: str, sidecar: dict[str, Any]) -> None:
    """Writes the parameters of adapters, and what trained beside them, in `dtype`, with a sidecar; both or neither.

    Raises:
        UserError: if they are not finite in `dtype` or cannot be written. The old files then stay in place.
    """
    tensors = {name: parameter.detach().to("cpu", getattr(torch, dtype)).contiguous()
               for name, parameter in parameters.items()}
    if EMBEDDING in tensors and sidecar["model"]["tie_word_embeddings"]:
        tensors[HEAD] = tensors[EMBEDDING].clone()  # one matrix under both names, as PEFT has it
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise UserError(f"{path}: {name} is not finite in {dtype}; nothing was written (--save_dtype float32 holds "
                            "larger numbers)")

    def save_sidecar(to: Path) -> None:
        record = {"sha256": sha256_of_file(to.with_name(path.name)), "dtype": dtype,
                  "parameters": sum(tensor.numel() for tensor in tensors.values()), **sidecar}
        create_text(to, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    write_together({path: lambda to: save_file(tensors, to), sidecar_path(path): save_sidecar})
