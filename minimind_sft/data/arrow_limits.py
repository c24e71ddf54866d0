"""Measures the batches of Arrow files: packed, or by repeated references, a small one can stand for much text."""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from minimind_sft.errors import UserError
from minimind_sft.files import open_regular

MAX_BATCH_BYTES = 256 * 2**20
"""Unpacked; `datasets` writes a thousand rows into a batch."""
GOES_ON = 0xFFFFFFFF
DICTIONARY, BATCH = 2, 3
"""Kinds of messages that have a body."""


def check_batches(path: Path, start: int) -> None:
    """Walks through the messages of a stream that begins at `start`.

    Raises:
        UserError: naming the file, if a batch would take too much memory.
        ValueError: if the file is not a stream of messages.
    """
    try:
        with open_regular(path) as file:
            file.seek(start)
            while (size := _message_bytes(file)) is not None:
                if size > MAX_BATCH_BYTES:
                    raise UserError(f"{path}: expected batches of at most {MAX_BATCH_BYTES // 2**20} MiB, found one of "
                                    f"{size / 2**20:,.0f} MiB; write the file with fewer rows in a batch")
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("a message is damaged") from error


def _message_bytes(file: BinaryIO) -> int | None:
    """Reads the head of a message and moves to the next; returns the size of its body, unpacked, or None at the end."""
    head = file.read(4)
    if head == GOES_ON.to_bytes(4, "little"):
        head = file.read(4)
    length = int.from_bytes(head, "little")
    if not length:
        return None
    table = _Table(file.read(length))
    body, packed = file.tell(), table.number(3, "q")
    if packed < 0:
        raise ValueError("a message has a body of negative length")
    kind, content = table.number(1, "B"), table.table(2)
    if kind == DICTIONARY:
        content = content.table(1)
    size = packed
    if kind in (DICTIONARY, BATCH) and content.at(3) is not None:  # packed: each buffer says how long it is unpacked
        size = 0
        for offset, count in content.pairs(2):
            if count >= 8:
                file.seek(body + offset)
                (unpacked,) = struct.unpack("<q", file.read(8))
                size += count if unpacked == -1 else abs(unpacked)
    file.seek(body + packed, os.SEEK_SET)
    return size


def value_bytes(values: Any) -> int:
    """Returns how much text a record batch or an array stands for, in bytes, with 16 for each value."""
    import pyarrow
    import pyarrow.compute

    if isinstance(values, pyarrow.RecordBatch):
        return sum(map(value_bytes, values.columns))
    size, kind = 16 * len(values), values.type
    if isinstance(values, pyarrow.ExtensionArray):
        return value_bytes(values.storage)
    if isinstance(values, pyarrow.DictionaryArray):
        if not any(is_text(kind.value_type) for is_text in (
                pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view,
                pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_binary_view)):
            return size + len(values) * (values.dictionary.nbytes // max(len(values.dictionary), 1))
        lengths = pyarrow.compute.binary_length(values.dictionary.cast(pyarrow.large_binary()))
        return size + (pyarrow.compute.sum(lengths.take(values.indices)).as_py() or 0)
    if pyarrow.types.is_run_end_encoded(kind):
        return size + len(values) * values.values.nbytes
    if pyarrow.types.is_struct(kind):
        return size + sum(map(value_bytes, values.flatten()))
    if pyarrow.types.is_map(kind):
        start, end = values.offsets[0].as_py(), values.offsets[-1].as_py()
        return size + sum(value_bytes(inner.slice(start, end - start)) for inner in (values.keys, values.items))
    if pyarrow.types.is_nested(kind) and not pyarrow.types.is_union(kind):  # lists of all kinds
        return size + value_bytes(values.flatten())
    return size + values.nbytes


class _Table:
    """A table of FlatBuffers, in which messages are written (Arrow's format/Message.fbs)."""

    def __init__(self, content: bytes, at: int | None = None):
        self._content = content
        self._at = struct.unpack_from("<I", content)[0] if at is None else at
        self._fields = self._at - struct.unpack_from("<i", content, self._at)[0]
        if self._fields < 0:
            raise IndexError

    def at(self, field: int) -> int | None:
        """Returns where a field is; None if the table lacks it."""
        if 4 + 2 * field >= struct.unpack_from("<H", self._content, self._fields)[0]:
            return None
        offset = struct.unpack_from("<H", self._content, self._fields + 4 + 2 * field)[0]
        return self._at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """Returns a number of the kind of `struct`; 0 if the table lacks it."""
        at = self.at(field)
        return 0 if at is None else struct.unpack_from(f"<{kind}", self._content, at)[0]

    def table(self, field: int) -> "_Table":
        return _Table(self._content, self._target(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Returns a list of pairs of whole numbers."""
        at = self._target(field)
        count = struct.unpack_from("<I", self._content, at)[0]
        return list(struct.iter_unpack("<qq", self._content[at + 4:at + 4 + 16 * count]))

    def _target(self, field: int) -> int:
        at = self.at(field)
        if at is None:
            raise IndexError
        return at + struct.unpack_from("<I", self._content, at)[0]
