"""Reads whole files, and writes them so that no reader sees half of one and no two writers collide."""

import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from minimind_sft.errors import UserError, describe, printable
from minimind_sft.strict_json import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of the text that Git LFS keeps in place of a large file."""
NOT_FETCHED = "a Git LFS pointer, not the file itself: run git lfs pull in its repository"


MAX_TEXT_BYTES = 64 * 2**20
"""Of a file that is read whole, as text or JSON: the largest tokenizers take half of it."""
MAX_CONFIGURATION_BYTES = 4 * 2**20
OPENED_TO_READ = (os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
                  | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
"""A file that becomes a pipe between looking and opening does not block either."""
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
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


def check_regular(path: Path) -> None:
    """Refuses what `open_regular` refuses, before a library opens the file by its name.

    Raises:
        UserError: naming the file.
    """
    open_regular(path).close()


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
            content = b"" if size > limit else file.read(limit + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if max(size, len(content)) > limit:
        raise UserError(f"{path}: expected at most {limit:,} bytes, found {max(size, len(content)):,}")
    return content


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


def _refuse_irregular(path: Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = next((name for is_kind, name in KINDS if is_kind(state.st_mode)), "something else")
        raise UserError(f"{path}: {kind}, expected a file")


def path_exists(path: Path) -> bool:
    """Tells whether a path exists.

    Raises:
        UserError: if a folder on the way cannot be searched.
    """
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"{str(path)[:200]}: cannot be read ({error.strerror})") from error


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's list of files, survive a power cut."""
    on_windows = not hasattr(os, "O_DIRECTORY")
    if on_windows and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)  # Windows flushes only writable files
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """Returns the path that `write_atomically` writes to first. What a killed process leaves there can go."""
    return path.with_name(f".{path.name}.tmp")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file. If the process is killed, `path` holds the old content or the new one, never a part.

    Args:
        write: writes the content to the temporary path that it is called with. That path is always the same, because
            torch.save writes its name into the file: equal weights are equal files.

    Raises:
        UserError: naming `path`, if it cannot be written, as on a full disk.
    """
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], object]],
                   before_replacing: Callable[[], object] | None = None) -> None:
    """Replaces several files as `write_atomically` does, once the new content of all is on the disk.

    Args:
        before_replacing: called when all new content is on the disk, before anything is replaced.

    Raises:
        UserError: naming the file that cannot be written.
    """
    temporaries = {path: temporary_name(path) for path in files}
    try:
        for path, write in files.items():
            write(temporaries[path])
            sync(temporaries[path])
        if before_replacing is not None:
            before_replacing()
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in files}:
            sync(folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path, flag: str) -> None:
    """Creates the folder and a file in it, to fail now rather than after hours of training.

    Raises:
        UserError: naming the flag, if either is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot write there ({error.strerror})") from error


class FolderLock:
    """A lock held by one process at a time. The system releases it when the process ends, however it ends.

    The file at `path` names the holder. Worker processes, which may outlive a killed run by seconds, do not inherit the
    lock.
    """

    def __init__(self, path: Path):
        self.path = path
        self.holder = ""
        """The holder, as the file names it; different each time the lock is taken."""
        self._unlock: Callable[[], None] | None = None

    def take(self) -> None:
        """Takes the lock.

        Raises:
            UserError: naming the process that holds it.
        """
        if not self.try_take():
            raise UserError(f"{self.path}: another run is writing there ({self.described_holder()}); wait for it to "
                            "end, or choose another --save_weight or --save_dir")

    def try_take(self) -> bool:
        """Tries to take the lock and tells whether it succeeded; if not, `holder` names the owner.

        Raises:
            UserError: if no lock is possible there.
        """
        try:
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            self._unlock = _locked(file, self.path)
        except OSError as error:
            file.close()
            raise UserError(f"{self.path}: this file system has no locks ({error.strerror}); choose another "
                            "folder") from error
        if self._unlock is None:
            file.seek(0)
            self.holder = file.read().strip()
            file.close()
            return False
        self.holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        file.truncate(0)
        file.write(self.holder)
        file.flush()
        return True

    def described_holder(self) -> str:
        """Describes the holder of the lock."""
        try:
            holder = json.loads(self.holder)
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["since"]))
            return f"process {holder['pid']} on {holder['host']}, since {since}"
        except (ValueError, KeyError, TypeError):  # taken a moment ago, and the file is not written yet
            return "a process that has just begun"

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None


def _locked(file: IO[str], path: Path) -> Callable[[], None] | None:
    """Locks the open file at `path`; returns a function that unlocks and closes it, or None if another holds the lock.

    Uses a POSIX record lock: unlike `flock`, which filelock uses, forked workers do not inherit it. On Windows, where
    workers are not forked and a locked file cannot be read, the lock is on a file beside it.

    Raises:
        OSError: if no lock is possible.
    """
    if fcntl is None:
        beside = FileLock(path.with_name(path.name + ".held"), thread_local=False)
        try:
            beside.acquire(blocking=False)
        except Timeout:
            return None
        return lambda: (beside.release(), file.close())
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return None
    return file.close
