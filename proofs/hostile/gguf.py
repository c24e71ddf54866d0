"""GGUF files: each value of the metadata replaced by odd ones, odd headers, and files with bytes changed or missing."""

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np

from hostile.small_models import chat, train, written_as
from hostile.tries import Try
from minimind_sft.gguf_file import GGUFFile

KIND = "GGUF files"

KINDS = gguf.GGUFValueType
ODD: list[tuple[Any, ...]] = [
    (0, KINDS.UINT32), (1, KINDS.UINT32), (2**32 - 1, KINDS.UINT32), (2**63, KINDS.UINT64), (-1, KINDS.INT32),
    (-2**63, KINDS.INT64), (0.0, KINDS.FLOAT32), (float("nan"), KINDS.FLOAT32), (float("inf"), KINDS.FLOAT64),
    (1e-300, KINDS.FLOAT64), (True, KINDS.BOOL), ("", KINDS.STRING), ("x\x1b[2J\u202e", KINDS.STRING),
    ("a" * 100_000, KINDS.STRING), ([1, 2, 3], KINDS.ARRAY), (["a", ""], KINDS.ARRAY),
    ([float("nan")] * 3, KINDS.ARRAY), ([True], KINDS.ARRAY)]
"""Values, each with its type in the file."""
SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
"""Metadata that must fit the tensors: no other value than the right one is accepted."""


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    good = written_as("gguf", folder / "good.gguf")
    file = GGUFFile(good)
    whole = good.read_bytes()
    header_bytes = min(stored.offset for stored in file.stored.values())
    yield Try("as it was", chat(good), "accepted")
    yield Try("as it was, trained", train(good, folder), "accepted")
    path = folder / "odd.gguf"
    changes = [(name, odd) for name in file.metadata for odd in ODD]
    random.shuffle(changes)
    for name, odd in changes[:count // 2]:
        write(path, file, {name: odd})
        strict = name.partition(".")[2] in SIZES and odd[0] != file.metadata[name]
        yield Try(f"{name}: {odd[0]!r:.40}", chat(path), "refused" if strict else "either")
    for number in range(count // 8):
        at, value = random.randrange(24, header_bytes), random.randrange(256)
        path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1:])
        yield Try(f"byte {at} of the header is {value}, {number}", chat(path), "either")
    for _ in range(count // 8):
        size = random.randrange(len(whole))
        path.write_bytes(whole[:size])
        yield Try(f"the first {size} bytes", chat(path))
    for _ in range(count // 8):
        start = random.choice([4, 8, 16, random.randrange(24, header_bytes - 8)])
        number = random.choice([0, 2**31, 2**32, 2**62, 2**64 - 1])
        path.write_bytes(whole[:start] + struct.pack("<Q", number) + whole[start + 8:])
        yield Try(f"the number {number} at byte {start}", train(path, folder), "either")
    for _ in range(count // 8):
        tensor = random.choice(sorted(file.stored))
        what, array = random.choice([
            ("NaN", np.full(file.stored[tensor].shape, np.nan, np.float32)),
            ("infinite", np.full(file.stored[tensor].shape, np.inf, np.float32)),
            ("one value", np.zeros(1, np.float32)), ("one dimension more", np.zeros((1, 2, 3, 4), np.float32)),
            ("missing", None)])
        write(path, file, {}, {tensor: array})
        yield Try(f"{tensor}: {what}", random.choice([chat(path), train(path, folder)]))


def write(path: Path, file: GGUFFile, values: dict[str, tuple[Any, ...]],
          tensors: dict[str, np.ndarray | None] | None = None) -> None:
    """Writes a file like `file` with other metadata or tensors; None leaves a tensor out."""
    writer = gguf.GGUFWriter(path, file.metadata["general.architecture"])
    writer.kv_data = [{}]
    for name, value in file.metadata.items():
        writer.add_key_value(name, *values.get(name, (value, _kind(value))))
    for name in file.stored:
        array = (tensors or {}).get(name, file.read(name).float().numpy())
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(value: Any) -> gguf.GGUFValueType:
    kinds = {bool: KINDS.BOOL, int: KINDS.UINT32, float: KINDS.FLOAT32, str: KINDS.STRING, list: KINDS.ARRAY}
    return kinds[type(value)]
