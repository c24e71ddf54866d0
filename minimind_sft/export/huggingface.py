"""Writes a Hugging Face folder: transformers, vLLM and others load it without code of ours.

The layout is that of the model's own family, so a fine-tuned Llama becomes a Llama again, and a MiniMind-3 a Qwen3,
whose tensors have the same names. See transformers' `PreTrainedModel.save_pretrained` for the files.
"""

import json
from pathlib import Path
from typing import Any

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.export.model import Export
from minimind_sft.export.safetensors_writer import SHARD_BYTES, write_shards
from minimind_sft.export.tensors import TheirTensors
from minimind_sft.model.families.family import Family
from minimind_sft.writing import create_text


def write_folder(folder: Path, export: Export, family: Family, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json, generation_config.json, the weights and the tokenizer's files into an empty folder.

    Raises:
        UserError: if a value is too large for the dtype.
    """
    _write_json(folder / "config.json", model_json(export, family))
    _write_json(folder / "generation_config.json", generation_json(export))
    write_tokenizer(folder, export)
    tensors = TheirTensors(export.weights, family, export.dtype)
    write_shards(folder, tensors.shapes, export.dtype, tensors.read, shard_bytes)


def model_json(export: Export, family: Family) -> dict[str, Any]:
    """Returns the content of config.json; transformers 4 reads `torch_dtype`, transformers 5 `dtype`."""
    return {**family.write_config(export.weights.config), **_token_ids(export), "dtype": export.dtype,
            "torch_dtype": export.dtype}


def generation_json(export: Export) -> dict[str, Any]:
    """Returns the content of generation_config.json: answers end at the end of a turn and of a document."""
    return _token_ids(export)


def _token_ids(export: Export) -> dict[str, Any]:
    stops, pad = export.stop_ids, export.tokenizer.pad_id
    return {"bos_token_id": export.tokenizer.bos_id,
            "eos_token_id": (stops if len(stops) > 1 else stops[0]) if stops else None,
            "pad_token_id": pad if pad is not None else stops[-1] if stops else None}


def write_tokenizer(folder: Path, export: Export) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template that training used.

    transformers' `AutoTokenizer` and `Tokenizer.from_folder` read them.
    """
    tokenizer = export.tokenizer
    _write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special, "clean_up_tokenization_spaces": False,
        "model_max_length": export.weights.config.max_position_embeddings})
    if export.template is None:
        return
    source, *tool_source = export.template.complete_sources()
    create_text(folder / "chat_template.jinja", source)
    for one in tool_source:
        (folder / "additional_chat_templates").mkdir()
        create_text(folder / "additional_chat_templates" / "tool_use.jinja", one)


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of tokenizer.json; its post-processor tells transformers whether texts begin with bos."""
    if Tokenizer(tokenizer.state, tokenizer.special).adds_bos == tokenizer.adds_bos:
        return tokenizer.state
    return {**tokenizer.state, "post_processor": _bos_first(tokenizer) if tokenizer.adds_bos else None}


def _bos_first(tokenizer: Tokenizer) -> dict[str, Any]:
    bos = tokenizer.special["bos_token"]
    parts = [[{"SpecialToken": {"id": bos, "type_id": index}}, {"Sequence": {"id": name, "type_id": index}}]
             for index, name in enumerate("AB")]
    return {"type": "TemplateProcessing", "single": parts[0], "pair": parts[0] + parts[1],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}}}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    create_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
