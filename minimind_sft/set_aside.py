"""Handles files in the way of a program's output: refuses them, or with `--overwrite` sets them aside together.

Files that belong together move into one folder, `<name>.previous`, under their own names; a single file becomes
`<its name>.previous`. One generation is kept.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.files import sync, temporary_name


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
    moving, older = temporary_name(previous), older_name(previous)
    try:
        moving.mkdir()
        for path in files:
            path.rename(moving / path.name)
        sync(moving)
        if is_there(previous):
            previous.rename(older)
        moving.rename(previous)
        sync(previous.parent)
    except OSError as error:
        bring_back(previous)
        raise UserError(f"{previous}: the earlier files cannot be moved there ({error.strerror})") from error
    remove(older)


def bring_back(previous: Path) -> None:
    """Undoes a `set_aside` that a killed process left half done, if there is one.

    Raises:
        UserError: if another file has taken the place of one of the files.
    """
    moving, older = temporary_name(previous), older_name(previous)
    for path in sorted(moving.iterdir()) if moving.is_dir() else ():
        origin = previous.with_name(path.name)
        if is_there(origin):
            raise UserError(f"{path} was being set aside when a program was killed, and now {origin} is there too; "
                            "move one of them elsewhere")
        path.rename(origin)
    if moving.is_dir():
        moving.rmdir()
    if is_there(older) and is_there(previous):
        remove(older)
    elif is_there(older):
        older.rename(previous)


def older_name(previous: Path) -> Path:
    """Returns where the older generation stays until the newer one is complete."""
    return previous.with_name(f".{previous.name}.older.tmp")


def remove(path: Path) -> None:
    """Removes a file, a folder with its content, or a symbolic link but not its target."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
