"""Reads GGUF files: metadata and tensors, dequantised when asked for.

The format is that of ggml's docs/gguf.md, versions 2 and 3. The header is parsed here, because every size in it must be
checked against the file before anything of that size is made; the `gguf` package knows the quantised types.
"""

import re
import struct
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from minimind_sft.errors import UserError, describe, first_line, printable
from minimind_sft.files import open_regular, refuse_lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_METADATA_BYTES = 1 << 28
"""The header of a model with 256,000 tokens has 16 MB."""
MAX_ARRAY_LENGTH = 1 << 24
MAX_DIMENSIONS = 4
MAX_SHOWN = 100
"""Characters of a name that errors show: names may be damaged too."""
DEFAULT_ALIGNMENT = 32
SPLIT_NAME = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$")

# The types of metadata, by their number in the file.
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8",
           12: "<f8"}
FLOAT32, STRING, ARRAY = 6, 8, 9

PLAIN_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DEQUANTISED_AT_ONCE = 1 << 20
"""Values; the gguf package needs several times their memory while it works."""


@dataclass(frozen=True)
class StoredTensor:
    """The place and layout of a tensor in the file.

    shape: rows first, as PyTorch has it.
    type: ggml's name of its type, such as "Q8_0".
    row_bytes: the bytes of one row, along the last dimension.
    offset: of its first byte in the file.
    """

    shape: tuple[int, ...]
    type: str
    row_bytes: int
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """One GGUF file: a source of tensors, with metadata.

    metadata: plain Python values. A float32 is the shortest decimal number that it may have been rounded from, so that
        1e-6 is 1e-6.
    stored: every tensor by name.
    """

    def __init__(self, path: Path):
        """Reads the header.

        Raises:
            UserError: naming the file and what is wrong with it: not GGUF, another version, truncated, one part of
                several, big-endian, a tensor of a type that the gguf package cannot dequantise.
        """
        self.path = Path(path)
        _refuse_parts(self.path)
        try:
            with open_regular(self.path) as file:
                header = _Header(self.path, file)
                tensor_count, value_count = header.read_start()
                self.metadata = header.read_metadata(value_count)
                self.stored = header.read_tensors(tensor_count, self.metadata)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
        if (parts := self.metadata.get("split.count", 0)) not in (0, 1):
            raise UserError(f"{self.path}: split.count: {_one_of_several(describe(parts))}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, rows first, by name; without reading any."""
        return {name: stored.shape for name, stored in self.stored.items()}

    def read(self, name: str) -> Tensor:
        """Returns a tensor: float32, float16 or bfloat16 as stored, and quantised ones as float32.

        Raises:
            UserError: if the file has become shorter or cannot be read.
        """
        stored = self.stored[name]
        dtype = PLAIN_DTYPES.get(stored.type, torch.float32)
        tensor = torch.empty(stored.shape, dtype=dtype)
        if stored.type in PLAIN_DTYPES:
            target = tensor.flatten().view(torch.uint8)
            target.numpy()[:] = self._bytes(name, stored.offset, stored.nbytes)
            return tensor
        rows = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor[None]
        step = max(1, DEQUANTISED_AT_ONCE // stored.shape[-1])
        for start in range(0, len(rows), step):
            part = rows[start:start + step]
            data = self._bytes(name, stored.offset + start * stored.row_bytes, len(part) * stored.row_bytes)
            part.copy_(torch.from_numpy(_dequantise(data.reshape(len(part), -1), stored.type)))
        return tensor

    def _bytes(self, name: str, offset: int, count: int) -> np.ndarray:
        try:
            data = np.fromfile(self.path, np.uint8, count, offset=offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
        if len(data) < count:
            raise UserError(f"{self.path}: {printable(name)}: the file ends inside it: it was changed while it was "
                            "read")
        return data


class _Header:
    """Reads the header of an open file from its start, and never past the end of the file."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.place = "the header"

    def read_start(self) -> tuple[int, int]:
        """Reads magic and version; returns (number of tensors, number of metadata values).

        Raises:
            UserError: naming the file, if it is no GGUF file of a known version.
        """
        magic = self.file.read(4)
        if magic != MAGIC:
            raise UserError(f"{self.path}: not a GGUF file (it begins with {magic!r}, expected {MAGIC!r})")
        version = self._number("<I")
        if version & 0xFFFF == 0:
            raise UserError(f"{self.path}: a big-endian GGUF file; convert the model again on a little-endian machine, "
                            "without --bigendian")
        if version not in VERSIONS:
            raise UserError(f"{self.path}: GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}; convert "
                            "the model again with a current llama.cpp")
        return self._number("<Q"), self._number("<Q")

    def read_metadata(self, count: int) -> dict[str, Any]:
        """Reads `count` keys with their values.

        Raises:
            UserError: naming the file and the key, if one is there twice or cannot be read.
        """
        self._expect_bytes(count * 13, f"{count:,} metadata values")  # a key, a type and one byte
        metadata: dict[str, Any] = {}
        for _ in range(count):
            self.place = "the metadata"
            key = self._string()
            if key in metadata:
                raise UserError(f"{self.path}: {printable(key)}: the metadata have it twice")
            self.place = printable(key[:MAX_SHOWN])
            metadata[key] = self._value(self._number("<I"))
        return metadata

    def read_tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, StoredTensor]:
        """Reads names, shapes, types and places of `count` tensors, none of the data.

        Raises:
            UserError: naming the file and the tensor, if one is there twice or cannot be where the file says.
        """
        self.place = "the list of tensors"
        self._expect_bytes(count * 32, f"{count:,} tensors")  # a name, one dimension, type and offset
        listed: dict[str, StoredTensor] = {}
        for _ in range(count):
            self.place = "the list of tensors"
            name = self._string()
            if name in listed:
                raise UserError(f"{self.path}: {printable(name)}: the file has this tensor twice")
            self.place = printable(name[:MAX_SHOWN])
            listed[name] = self._tensor()
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise UserError(f"{self.path}: general.alignment: is {alignment!r:.40}, expected a power of two")
        data_start = -(-self.file.tell() // alignment) * alignment
        placed, expected = {}, 0
        for name, stored in listed.items():
            placed[name] = self._placed(name, stored, data_start)
            if stored.offset != expected:  # as in ggml, tensors lie in their order without gaps
                raise UserError(f"{self.path}: {printable(name[:MAX_SHOWN])}: begins at byte {stored.offset:,} of the "
                                f"data, not {expected:,}: the file is damaged, fetch it again")
            expected = -(-(expected + stored.nbytes) // alignment) * alignment
        return placed

    def _tensor(self) -> StoredTensor:
        """Reads one entry; its offset counts from the start of the data, which is not known yet."""
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise UserError(f"{self.path}: {self.place}: {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise UserError(f"{self.path}: {self.place}: is empty (shape {list(shape)})")
        type_name, block, block_bytes = _tensor_type(self._number("<I"), f"{self.path}: {self.place}")
        if shape[-1] % block:
            raise UserError(f"{self.path}: {self.place}: rows of {shape[-1]} values, expected a multiple of {block} "
                            f"({type_name})")
        return StoredTensor(shape, type_name, shape[-1] // block * block_bytes, self._number("<Q"))

    def _placed(self, name: str, stored: StoredTensor, data_start: int) -> StoredTensor:
        offset = data_start + stored.offset
        if offset + stored.nbytes > self.size:
            raise UserError(f"{self.path}: {printable(name[:MAX_SHOWN])}: ends at byte {offset + stored.nbytes:,}, but "
                            f"the file has {self.size:,}: it is truncated, fetch it again")
        return StoredTensor(stored.shape, stored.type, stored.row_bytes, offset)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(self._number("<I"), self._number("<Q"))
        value = self._scalars(kind, 1)[0]
        return float(str(value)) if kind == FLOAT32 else value.item()

    def _array(self, kind: int, count: int) -> list[Any]:
        if count > MAX_ARRAY_LENGTH:
            raise UserError(f"{self.path}: {self.place}: a list of {count:,} values, expected at most "
                            f"{MAX_ARRAY_LENGTH:,}")
        if kind == STRING:
            self._expect_bytes(count * 8, f"{count:,} strings")
            return [self._string() for _ in range(count)]
        return self._scalars(kind, count).tolist()

    def _scalars(self, kind: int, count: int) -> np.ndarray:
        if kind not in SCALARS:
            raise UserError(f"{self.path}: {self.place}: metadata of the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _string(self) -> str:
        data = self._take(self._number("<Q"))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {self.place}: not valid UTF-8") from error

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, count: int) -> bytes:
        self._expect_bytes(count, f"{count:,} bytes")
        return self.file.read(count)

    def _expect_bytes(self, count: int, what: str) -> None:
        """Refuses a size that the rest of the file, or any header, cannot have."""
        at = self.file.tell()
        if at + count > self.size:
            raise UserError(f"{self.path}: {self.place}: {what} from byte {at:,}, but the file has {self.size:,}: it "
                            "is truncated or damaged, fetch it again")
        if at + count > MAX_METADATA_BYTES:
            raise UserError(f"{self.path}: {self.place}: {what}, which makes a header of more than "
                            f"{MAX_METADATA_BYTES:,} bytes: the file is damaged")


def is_gguf(path: Path) -> bool:
    """Tells whether a file is, or is meant to be, a GGUF file: by its first bytes or its name."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"
    except (OSError, UserError):
        return path.suffix == ".gguf"


def gguf_package() -> Any:
    """Returns the `gguf` package.

    Raises:
        UserError: saying how to install it, if it is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"GGUF files need the gguf package: pip install 'minimind-sft[gguf]' ({first_line(error)})"
                        ) from error
    return gguf


@cache
def _dequantiser_works(type_name: str) -> bool:
    gguf = gguf_package()
    kind = gguf.GGMLQuantizationType[type_name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:  # how the package says that it cannot dequantise this type
        return False
    return True


def _tensor_type(number: int, place: str) -> tuple[str, int, int]:
    """Returns (ggml's name of a type, values in a block, bytes of a block).

    Raises:
        UserError: beginning with `place`, if its tensors cannot be read.
    """
    gguf = gguf_package()
    kinds = {kind.value: kind for kind in gguf.GGMLQuantizationType}
    kind = kinds.get(number)
    if kind is None or kind not in gguf.GGML_QUANT_SIZES:
        raise UserError(f"{place}: the unknown type {number}: a newer gguf package may know it (pip install -U gguf)")
    if kind.name not in PLAIN_DTYPES and not _dequantiser_works(kind.name):
        raise UserError(f"{place}: is {kind.name}, which the gguf package cannot dequantise; use a file of another "
                        "quantisation, such as Q8_0 or F16")
    return kind.name, *gguf.GGML_QUANT_SIZES[kind]


def _dequantise(rows: np.ndarray, type_name: str) -> np.ndarray:
    gguf = gguf_package()
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type_name])


def _refuse_parts(path: Path) -> None:
    """Refuses what is no whole file: a folder, a pointer, one part of several."""
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected a GGUF file")
    refuse_lfs_pointer(path)
    if SPLIT_NAME.search(path.name):
        raise UserError(f"{path}: {_one_of_several()}")


def _one_of_several(parts: Any = "several") -> str:
    return (f"one of {parts} files that make a model together; join them first: "
            "llama-gguf-split --merge FIRST_PART MODEL.gguf")
