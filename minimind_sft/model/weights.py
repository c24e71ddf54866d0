"""Reads and writes weights files, together with the sidecar that describes them.

`out/full_sft_512.pth` is a plain state dict, half precision by default; `out/full_sft_512.json` beside it is its
sidecar. MiniMind's own .pth files have no sidecar. Their configuration is read off the shapes of their tensors, as far
as shapes go; the rest is MiniMind-3's default.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minimind_sft.errors import UserError, first_line
from minimind_sft.files import peek_object, sha256_of_file, temporary_name, write_together
from minimind_sft.gguf_file import is_gguf
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.folder import read_folder
from minimind_sft.model.gguf import read_gguf
from minimind_sft.model.loaded import EMBEDDING, HEAD, Weights, equal_values
from minimind_sft.model.sidecar import model_config, read_sidecar, sidecar_path
from minimind_sft.model.weights_file import read_tensors


def weights_path(save_dir: str | Path, name: str, config: ModelConfig) -> Path:
    return Path(save_dir) / f"{name}_{config.hidden_size}{'_moe' if config.use_moe else ''}.pth"


def read_weights(path: Path, check_sum: bool = True) -> Weights:
    """Reads a weights file and its sidecar; `check_sum` compares the file with the SHA-256 in the sidecar.

    A folder is read as Hugging Face's, a GGUF file as llama.cpp's; neither has a sidecar.

    Raises:
        UserError: if either cannot be read, if they contradict each other, or if this is no MiniMind model.
    """
    if path.is_dir():
        return read_folder(path)
    if is_gguf(path):
        return read_gguf(path)
    tensors, tensor_shapes, notices = read_tensors(path)
    shapes = config_from_shapes(tensors, tensor_shapes, path)
    described_by = sidecar_path(path)
    sidecar = read_sidecar(described_by)
    if sidecar is None:
        config = shapes
        notices.append(
            f"{path} has no sidecar; its shapes say {config.hidden_size} x {config.num_hidden_layers} layers, "
            f"{config.num_attention_heads}/{config.num_key_value_heads} heads, vocabulary {config.vocab_size}; for "
            f"the rest MiniMind-3's defaults are used: rope_theta {config.rope_theta:g}"
            + (f", {config.num_experts_per_tok} expert per token, weights normalised" if config.use_moe else ""))
    else:
        if check_sum and sidecar.get("sha256") not in (None, sha256_of_file(path)):
            raise UserError(f"{path} is not the file that {described_by} describes (sha256): if a run was killed "
                            "between writing the two, --from_resume 1 writes them again; if you changed the weights "
                            "on purpose, remove the sha256 line")
        config = model_config(sidecar, described_by)
        for name in _fields_in_shapes(shapes):
            if getattr(config, name) != getattr(shapes, name):
                raise UserError(f"{described_by}: model.{name}: is {getattr(config, name)}, but the tensors in {path} "
                                f"have {getattr(shapes, name)}")
    return Weights(path, config, tensors, sidecar, tuple(notices))


def config_from_shapes(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]],
                       path: Path) -> ModelConfig:
    """Reads a configuration off the shapes of a MiniMind-3 state dict; all else is MiniMind-3's default.

    Raises:
        UserError: if a tensor that every MiniMind-3 model has is missing or has an impossible shape.
    """
    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"{path}: not a MiniMind-3 state dict: it has no {name}")
        if len(shapes[name]) != dimensions:
            raise UserError(f"{path}: {name}: expected {dimensions} dimensions, found {list(shapes[name])}")
        return shapes[name]

    first = "model.layers.0."
    vocab_size, hidden_size = shape("model.embed_tokens.weight")
    head_dim = shape(first + "self_attn.q_norm.weight", 1)[0]
    layers = {int(match[1]) for name in shapes if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    use_moe = first + "mlp.gate.weight" in shapes
    experts = shape(first + "mlp.gate.weight")[0] if use_moe else ModelConfig.num_experts
    width = shape(first + ("mlp.experts.0." if use_moe else "mlp.") + "gate_proj.weight")[0]
    try:
        return ModelConfig(
            vocab_size=vocab_size, hidden_size=hidden_size, num_hidden_layers=len(layers), head_dim=head_dim,
            num_attention_heads=shape(first + "self_attn.q_proj.weight")[0] // head_dim,
            num_key_value_heads=shape(first + "self_attn.k_proj.weight")[0] // head_dim,
            intermediate_size=width, use_moe=use_moe, num_experts=experts, moe_intermediate_size=width,
            tie_word_embeddings=HEAD not in shapes or equal_values(tensors[HEAD], tensors[EMBEDDING]),
            norm_topk_prob=True,
        )
    except UserError as error:
        raise UserError(f"{path}: its shapes do not make a model: {error}") from error


def _fields_in_shapes(shapes: ModelConfig) -> tuple[str, ...]:
    """Returns the fields that shapes decide; a sidecar with another value is wrong."""
    width = ("num_experts", "moe_intermediate_size") if shapes.use_moe else ("intermediate_size",)
    return ("vocab_size", "hidden_size", "num_hidden_layers", "use_moe", "head_dim", "num_attention_heads",
            "num_key_value_heads", *width)


def write_weights(path: Path, model: MiniMindForCausalLM, dtype: str, sidecar: dict[str, Any]) -> None:
    """Writes the state dict in `dtype` and its sidecar, both or neither.

    If the process is killed between the two, the sidecar is left under its temporary name for `finish_writing`.

    Raises:
        UserError: if the weights are not finite in `dtype` or cannot be written. The old files then stay in place.
    """
    tensors = {name: tensor.detach().to("cpu", getattr(torch, dtype), copy=True).contiguous()
               for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} is not finite in {dtype}; nothing was written (--save_dtype float32 holds "
                            "larger numbers)")
    save: Callable[[Path], None] = (
        (lambda to: save_file(tensors, to)) if path.suffix == ".safetensors" else (lambda to: torch.save(tensors, to)))

    def save_sidecar(to: Path) -> None:
        record = {"sha256": sha256_of_file(temporary_name(path)), "model": asdict(replace(model.config, dropout=0.0)),
                  "dtype": dtype, "parameters": sum(parameter.numel() for parameter in model.parameters()), **sidecar}
        to.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    try:
        write_together({path: save, sidecar_path(path): save_sidecar})
    except (OSError, RuntimeError, SafetensorError) as error:
        needed, reason = sum(tensor.nbytes for tensor in tensors.values()), first_line(error)
        if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < needed:
            reason = f"No space left on device: {needed / 1e6:.1f} MB are needed"  # torch.save does not say so
        raise UserError(f"{path}: cannot be written ({reason})") from error


def finish_writing(path: Path) -> None:
    """Finishes a write that was killed halfway: moves the sidecar into place if it fits, removes temporary files."""
    temporary_name(path).unlink(missing_ok=True)
    sidecar = temporary_name(sidecar_path(path))
    if sidecar.is_file() and path.is_file() and peek_object(sidecar).get("sha256") == sha256_of_file(path):
        sidecar.replace(sidecar_path(path))
    sidecar.unlink(missing_ok=True)
