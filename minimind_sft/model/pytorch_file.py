"""Opens a state dict in PyTorch's formats: the archive of today, and the file of versions before 1.6.

The pickle in it is read by pickled.py, which runs nothing. Where the numbers are follows from the archive's directory,
or from their order in an old file. They are read when they are asked for, and take no memory before.
"""

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.files import open_regular
from minimind_sft.model.pickled import MAX_BYTES, PickledTensor, Storage, read_pickle
from minimind_sft.model.tensor_file import ITEM_BYTES, TOO_SHORT, FormatError, read_bytes

ZIP, OLD = b"PK\x03\x04", b"\x80\x02"
"""How the two formats begin."""
LOCAL_HEADER, END, END_64 = 30, struct.Struct("<4s8xI4x2x"), struct.Struct("<40xQ8x20x22x")
"""An archive's structures: the length of what precedes a record, and its last bytes, with the directory's size."""
MAX_DIRECTORY = 2**25
"""Bytes of an archive's directory, which takes about 80 for each record."""
MAX_GROWTH, ALWAYS_ALLOWED = 10, 2**26
"""Tensors may take so many times the bytes of their file, or so many bytes."""
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two values in an old file."""
SOMETHING_ELSE = "it is something else, such as text, or damaged"
OTHER_ARCHIVE = "it is an archive of something else, or damaged"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a storage are.

    start: in the file; None if they are compressed.
    nbytes: how many there are.
    record: its name in the archive, if it is compressed.
    """

    start: int | None
    nbytes: int
    record: str = ""


class PytorchFile:
    """Some tensors of a file in PyTorch's format.

    Args:
        tensors, places: of those that `read_content` returned.

    Raises:
        FormatError: if the file has fewer bytes than its tensors.
        UserError: if the tensors would take many times the file's bytes.
    """

    def __init__(self, path: Path, tensors: Mapping[str, PickledTensor], places: Mapping[str, Place]):
        self.path = path
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._tensors = tensors
        self._places: dict[str, Place] = {}
        for name, tensor in tensors.items():
            if storage := tensor.storage:
                place = places.get(storage.key)
                if place is None or place.nbytes < storage.nbytes:
                    raise FormatError(TOO_SHORT)
                self._places[name] = place
        self._check_growth()

    def read(self, name: str) -> Tensor:
        """Reads one tensor of a plain dtype.

        Raises:
            UserError: if its bytes are no longer there.
        """
        tensor, place = self._tensors[name], self._places[name]
        if place.start is None:
            content = self._decompressed(place.record, tensor)
        else:
            content = read_bytes(self.path, place.start + tensor.start, tensor.end - tensor.start)
        return content.view(getattr(torch, tensor.dtype)).as_strided(tensor.shape, tensor.strides)

    def _decompressed(self, record: str, tensor: PickledTensor) -> Tensor:
        content = bytearray(tensor.end - tensor.start)
        try:
            with open_regular(self.path) as file, zipfile.ZipFile(file) as archive, archive.open(record) as stream:
                content[:] = stream.read(tensor.end)[tensor.start:]
        except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path}: damaged, or changed while it was read") from error
        if len(content) < tensor.end - tensor.start:
            raise UserError(f"{self.path}: {TOO_SHORT}")
        return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def _check_growth(self) -> None:
        """Refuses a small file of large tensors: compressed numbers, or views of the same ones."""
        total, there = 0, self.path.stat().st_size
        for name, place in self._places.items():
            tensor = self._tensors[name]
            read = tensor.end if place.start is None else tensor.end - tensor.start
            total += max(read, math.prod(tensor.shape) * ITEM_BYTES.get(tensor.dtype, 1))
        if total > max(MAX_GROWTH * there, ALWAYS_ALLOWED):
            raise UserError(f"{self.path}: its tensors would take {total / 1e6:,.0f} MB, but the file has only "
                            f"{there / 1e6:,.1f} MB: save a copy of each tensor with torch.save, uncompressed")


def read_content(path: Path) -> tuple[Any, dict[str, Place]]:
    """Reads what a file holds, with descriptions in place of tensors, and where their numbers are.

    Raises:
        FormatError: if it is not in one of PyTorch's formats, or damaged.
        UserError: if it cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(len(ZIP))
        try:
            if start == ZIP:
                return _read_archive(file)
            if start.startswith(OLD):
                return _read_old(file)
        except (FormatError, UserError):
            raise
        except (OSError, ValueError, RuntimeError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
            raise FormatError(OTHER_ARCHIVE) from error
    raise FormatError(SOMETHING_ELSE)


def _read_archive(file: IO[bytes]) -> tuple[Any, dict[str, Place]]:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        records = archive.NameToInfo
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(records) < len(archive.filelist):
            raise FormatError(OTHER_ARCHIVE)
        root = pickles[0].removesuffix("data.pkl")
        if order := records.get(f"{root}byteorder"):
            _check_byte_order(_record(archive, order, file, 16) == sys.byteorder.encode())
        content, storages = read_pickle(io.BytesIO(_record(archive, records[pickles[0]], file, MAX_BYTES)))
        names = {key: f"{root}data/{key}" for key in storages}
        return content, {key: _place(file, records[name]) for key, name in names.items() if name in records}


def _record(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: IO[bytes], limit: int) -> bytes:
    """Returns the content of a record."""
    if entry.file_size > limit:
        raise FormatError("its pickle is larger than one that names tensors" if limit == MAX_BYTES else OTHER_ARCHIVE)
    place = _place(file, entry)
    if place.start is None:
        with archive.open(entry) as stream:
            return stream.read(limit)
    file.seek(place.start)
    return file.read(place.nbytes)


def _check_byte_order(is_ours: bool) -> None:
    if not is_ours:
        raise FormatError("a machine with another byte order wrote it")


def _check_directory(file: IO[bytes]) -> None:
    """Checks that an archive ends as PyTorch's do, with a directory that may be read as a whole.

    Raises:
        FormatError: if it does not.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - END_64.size, 0))
    end = file.read()
    mark, directory = END.unpack(end[-END.size:])
    if len(end) == END_64.size and end.startswith(b"PK\x06\x06"):
        directory = max(END_64.unpack(end)[0], directory % 0xFFFFFFFF)
    if mark != b"PK\x05\x06":
        raise FormatError(OTHER_ARCHIVE)
    if directory > MAX_DIRECTORY:
        raise FormatError("it has more records than a state dict")


def _place(file: IO[bytes], entry: zipfile.ZipInfo) -> Place:
    """Returns where the bytes of a record are."""
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        return Place(None, entry.file_size, entry.filename)
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or not header.startswith(ZIP):
        raise FormatError(OTHER_ARCHIVE)
    start = entry.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[-4:]))
    return Place(start, max(min(entry.file_size, file.seek(0, io.SEEK_END) - start), 0))


def _read_old(file: IO[bytes]) -> tuple[Any, dict[str, Place]]:
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_BYTES))
    (magic, _), (protocol, _), (system, _) = (read_pickle(stream) for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(system, dict):
        raise FormatError(SOMETHING_ELSE)
    _check_byte_order(system.get("little_endian") is (sys.byteorder == "little"))
    content, storages = read_pickle(stream)
    keys, _ = read_pickle(stream)
    return content, _places_in_order(file, stream.tell(), keys, storages)


def _places_in_order(file: IO[bytes], start: int, keys: Any, storages: Mapping[str, Storage]) -> dict[str, Place]:
    """Returns where the storages are that follow each other, each after the number of its values."""
    places: dict[str, Place] = {}
    end = file.seek(0, io.SEEK_END)
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise FormatError(SOMETHING_ELSE)
        start += 8
        places[key] = Place(start, max(min(storage.nbytes, end - start), 0))
        start += storage.nbytes
    return places
