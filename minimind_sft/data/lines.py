"""Opens data files, compressed or not, and reads their lines, each with its place."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from minimind_sft.errors import UserError, one_line

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE = b"\n"
BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 32 * 2**20
"""Longer than any conversation; a file without line ends must not fill the memory."""
UNPACKERS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The compressed formats by suffix; each name is also the program that unpacks the format with `-dc`."""


class RawRow(NamedTuple):
    """A row before it is parsed: JSON text, a value that its file format has parsed already, or an error.

    place: `file:line`, for messages about the row.
    """

    place: str
    content: bytes | dict | UserError


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading .zst needs pyarrow: pip install 'minimind-sft[parquet]'") from None
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(path.open("rb")), "zstd")
    return io.BufferedReader(stream)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading its bytes, unpacked as its suffix says.

    Raises:
        UserError: if the file cannot be opened, or if what the caller reads from it is damaged or ends too early.
    """
    suffix = path.suffix.lower()
    try:
        with OPENERS[suffix](path) if suffix in OPENERS else path.open("rb") as file:
            yield file
    except EOFError as error:
        raise UserError(f"{path}: the compressed file ends in the middle") from error
    except (zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if "truncated" in str(error).lower():  # zstd, through pyarrow
            raise UserError(f"{path}: the compressed file ends in the middle") from error
        kind = UNPACKERS.get(suffix, "readable")
        raise UserError(f"{path}: not a {kind} file, or a damaged one ({one_line(error)})") from error


def lines(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Yields every line with its line end; in place of a line that is too long, an error."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        place = f"{path}:{number}"
        too_long = len(line) > MAX_ROW_BYTES
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if too_long:
            length = len(line)
            while not line.endswith(NEWLINE) and (line := file.readline(BLOCK_BYTES)):
                length += len(line)
            yield RawRow(place, UserError(f"{place}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row, found "
                                          f"{length / 2**20:.0f} MiB"))
        else:
            yield RawRow(place, line)
