"""Locks that one process at a time can hold; the system releases them when the process ends, however it ends."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from minimind_sft.errors import UserError
from minimind_sft.strict_json import parse_json
from minimind_sft.writing import open_for_writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_HOLDER_BYTES = 4096
HOLDER = {"pid": int, "host": str, "since": float}
"""The fields of a lock's file."""
MAX_TIME = 2**33
"""Seconds since the epoch, some centuries."""


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
            file = open_for_writing(self.path, os.O_RDWR | os.O_CREAT, "rb+")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            self._unlock = _locked(file, self.path)
            self.holder = file.read(MAX_HOLDER_BYTES + 1).decode(errors="replace").strip("\0 \r\n")
        except OSError as error:
            file.close()
            raise UserError(f"{self.path}: this file system has no locks ({error.strerror}); choose another "
                            "folder") from error
        if self._unlock is None:
            file.close()
            return False
        if self.holder and _holder(self.holder) is None:
            self.release()
            raise UserError(f"{self.path}: expected the lock of a run, found something else; move it away")
        self.holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        file.seek(0)
        file.truncate(0)
        file.write(self.holder.encode())
        file.flush()
        return True

    def described_holder(self) -> str:
        """Describes the holder of the lock."""
        holder = _holder(self.holder)
        if holder is None:  # taken a moment ago, and the file is not written yet
            return "a process that has just begun"
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["since"]))
        return f"process {holder['pid']} on {holder['host']}, since {since}"

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None


def _holder(text: str) -> dict[str, Any] | None:
    """Returns the holder that a lock's file names; None if it holds anything else."""
    try:
        holder = parse_json(text, "the lock")
    except UserError:
        return None
    is_ours = (isinstance(holder, dict) and holder.keys() == HOLDER.keys()
               and all(type(holder[name]) is kind for name, kind in HOLDER.items()) and 0 <= holder["since"] < MAX_TIME)
    return holder if is_ours else None


def _locked(file: IO[bytes], path: Path) -> Callable[[], None] | None:
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
