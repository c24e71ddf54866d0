"""Opens a file in safetensors format: a header in JSON that names each tensor's dtype, shape and bytes, and the bytes.

The library's own reader maps the file into memory, so a file that becomes shorter would end the process.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind_sft.errors import UserError, printable
from minimind_sft.files import open_regular
from minimind_sft.model.tensor_file import ITEM_BYTES, TOO_SHORT, FormatError, read_bytes
from minimind_sft.strict_json import parse_json

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool",
          "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"} | {
    f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
"""PyTorch's names of safetensors' dtypes."""
MAX_HEADER = 2**23
"""Bytes of a header, which has about 120 for each tensor."""
MAX_DIMENSIONS = 64
LENGTH = 8
"""Bytes that hold the length of the header."""


class SafetensorsFile:
    """A file in safetensors format.

    Raises:
        FormatError: if it is not one, or damaged.
        UserError: if it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        header, start, size = _read_header(path)
        spans = []
        for name, entry in header.items():
            if name != "__metadata__":
                self.dtypes[name], self.shapes[name], (begin, end) = _entry(name, entry)
                self._starts[name] = start + begin
                spans.append((begin, end))
        _check_spans(spans, size - start)

    def read(self, name: str) -> Tensor:
        """Reads one tensor of a plain dtype.

        Raises:
            UserError: if its bytes are no longer there.
        """
        shape, dtype = self.shapes[name], self.dtypes[name]
        content = read_bytes(self.path, self._starts[name], math.prod(shape) * ITEM_BYTES[dtype])
        return content.view(getattr(torch, dtype)).reshape(shape)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Returns the header, where the tensors' bytes start, and the size of the file."""
    if sys.byteorder != "little":
        raise FormatError("this machine has another byte order")
    with open_regular(path) as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        size = file.seek(0, 2)
        if length > min(size - LENGTH, MAX_HEADER):
            raise FormatError(f"its header has {length:,} bytes, the file {size:,}" if length > size - LENGTH else
                              f"its header has {length:,} bytes, expected at most {MAX_HEADER:,}")
        file.seek(LENGTH)
        content = file.read(length)
    try:
        header = parse_json(content.decode("utf-8"), "its header", "a JSON object")
    except UnicodeDecodeError as error:
        raise FormatError("its header is not valid UTF-8") from error
    except UserError as error:
        raise FormatError(str(error)) from error
    if not isinstance(header, dict):
        raise FormatError("its header is no JSON object")
    return header, LENGTH + length, size


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Returns what the header says about a tensor: its dtype, its shape, and where its bytes start and end."""
    def wrong(field: str) -> FormatError:
        return FormatError(f"its header has no valid {field} for {printable(name)}")

    stored_as = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(stored_as, str):
        raise wrong("dtype")
    dtype = DTYPES.get(stored_as, stored_as)
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not _are_sizes(shape):
        raise wrong("shape")
    if not isinstance(offsets, list) or not _are_sizes(offsets) or len(offsets) != 2:
        raise wrong("data_offsets")
    begin, end = offsets
    if begin > end or (dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]):
        raise wrong("data_offsets")
    return dtype, tuple(shape), (begin, end)


def _are_sizes(values: list[Any]) -> bool:
    return len(values) <= MAX_DIMENSIONS and all(type(one) is int and 0 <= one < 2**63 for one in values)


def _check_spans(spans: list[tuple[int, int]], size: int) -> None:
    """Checks that tensors follow each other without gaps, through the end of the file."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise FormatError("damaged: its tensors overlap, or there are gaps between them")
        position = end
    if position != size:
        raise FormatError(TOO_SHORT if position > size else "damaged: it has more bytes than its tensors")
