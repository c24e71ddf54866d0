"""Opens data files, compressed or not, and reads their lines, each with its place."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, NamedTuple

from minimind_sft.errors import UserError, one_line
from minimind_sft.files import open_regular

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE = b"\n"
BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 6 * 2**20
"""Longer than any conversation; a file without line ends must not fill the memory."""
MAX_ROW_VALUES = 1_000_000
"""Values in the JSON of one row: small ones take a hundred times their text in memory."""
MAX_SKIPPED_BYTES = 2**30
"""In one line that is skipped because it is too long; a longer one ends the reading."""
MAX_BLANK_LINES = 1_000_000
"""In a row. A packed file of 1 MiB can have 300 million, which take minutes to skip."""
MAX_EXPANSION, MIN_EXPANDED_BYTES = 500, 2**24
"""Text is packed to a tenth of its size, rows that repeat a long system prompt to a three-hundredth. More is refused
beyond so many bytes."""
MAX_XZ_BYTES = 100 * 2**20
"""Memory for unpacking .xz; files packed with -9 take 65 MiB."""
UNPACKERS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The compressed formats by suffix; each name is also the program that unpacks the format with `-dc`."""


class RawRow(NamedTuple):
    """A row before it is parsed: JSON text, a value that its file format has parsed already, or an error.

    place: `file:line`, for messages about the row.
    """

    place: str
    content: bytes | dict | UserError


def _unpack_zstd(file: BufferedReader, path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading .zst needs pyarrow: pip install 'minimind-sft[parquet]'") from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")


class _XZFile:
    """Unpacks .xz within `MAX_XZ_BYTES`, which `lzma.open` cannot."""

    def __init__(self, file: BufferedReader):
        self._file = file
        self._stream: lzma.LZMADecompressor | None = None
        self._left = b""

    def read(self, size: int) -> bytes:
        """Returns at most `size` bytes; b"" at the end.

        Raises:
            EOFError: if the file ends in the middle.
            lzma.LZMAError: if it is damaged, or takes too much memory.
        """
        while True:
            packed = b""
            if self._stream is None or self._stream.needs_input:
                packed, self._left = self._left or self._file.read(BLOCK_BYTES), b""
            if self._stream is None:
                packed = packed.lstrip(b"\0")  # padding between the streams of a file
                if not packed and not self._file.peek(1):
                    return b""
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MAX_XZ_BYTES)
            elif not packed and self._stream.needs_input:
                raise EOFError
            unpacked = self._stream.decompress(packed, size)
            if self._stream.eof:
                self._left, self._stream = self._stream.unused_data, None
            if unpacked:
                return unpacked


UNPACK: dict[str, Callable[[BufferedReader, Path], Any]] = {
    ".gz": lambda file, _: gzip.GzipFile(fileobj=file), ".bz2": lambda file, _: bz2.BZ2File(file),
    ".xz": lambda file, _: _XZFile(file), ".zst": _unpack_zstd}


class _Unpacked(io.RawIOBase):
    """The unpacked content of a file; an error in place of far more of it than text can be."""

    def __init__(self, stream: Any, path: Path, packed_bytes: int):
        self._stream, self._path = stream, path
        self._most = max(MAX_EXPANSION * packed_bytes, MIN_EXPANDED_BYTES)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads decompressed bytes into the buffer; returns how many.

        Raises:
            UserError: naming the file, if it expands to more than text does.
        """
        content = self._stream.read(len(buffer))
        buffer[:len(content)] = content
        self._count += len(content)
        if self._count > self._most:
            raise UserError(f"{self._path}: expected text, found more than {MAX_EXPANSION} times the size of the "
                            "compressed file")
        return len(content)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading its bytes, unpacked as its suffix says.

    Raises:
        UserError: if the file cannot be opened, or if what the caller reads from it is damaged or ends too early.
    """
    suffix = path.suffix.lower()
    try:
        with open_regular(path) as file:
            if suffix in UNPACK:
                unpacked = _Unpacked(UNPACK[suffix](file, path), path, path.stat().st_size)
                yield io.BufferedReader(unpacked, BLOCK_BYTES)
            else:
                yield file
    except EOFError as error:
        raise UserError(f"{path}: the compressed file ends in the middle") from error
    except (zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if "truncated" in str(error).lower():  # zstd, through pyarrow
            raise UserError(f"{path}: the compressed file ends in the middle") from error
        if "Memory usage limit" in str(error):
            raise UserError(f"{path}: expected an xz file that can be unpacked in {MAX_XZ_BYTES // 2**20} MiB of "
                            "memory; unpack it, or pack it with xz -9 at most") from error
        kind = UNPACKERS.get(suffix, "readable")
        raise UserError(f"{path}: not a {kind} file, or a damaged one ({one_line(error)})") from error


def lines(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Yields every line with its line end; in place of a line that is too long, an error.

    Raises:
        UserError: if a line is too long even to be skipped, or more than `MAX_BLANK_LINES` in a row are blank.
    """
    number = blank = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        place = f"{path}:{number}"
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK_LINES:
            raise UserError(f"{place}: expected rows, found {MAX_BLANK_LINES:,} blank lines before it")
        too_long = len(line) > MAX_ROW_BYTES
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if too_long:
            length = len(line)
            while not line.endswith(NEWLINE) and (line := file.readline(BLOCK_BYTES)):
                length += len(line)
                if length > MAX_SKIPPED_BYTES:
                    raise UserError(f"{place}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row, found no end of "
                                    f"the line within {MAX_SKIPPED_BYTES // 2**20} MiB")
            yield RawRow(place, UserError(f"{place}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row, found "
                                          f"{length / 2**20:.0f} MiB"))
        else:
            yield RawRow(place, line)
