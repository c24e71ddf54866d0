"""Reads and writes weights files, together with the sidecar that describes them.

`out/full_sft_512.pth` is a plain state dict, half precision by default; `out/full_sft_512.json` beside it is its
sidecar. MiniMind's own .pth files have no sidecar (minimind.py).
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minimind_sft.errors import UserError, first_line, printable
from minimind_sft.files import peek_object, sha256_of_file
from minimind_sft.gguf_file import is_gguf
from minimind_sft.model import minimind
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.finding import AN_ADAPTER, folder_of
from minimind_sft.model.folder import read_folder
from minimind_sft.model.gguf import read_gguf
from minimind_sft.model.loaded import EMBEDDING, HEAD, LazyTensors, Weights, all_finite
from minimind_sft.model.sidecar import assumed_fields, model_config, read_sidecar, sidecar_path
from minimind_sft.model.weights_file import read_tensors
from minimind_sft.writing import create_text, leftovers, remove_leftovers, write_together

OF_ADAPTER = re.compile(r"\.lora\.[AB]\b|\.lora_[AB]\b")
"""Found in the names of an adapter's tensors, whoever wrote it."""


def weights_path(save_dir: str | Path, name: str, config: ModelConfig) -> Path:
    return Path(save_dir) / f"{name}_{config.hidden_size}{'_moe' if config.use_moe else ''}.pth"


def read_weights(path: Path, check_sum: bool = True) -> Weights:
    """Reads a weights file and its sidecar; `check_sum` compares the file with the SHA-256 in the sidecar.

    A GGUF file is read as llama.cpp's, a folder as Hugging Face's, and so is the folder of a file that belongs to one.
    None of these has a sidecar.

    Raises:
        UserError: if either cannot be read, if they contradict each other, or if this is no model known here.
    """
    if path.is_dir():
        return read_folder(path)
    if is_gguf(path):
        return read_gguf(path)
    if folder := folder_of(path):
        weights = read_folder(folder)
        return replace(weights, notices=(f"{path}: part of the model in {folder}, which was read", *weights.notices))
    tensors, shapes, notices = read_tensors(path)
    if adapter := next((name for name in shapes if OF_ADAPTER.search(name)), None):
        raise UserError(f"{path}: {printable(adapter)}: {AN_ADAPTER}")
    tables = [name for name in tensors if minimind.ROPE_TABLES.fullmatch(name)]
    if tables:
        notices.append(f"{path}: {', '.join(tables)}: not used; tables of RoPE follow from the configuration")
        tensors = LazyTensors((name for name in tensors if name not in tables), tensors.__getitem__)
    described_by = sidecar_path(path)
    sidecar = read_sidecar(described_by)
    if sidecar is None or "assume" in sidecar:
        config, notice = minimind.describe(tensors, shapes, path, assumed_fields(sidecar, described_by))
        return Weights(path, config, tensors, None, (*notices, notice))
    if check_sum and sidecar.get("sha256") not in (None, sha256_of_file(path)):
        raise UserError(f"{path} is not the file that {described_by} describes (sha256): if a run was killed between "
                        "writing the two, --from_resume 1 writes them again; if you changed the weights on purpose, "
                        "remove the sha256 line")
    config = model_config(sidecar, described_by)
    for name, value in minimind.facts_in_shapes(shapes, path, config.num_attention_heads).items():
        if getattr(config, name) != value:
            raise UserError(f"{described_by}: model.{name}: is {getattr(config, name)}, but the tensors in {path} "
                            f"have {value}")
    return Weights(path, config, tensors, sidecar, tuple(notices), sidecar.get("family"))


def write_weights(path: Path, model: MiniMindForCausalLM, dtype: str, sidecar: dict[str, Any]) -> None:
    """Writes the state dict in `dtype` and its sidecar, both or neither.

    If the process is killed between the two, the sidecar is left in a private folder for `finish_writing`.

    Raises:
        UserError: if the weights are not finite in `dtype` or cannot be written. The old files then stay in place.
    """
    tensors = _in_dtype(model, getattr(torch, dtype), may_share=path.suffix != ".safetensors")
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise UserError(f"{path}: {name} is not finite in {dtype}; nothing was written (--save_dtype float32 holds "
                            "larger numbers)")
    save: Callable[[Path], None] = (
        (lambda to: save_file(tensors, to)) if path.suffix == ".safetensors" else (lambda to: torch.save(tensors, to)))

    def save_sidecar(to: Path) -> None:
        record = {"sha256": sha256_of_file(to.with_name(path.name)),
                  "model": asdict(replace(model.config, dropout=0.0)), "dtype": dtype,
                  "parameters": sum(parameter.numel() for parameter in model.parameters()), **sidecar}
        create_text(to, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    try:
        write_together({path: save, sidecar_path(path): save_sidecar})
    except (OSError, RuntimeError, SafetensorError) as error:
        needed, reason = sum(tensor.nbytes for tensor in tensors.values()), first_line(error)
        if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < needed:
            reason = f"No space left on device: {needed / 1e6:.1f} MB are needed"  # torch.save does not say so
        raise UserError(f"{path}: cannot be written ({reason})") from error


def _in_dtype(model: MiniMindForCausalLM, dtype: torch.dtype, may_share: bool) -> dict[str, torch.Tensor]:
    """Returns the state dict on the CPU, without copies of what has that dtype already.

    Args:
        may_share: whether a tied head may stay one tensor with the embedding; safetensors leaves it out instead.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tied = model.config.tie_word_embeddings
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in state.items()
               if not (tied and name == HEAD)}
    if tied and may_share:
        tensors[HEAD] = tensors[EMBEDDING]
    return tensors


def finish_writing(path: Path) -> None:
    """Finishes a write that was killed halfway: moves the sidecar into place if it fits the weights.

    Removes what else killed processes left there.
    """
    for folder in leftovers(path.parent):
        sidecar = folder / sidecar_path(path).name
        if path.is_file() and sidecar.is_file() and peek_object(sidecar).get("sha256") == sha256_of_file(path):
            sidecar.replace(sidecar_path(path))
    remove_leftovers(path.parent)
