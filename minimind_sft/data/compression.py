"""Opens files that may be compressed; the suffix says how."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minimind_sft.errors import UserError, one_line


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading .zst needs pyarrow: pip install 'minimind-sft[parquet]'") from None
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(path.open("rb")), "zstd")
    return io.BufferedReader(stream)


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}
NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The formats, which are also the programs that unpack them with `-dc`."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading its bytes, unpacked.

    Raises:
        UserError: if the file cannot be opened, or if what the caller reads from it is damaged or ends too early.
    """
    suffix = path.suffix.lower()
    try:
        with OPENERS[suffix](path) if suffix in OPENERS else path.open("rb") as file:
            yield file
    except EOFError as error:
        raise UserError(f"{path}: the compressed file ends in the middle") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.strerror:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if "truncated" in str(error).lower():  # zstd, through pyarrow
            raise UserError(f"{path}: the compressed file ends in the middle") from error
        raise _damaged(path, error) from error


def start_of(path: Path, size: int) -> bytes:
    """Reads the first `size` bytes of a file, unpacked.

    Raises:
        UserError: as `opened`.
    """
    with opened(path) as file:
        return file.read(size)


def _damaged(path: Path, error: Exception) -> UserError:
    kind = NAMES.get(path.suffix.lower(), "readable")
    return UserError(f"{path}: not a {kind} file, or a damaged one ({one_line(error)})")
