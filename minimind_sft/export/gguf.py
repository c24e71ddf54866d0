"""Writes a GGUF file for llama.cpp, Ollama and whatever else reads that format.

Matrices get the dtype that was asked for. Vectors, the router of a mixture and learned positions stay float32, as in
llama.cpp's own converter: its kernels for them take nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.export.gguf_tokens import tokenizer_metadata
from minimind_sft.export.model import Export
from minimind_sft.export.progress import with_bar
from minimind_sft.export.tensors import TheirTensors, rounded
from minimind_sft.gguf_file import gguf_package
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.gguf_rope import DIVISORS

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""Our names of the dtypes to write, and ggml's."""
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
"""`general.file_type`, llama.cpp's `llama_ftype`."""
QUANTIZATION_VERSION = 2
MAX_Q8_0 = 127 * torch.finfo(torch.float16).max
"""A value is a whole number up to 127 times a scale in float16."""
ALWAYS_FLOAT32 = ("position_embd.weight", "ffn_gate_inp.weight", DIVISORS)


def write_gguf(path: Path, export: Export, family: Family) -> None:
    """Writes model, tokenizer and chat template into one file.

    Args:
        family: an architecture that can express the model (`choose_family` among GGUF_FAMILIES).

    Raises:
        UserError: if a value is too large for the dtype, or the tokenizer cannot be expressed.
    """
    gguf = gguf_package()
    description = family.write_config(export.weights.config)
    tensors = TheirTensors(export.weights, family, "float32")
    shapes = dict(tensors.shapes)
    if description.rope_divisors is not None:
        shapes[DIVISORS] = tuple(description.rope_divisors.shape)
    types = {name: _type_of(name, shape, DTYPES[export.dtype]) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, family.name)
    try:
        _add_metadata(writer, {
            "general.type": "model", "general.name": export.weights.path.stem,
            "general.file_type": FILE_TYPES[DTYPES[export.dtype]], "general.quantization_version": QUANTIZATION_VERSION,
            **description.metadata, **tokenizer_metadata(export)})
        for name, shape in shapes.items():
            kind = gguf.GGMLQuantizationType[types[name]]
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = int(np.prod(shape)) // block * block_bytes
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in with_bar(shapes, "writing"):
            tensor = description.rope_divisors if name == DIVISORS else tensors.read(name)
            writer.write_tensor_data(_as_stored(tensor, name, types[name]))
    finally:
        writer.close()


def _type_of(name: str, shape: tuple[int, ...], asked: str) -> str:
    if len(shape) == 1 or name.endswith(ALWAYS_FLOAT32):
        return "F32"
    block, _ = gguf_package().GGML_QUANT_SIZES[gguf_package().GGMLQuantizationType[asked]]
    return asked if shape[-1] % block == 0 else "F16"


def _as_stored(tensor: Tensor, name: str, kind: str) -> np.ndarray:
    """Returns the bytes of a float32 tensor in ggml's type.

    Raises:
        UserError: if a value is too large for it.
    """
    if kind != "Q8_0":
        dtype = next(ours for ours, theirs in DTYPES.items() if theirs == kind)
        return rounded(tensor, name, dtype).contiguous().view(torch.uint8).numpy()
    if (largest := float(tensor.abs().max())) > MAX_Q8_0:
        raise UserError(f"--dtype q8_0: {name} has values too large for it (up to {largest:.3g}); bfloat16 and float32 "
                        "hold them")
    gguf = gguf_package()
    return gguf.quants.quantize(tensor.contiguous().numpy(), gguf.GGMLQuantizationType.Q8_0)


def _add_metadata(writer: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
