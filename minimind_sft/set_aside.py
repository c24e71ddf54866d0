"""Handles files in the way of a program's output: refuses them, or with `--overwrite` sets them aside together.

Files that belong together move into one folder, `<name>.previous`, under their own names; a single file becomes
`<its name>.previous`. One generation is kept. On the way, files are in hidden folders with a marker; a hidden folder
without it is somebody else's and stays as it is.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.writing import MARKER, create, is_marked, remove_marked, sync


def is_there(path: Path) -> bool:
    """Tells whether anything has that name, a dangling symbolic link included."""
    return os.path.lexists(path)


def check_replaceable(paths: Sequence[Path], overwrite: bool, instead: str, previous: Path | None = None) -> None:
    """Refuses to replace files unless `overwrite` is set; always refuses to replace folders.

    Args:
        instead: what the user can do besides --overwrite, as a part of the message.
        previous: the folder that the files would move to together; None if each moves to its own `.previous`.

    Raises:
        UserError: for the first path that exists.
    """
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file or nothing; {instead}")
        if is_there(path) and not overwrite:
            raise UserError(f"{path}: exists already; {instead}, or --overwrite moves it to "
                            f"{previous or previous_name(path)}")


def previous_name(path: Path) -> Path:
    """Returns where a replaced file moves to."""
    return path.with_name(f"{path.name}.previous")


def set_aside_file(path: Path) -> Path | None:
    """Renames the file, if it exists, over an earlier `.previous`; returns its new name."""
    if not is_there(path):
        return None
    path.replace(previous_name(path))
    return previous_name(path)


def set_aside(files: Sequence[Path], previous: Path) -> None:
    """Moves files of one folder into the folder `previous` beside them, which replaces an older one of that name.

    `previous` appears in one step, with all files in it. If the process is killed before that, `bring_back` undoes the
    move.

    Raises:
        UserError: if the files cannot be moved; they then stay where they were.
    """
    bring_back(previous)
    moving = moving_name(previous)
    try:
        moving.mkdir()
        _mark(moving)
        for path in files:
            path.rename(moving / path.name)
        sync(moving)
        keep_older(previous)
        moving.rename(previous)
        _unmark(previous)
        sync(previous.parent)
    except OSError as error:
        bring_back(previous)
        raise UserError(f"{previous}: the earlier files cannot be moved there ({error.strerror})") from error
    remove_older(previous)


def bring_back(previous: Path) -> None:
    """Undoes a `set_aside` that a killed process left half done, if there is one.

    Raises:
        UserError: if another file has taken the place of one of the files, or a folder has the name of one of the
            hidden ones.
    """
    moving = moving_name(previous)
    if is_there(moving):
        _refuse_foreign(moving)
        for path in sorted(moving.iterdir()):
            origin = previous.with_name(path.name)
            if path.name == MARKER:
                continue
            if is_there(origin):
                raise UserError(f"{path} was being set aside when a program was killed, and now {origin} is there too; "
                                "move one of them elsewhere")
            path.rename(origin)
        _unmark(moving)
        moving.rmdir()
    if is_there(previous):
        remove_older(previous)
        _unmark(previous)
    else:
        bring_older_back(previous)


def moving_name(previous: Path) -> Path:
    """Returns where files are collected before they appear as `previous`."""
    return previous.with_name(f".{previous.name}.tmp")


def older_name(previous: Path) -> Path:
    """Returns where the older generation stays until the newer one is complete."""
    return previous.with_name(f".{previous.name}.older.tmp")


def keep_older(previous: Path) -> None:
    """Moves the folder `previous`, if it exists, to the name of the older generation.

    Raises:
        UserError: if it is no folder, or somebody else's folder has that name.
        OSError: if it cannot be moved.
    """
    if not is_there(previous):
        return
    if previous.is_symlink() or not previous.is_dir():
        raise UserError(f"{previous}: expected a folder or nothing; move it away")
    remove_older(previous)
    _mark(previous)
    previous.rename(older_name(previous))


def bring_older_back(previous: Path) -> None:
    """Makes the older generation, if there is one, `previous` again.

    Raises:
        UserError: if somebody else's folder has its name.
    """
    if is_there(older := older_name(previous)):
        _refuse_foreign(older)
        older.rename(previous)
        _unmark(previous)


def remove_older(previous: Path) -> None:
    """Removes the older generation, if there is one.

    Raises:
        UserError: if somebody else's folder has its name.
    """
    if is_there(older := older_name(previous)):
        _refuse_foreign(older)
        remove_marked(older)


def _mark(folder: Path) -> None:
    if not is_there(folder / MARKER):
        create(folder / MARKER).close()


def _unmark(folder: Path) -> None:
    if is_marked(folder):
        (folder / MARKER).unlink()


def _refuse_foreign(folder: Path) -> None:
    """
    Raises:
        UserError: if this program did not make the folder. An empty one may be left from before it was marked.
    """
    is_empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if not (is_marked(folder) or is_empty):
        raise UserError(f"{folder}: was not put there by this program; move it away")
