"""Looks at the pages of a Parquet file before any is read: a small page can stand for very much text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minimind_sft.errors import UserError
from minimind_sft.files import open_regular

MAX_PAGES_BYTES = 256 * 2**20
"""The largest pages of all columns, unpacked: as many are in memory together. Writers make pages of 1 MiB."""
MAX_WHOLE_BYTES = 64 * 2**20
"""A row group of so many bytes is read in large batches."""
ROWS_AT_ONCE, FEW_ROWS = 1000, 16
MAX_FIXED_LENGTH = 1000
"""Bytes of a value in a column of a fixed length, such as an id."""
MAX_VALUES = 4_000_000
"""In a column of lists, if the file has fewer bytes than that."""
_HEADER_BYTES = (2**10, 2**16, 2**25)
"""Tried one after the other: a header may hold the smallest and the largest value of its page."""
_DEPTH = 8


def dictionary_columns(metadata: Any) -> list[str]:
    """Returns the columns that refer to their texts by number: read like that, a text is in memory once."""
    return sorted({column.path_in_schema for column in _columns(metadata)
                   if column.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in one for one in column.encodings)})


def rows_at_once(metadata: Any, group: int) -> int:
    """Returns how many rows of a row group are read together."""
    columns = list(_columns(metadata, [group]))
    if any("DELTA_BYTE_ARRAY" in column.encodings for column in columns):  # each text may repeat the one before
        return 1
    return ROWS_AT_ONCE if sum(column.total_uncompressed_size for column in columns) <= MAX_WHOLE_BYTES else FEW_ROWS


def check_parquet(path: Path, metadata: Any) -> None:
    """Refuses a file that would take far more memory than its text.

    Raises:
        UserError: naming the file, and the column.
        ValueError: if a page has no valid header.
    """
    size = path.stat().st_size
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    for column in columns:
        if column.length > MAX_FIXED_LENGTH:
            raise UserError(f"{path}: {column.path}: expected text, found values of {column.length:,} bytes each")
    with open_regular(path) as file:
        for group in range(metadata.num_row_groups):
            largest = 0
            for chunk, column in zip(_columns(metadata, [group]), columns, strict=True):
                if column.max_repetition_level and chunk.num_values > max(size, MAX_VALUES):
                    raise UserError(f"{path}: {column.path}: expected fewer values than the file has bytes, found "
                                    f"{chunk.num_values:,}")
                largest += max(page_sizes(file, chunk), default=0)
            if largest > MAX_PAGES_BYTES:
                raise UserError(f"{path}: expected pages of at most {MAX_PAGES_BYTES // 2**20} MiB, found pages of "
                                f"{largest / 2**20:,.0f} MiB in a row group; write the file with smaller pages")


def page_sizes(file: BinaryIO, chunk: Any) -> Iterator[int]:
    """Yields the size of each page of a column in a row group, unpacked, in bytes.

    Raises:
        ValueError: if a page has no valid header.
    """
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
    end = start + chunk.total_compressed_size
    while start < end:
        length, unpacked, packed = _page_header(file, start)
        yield unpacked
        start += length + packed


def _columns(metadata: Any, groups: Any = None) -> Iterator[Any]:
    for group in range(metadata.num_row_groups) if groups is None else groups:
        for number in range(metadata.num_columns):
            yield metadata.row_group(group).column(number)


def _page_header(file: BinaryIO, start: int) -> tuple[int, int, int]:
    """Returns the length of the header at `start`, and the size of its page, unpacked and as it is in the file."""
    for size in _HEADER_BYTES:
        file.seek(start)
        reader = _Thrift(file.read(size))
        try:
            numbers = reader.numbers(_DEPTH)
        except IndexError:  # it goes on
            continue
        if not (0 <= numbers.get(2, -1) < 2**31 and 0 <= numbers.get(3, -1) < 2**31):
            break
        return reader.position, numbers[2], numbers[3]
    raise ValueError("a page has no header")


class _Thrift:
    """Reads Thrift's compact protocol, in which the headers are written (parquet-format, parquet.thrift)."""

    def __init__(self, content: bytes):
        self._content, self.position = content, 0

    def numbers(self, depth: int) -> dict[int, int]:
        """Reads a struct; returns its fields that are whole numbers.

        Raises:
            IndexError: if it ends too early.
            ValueError: if it is not a struct.
        """
        found: dict[int, int] = {}
        field = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            field = field + delta if delta else self._zigzag()
            if kind in (4, 5, 6):
                found[field] = self._zigzag()
            elif kind not in (1, 2):  # truth values have no content
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if not depth:
            raise ValueError("a header is nested too deeply")
        if kind in (4, 5, 6):
            self._varint()
        elif kind == 8:
            self._move(self._varint())
        elif kind in (1, 2, 3, 7):
            self._move(8 if kind == 7 else 1)
        elif kind in (9, 10):
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._skip(head & 15, depth - 1)
        elif kind == 12:
            self.numbers(depth - 1)
        else:
            raise ValueError("a header has a field of an unknown kind")

    def _move(self, count: int) -> None:
        self.position += count
        if self.position > len(self._content):
            raise IndexError

    def _byte(self) -> int:
        self._move(1)
        return self._content[self.position - 1]

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 128 and shift < 64:
            number, shift = number | (byte & 127) << shift, shift + 7
        return number | byte << shift

    def _zigzag(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
