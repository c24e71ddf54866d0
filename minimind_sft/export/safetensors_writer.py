"""Writes safetensors files one tensor at a time, so that a model need not fit into memory twice.

The format: eight bytes with the length of a JSON header, the header (dtype, shape and place of each tensor), the data.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind_sft.export.progress import with_bar
from minimind_sft.writing import create, create_text

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SHARD_BYTES = 5 * 10**9
"""Larger models are divided into several files, as transformers divides them."""
ALIGNMENT = 8

Shapes = Mapping[str, tuple[int, ...]]


def write_shards(folder: Path, shapes: Shapes, dtype: str, read: Callable[[str], Tensor],
                 shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `model.safetensors`, or for a large model shards and their index.

    Args:
        read: returns a tensor by its name, in `dtype`. Called once for each name, in order.
    """
    shards = _divided(shapes, dtype, shard_bytes)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shapes, dtype, read)
        return
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, dtype, read)
        place |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(_bytes(shape, dtype) for shape in shapes.values())}, "weight_map": place}
    create_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def write_file(path: Path, shapes: Shapes, dtype: str, read: Callable[[str], Tensor]) -> None:
    """Writes one file; the arguments are those of `write_shards`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers reads no file without it
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with create(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in with_bar(shapes.items(), f"writing {path.name}"):
            tensor = read(name)
            assert tuple(tensor.shape) == tuple(shape) and tensor.dtype == getattr(torch, dtype), name
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _divided(shapes: Shapes, dtype: str, shard_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Fills shards one after the other; a tensor larger than a shard gets its own."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = _bytes(shape, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tuple(shape)
        filled += size
    return shards


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * getattr(torch, dtype).itemsize
