"""Reads a Hugging Face folder: config.json, and weights in one file or several."""

from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError, printable
from minimind_sft.files import path_exists, peek_object, read_configuration
from minimind_sft.model.families.registry import family_of
from minimind_sft.model.families.translate import Translated
from minimind_sft.model.finding import AN_ADAPTER
from minimind_sft.model.loaded import Weights
from minimind_sft.model.shards import Shards
from minimind_sft.terminal import counted


def read_folder(path: Path) -> Weights:
    """Reads a model's folder. Tensors are read when they are asked for.

    Raises:
        UserError: if it is no model's folder, one of its files cannot be read, or the decoder cannot compute the model;
            names the file, the field and what to do.
    """
    values = _read_config(path)
    try:
        family = family_of(values)
        config = family.read_config(values)
    except UserError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    shards = Shards(path)
    modules = config.num_hidden_layers * (config.num_experts if config.use_moe else 1)
    if modules > len(shards.shapes):  # before a model with a million experts is laid out
        raise UserError(f"{path}: {counted(len(shards.shapes), 'tensor')} cannot be the {modules:,} layers or "
                        "experts of config.json: download the model again")
    return Weights(path, config, Translated(family, config, shards), None, tuple(shards.notices), family.name)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if path_exists(folder / "adapter_config.json"):
        base = peek_object(folder / "adapter_config.json").get("base_model_name_or_path")
        named = f" (for {printable(base)})" if isinstance(base, str) and base else ""
        raise UserError(f"{folder}{named}: {AN_ADAPTER}")
    if not path_exists(path):
        raise UserError(f"{folder}: a folder without config.json, expected a model's folder as Hugging Face has them"
                        f"{_advice(folder)}")
    return read_configuration(path)


def _advice(folder: Path) -> str:
    """Returns what to give instead of a folder that is not a model's."""
    def first(pattern: str) -> Path | None:
        return min(folder.glob(pattern), default=None)

    checkpoints = [path for path in folder.glob("checkpoint-*") if (path / "config.json").exists()]
    if checkpoints:
        newest = max(checkpoints, key=lambda path: path.stat().st_mtime)
        return f"; it holds the checkpoints of a run: give one of them, such as {newest}"
    if first("step-*/manifest.json"):
        return "; it holds the resume states of a run: continue with --from_resume 1, or give its weights in --save_dir"
    for pattern in ("*.gguf", "*.pth", "*.safetensors"):
        if (found := first(pattern)) and not (folder / "params.json").exists():
            return f"; it holds weights: give the file, such as {found}"
    if first("*.pth") or first("tokenizer.model"):
        return "; it is in the layout of the model's maker: get the version for transformers"
    if first("tokenizer.json"):
        return "; it holds only a tokenizer, which --tokenizer_path takes"
    return ""
