"""Reads files: only regular ones, so that reading never waits, and whole ones only up to a limit."""

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError, describe, printable
from minimind_sft.strict_json import parse_json

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of the text that Git LFS keeps in place of a large file."""
NOT_FETCHED = "a Git LFS pointer, not the file itself: run git lfs pull in its repository"
MAX_TEXT_BYTES = 64 * 2**20
"""Of a file that is read whole, as text or JSON: the largest tokenizers take half of it."""
MAX_CONFIGURATION_BYTES = 4 * 2**20
MAX_METRICS_BYTES = 2**30
"""A run of a million steps writes a third of it."""
OPENED_TO_READ = (os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
                  | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
"""A file that becomes a pipe between looking and opening does not block either."""
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
         (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file, or a link to one, for reading its bytes; never waits for anything else.

    Raises:
        UserError: naming the file, if it cannot be opened or is anything else: a folder, a pipe, a device, or one of
            the system's files without a size, as in /proc.
    """
    try:
        _refuse_irregular(path, path.stat())  # opening a device may do something
        file = os.fdopen(os.open(path, OPENED_TO_READ), "rb")
        try:
            _refuse_irregular(path, os.fstat(file.fileno()))
            if not _size(file) and file.peek(1) and not _size(file):
                raise UserError(f"{path}: one of the system's files, without a size; expected a regular file")
        except (OSError, UserError):
            file.close()
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{printable(str(path))}: cannot be read (no file can have this name)") from error
    return file


def read_regular_file(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Reads a whole regular file.

    Args:
        limit: the largest size in bytes.

    Raises:
        UserError: as `open_regular`, and if the file is larger.
    """
    with open_regular(path) as file:
        size = _size(file)
        try:
            if size > limit:
                raise UserError(f"{path}: expected at most {limit:,} bytes, found {size:,}")
            return file.read(size)  # Python reserves what it is asked for, so not `limit`
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hex.

    Raises:
        UserError: naming the file, if it cannot be read.
    """
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Reads a UTF-8 text file, without a byte order mark and with line feeds as line ends.

    Raises:
        UserError: naming the file, if it cannot be read, is larger than `limit` bytes or is a Git LFS pointer.
    """
    content = read_regular_file(path, limit)
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path}: {NOT_FETCHED}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 (byte {error.start + 1})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: Path, limit: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Reads the JSON object that a file holds (UTF-8, with or without a byte order mark).

    Raises:
        UserError: naming the file, if it cannot be read or holds something else.
    """
    text = read_text(path, limit)
    if not text.strip():
        raise UserError(f"{path}: expected a JSON object, the file is empty")
    value = parse_json(text, str(path), "a JSON object")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {describe(value)}")
    return value


def read_configuration(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a configuration file that another program wrote.

    Raises:
        UserError: as `read_object`.
    """
    return read_object(path, MAX_CONFIGURATION_BYTES)


def peek_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object that a file holds; returns {} if that is not possible."""
    try:
        return read_object(path)
    except UserError:
        return {}


def refuse_lfs_pointer(path: Path) -> None:
    """Refuses the small text file that Git LFS leaves in place of a file that was not fetched.

    Raises:
        UserError: if the file at `path` is one, or cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise UserError(f"{path}: {NOT_FETCHED}")


def _size(file: BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def resolved(path: Path) -> Path:
    """Returns the absolute path without links, as far as they lead; one in a circle stays."""
    return Path(os.path.realpath(path))


def kind_of(mode: int) -> str:
    """Names what has a mode, as `os.stat` gives it, that is not a regular file's."""
    return next((name for is_kind, name in KINDS if is_kind(mode)), "something else")


def _refuse_irregular(path: Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path}: {kind_of(state.st_mode)}, expected a file")


def path_exists(path: Path) -> bool:
    """Tells whether a path exists.

    Raises:
        UserError: if a folder on the way cannot be searched.
    """
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"{str(path)[:200]}: cannot be read ({error.strerror})") from error
