"""Writes files so that no reader sees half of one, nothing is written through a link, and no two writers collide.

New content is written into a `PrivateFolder` beside its place, and moved into place once it is on the disk.
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from minimind_sft.errors import UserError
from minimind_sft.files import kind_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARKER = ".made_by_minimind_sft"
"""In every folder that this program may remove without being asked."""
PRIVATE_NAME = re.compile(r"\.minimind_sft\.[0-9a-f]{16}\.tmp")
OWNER_ONLY = 0o700
OPENED_SAFELY = (getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
                 | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
"""Opening follows no link and waits for no pipe."""


class PrivateFolder:
    """A new folder for what is not complete yet.

    Only its owner can enter it, and its name cannot be guessed, so nobody can put a link where a file will be written.
    It disappears when it is closed; what a killed process leaves is removed when the next one is made beside it.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, parent: Path):
        remove_leftovers(parent)
        marker = None
        while marker is None:
            self.path = parent / f".minimind_sft.{secrets.token_hex(8)}.tmp"
            self.path.mkdir(OWNER_ONLY)
            marker = _marked(self.path)
        self._marker = marker

    def close(self) -> None:
        self._marker.close()
        remove_marked(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_leftovers(parent: Path) -> None:
    """Removes the private folders in a folder that killed processes left."""
    for folder in _private_folders(parent):
        with suppress(OSError):
            if not is_marked(folder):  # killed before that
                folder.rmdir()
            elif marker := _marker_of_killed(folder):
                with marker:
                    remove_marked(folder)


def leftovers(parent: Path) -> list[Path]:
    """Lists the private folders in a folder; a killed process may have left them, or a live one use them."""
    return [folder for folder in _private_folders(parent) if is_marked(folder)]


def _private_folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if PRIVATE_NAME.fullmatch(path.name) and stat.S_ISDIR(_mode(path))]
    except OSError:
        return []


def is_marked(folder: Path) -> bool:
    """Tells whether a path is a folder, not a link to one, that this program made and marked."""
    return stat.S_ISDIR(_mode(folder)) and stat.S_ISREG(_mode(folder / MARKER))


def remove_marked(folder: Path) -> None:
    """Removes a folder with all that is in it, as far as that is possible, and its marker last."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name != MARKER:
                remove(path)
        (folder / MARKER).unlink(missing_ok=True)
        folder.rmdir()


def remove(path: Path) -> None:
    """Removes a file, a folder with its content, or a symbolic link but not its target."""
    if stat.S_ISDIR(_mode(path)):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _mode(path: Path, follow: bool = False) -> int:
    """Returns the mode of what has a name, a link included unless it is followed; 0 if nothing has it."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except OSError:
        return 0


def _marked(folder: Path) -> IO[bytes] | None:
    """Puts the marker into a new folder, locked until the file that is returned is closed.

    Unlike a `FolderLock`, the lock also holds against other threads of this process. Returns None if another process
    took the folder for one that was left, and removed it.
    """
    try:
        file = create(folder / MARKER)
    except FileNotFoundError:
        return None
    is_ours = _locked(file) is not False and is_marked(folder)
    if not is_ours:
        file.close()
    return file if is_ours else None


def _marker_of_killed(folder: Path) -> IO[bytes] | None:
    """Opens and locks the marker of a private folder; returns None if the process that made it may be alive."""
    try:
        file = open_for_writing(folder / MARKER, os.O_RDWR, "rb+")
    except UserError:
        return None
    is_left = _locked(file) is True
    if not is_left:
        file.close()
    return file if is_left else None


def _locked(file: IO[bytes]) -> bool | None:
    """Locks an open file; returns whether that succeeded, or None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def open_for_writing(path: Path, flags: int, mode: str) -> IO[Any]:
    """Opens a regular file itself, not what a link leads to.

    Args:
        flags: how to open it, as for `os.open`.
        mode: the mode of the file that is returned; text is UTF-8.

    Raises:
        OSError: if it cannot be opened.
        UserError: naming the path, if it is not a regular file.
    """
    check_replaceable_kind(path, may_be_link=False)
    handle = os.open(path, flags | OPENED_SAFELY, 0o666)
    try:
        if not stat.S_ISREG(found := os.fstat(handle).st_mode):
            raise UserError(f"{path}: {kind_of(found)}, expected a file")
        return os.fdopen(handle, mode) if "b" in mode else os.fdopen(handle, mode, encoding="utf-8", newline="\n")
    except (OSError, UserError):
        os.close(handle)
        raise


def check_replaceable_kind(path: Path, may_be_link: bool = True) -> None:
    """Refuses a path that is there and is no regular file.

    Args:
        may_be_link: whether a link to a regular file or to nothing will do; it is replaced itself.

    Raises:
        UserError: naming the path.
    """
    found = _mode(path)
    if stat.S_ISLNK(found) and may_be_link:
        found = _mode(path, follow=True)
    if found and not stat.S_ISREG(found):
        raise UserError(f"{path}: {kind_of(found)}, expected a file or nothing")


def create(path: Path) -> IO[bytes]:
    """Opens a new file for writing.

    Raises:
        OSError: if that is impossible, or something is there already.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPENED_SAFELY, 0o666), "wb+")


def create_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes text into a new file, as UTF-8 and with its line ends.

    Raises:
        OSError: as `create`.
    """
    with create(path) as file:
        file.write(text.encode("utf-8", errors))


def append_to(path: Path) -> IO[str]:
    """Opens a text file, which need not exist, to write after its end; not through a link.

    Raises:
        OSError: if it cannot be opened.
        UserError: naming the path, if it is not a regular file.
    """
    return open_for_writing(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "a")


def cut(path: Path, size: int) -> None:
    """Shortens a file to `size` bytes; not through a link.

    Raises:
        OSError, UserError: as `append_to`.
    """
    with open_for_writing(path, os.O_RDWR, "rb+") as file:
        file.truncate(size)


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file. If the process is killed, `path` holds the old content or the new one, never a part.

    Args:
        write: writes the content to the path that it is called with: a new file of the same name in a private folder.
            torch.save writes that name into the file, so equal weights are equal files.

    Raises:
        UserError: naming `path`, if it cannot be written, as on a full disk, or is no regular file.
    """
    write_together({path: write})


def write_text_atomically(path: Path, text: str, errors: str = "strict") -> None:
    """Replaces a text file as `write_atomically` does.

    Raises:
        UserError: as `write_atomically`.
    """
    write_atomically(path, lambda to: create_text(to, text, errors))


def write_together(files: Mapping[Path, Callable[[Path], object]],
                   before_replacing: Callable[[], object] | None = None) -> None:
    """Replaces several files as `write_atomically` does, once the new content of all is on the disk.

    Files of one folder are written in the same private folder.

    Args:
        before_replacing: called when all new content is on the disk, before anything is replaced.

    Raises:
        UserError: naming the file that cannot be written.
    """
    for path in files:
        check_replaceable_kind(path)
    try:
        with ExitStack() as stack:
            private: dict[Path, Path] = {}
            for path, write in files.items():
                if path.parent not in private:
                    private[path.parent] = stack.enter_context(PrivateFolder(path.parent))
                write(private[path.parent] / path.name)
                sync(private[path.parent] / path.name)
            if before_replacing is not None:
                before_replacing()
            for path in files:
                (private[path.parent] / path.name).replace(path)
            for folder in private:
                sync(folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def check_writable(folder: Path, flag: str) -> None:
    """Creates the folder and a file in it, to fail now rather than after hours of training.

    Raises:
        UserError: naming the flag, if either is impossible, or as `check_name`.
    """
    check_name(folder, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot write there ({error.strerror})") from error


def check_name(path: Path, flag: str) -> None:
    """Refuses the name of an output that cannot be written into files.

    Raises:
        UserError: naming the flag, if it is not valid UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{flag} {str(path)!r}: expected a name in valid UTF-8, as it is written into files") from error
