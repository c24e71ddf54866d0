"""Writing files so that a reader never meets half of one, nor two writers each other."""

import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from minimind_sft.errors import UserError, describe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text starts that Git LFS keeps in place of a large file."""


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object that a file holds (UTF-8, with or without a byte order mark).

    Raises:
        OSError: if the file cannot be read.
        ValueError: saying what it holds instead.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {describe(value)}")
    return value


def refuse_lfs_pointer(path: Path) -> None:
    """Refuses the small text file that Git LFS leaves in place of a file it has not fetched.

    Raises:
        UserError: if the file at `path` is one; a file that cannot be read is for the caller to report.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return
    if start == LFS_POINTER:
        raise UserError(f"{path}: a Git LFS pointer, not the file itself: run git lfs pull in its repository")


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's list of names, survive a power cut."""
    on_windows = not hasattr(os, "O_DIRECTORY")
    if on_windows and path.is_dir():
        return  # cannot be opened there
    handle = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)  # there only what can be written to is flushed
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """Where `write_atomically` writes what is to become `path`; what a killed process leaves there is worth nothing."""
    return path.with_name(f".{path.name}.tmp")


def write_atomically(path: Path, write: Callable[[Path], object], before_replacing: Callable[[], object] | None = None,
                     ) -> None:
    """`write(temporary path)`, then rename onto `path`: it holds the old content or the new, never a part.

    The temporary name is always the same, because torch.save writes the name into the file: equal weights are then
    equal files.

    Args:
        before_replacing: called when the new content is on the disk and nothing has been replaced.

    Raises:
        UserError: naming `path`, if it cannot be written, as on a full disk.
    """
    write_together({path: write}, before_replacing)


def write_together(files: Mapping[Path, Callable[[Path], object]],
                   before_replacing: Callable[[], object] | None = None) -> None:
    """`write_atomically` for several files: none is replaced before all of them are on the disk."""
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
    """Makes the folder, and a file in it, before hours of training end in not being able to.

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
    """Held by one process at a time, and let go by the system when that process ends, however it ends.

    The file at `path` names the holder. Worker processes do not inherit the lock; they may outlive a killed run by
    seconds.
    """

    def __init__(self, path: Path):
        self.path = path
        self.holder = ""
        """Who holds it, as the file says; each taking is another."""
        self._let_go: Callable[[], None] | None = None

    def take(self) -> None:
        """
        Raises:
            UserError: naming the process that has it.
        """
        if not self.try_take():
            raise UserError(f"{self.path}: another run is writing there ({self.described_holder()}); wait for it to "
                            "end, or choose another --save_weight or --save_dir")

    def try_take(self) -> bool:
        """Whether it is ours now; if not, `holder` says whose it is.

        Raises:
            UserError: if there can be no lock at that place.
        """
        try:
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            self._let_go = _locked(file, self.path)
        except OSError as error:
            file.close()
            raise UserError(f"{self.path}: this file system has no locks ({error.strerror}); choose another "
                            "folder") from error
        if self._let_go is None:
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
        """Says in words who holds the lock."""
        try:
            holder = json.loads(self.holder)
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["since"]))
            return f"process {holder['pid']} on {holder['host']}, since {since}"
        except (ValueError, KeyError, TypeError):  # taken a moment ago, the file is not written yet
            return "a process that has just begun"

    def release(self) -> None:
        if self._let_go is not None:
            self._let_go()
            self._let_go = None


def _locked(file: IO[str], path: Path) -> Callable[[], None] | None:
    """Takes the system's lock on the open file at `path`; what lets it go and closes the file, or None if it is held.

    A POSIX record lock: other than that of `flock`, which filelock takes, a forked worker does not inherit it.
    Windows forks no workers, and nobody could read there what is locked: its lock is on a file beside.

    Raises:
        OSError: if there can be no lock.
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
