"""Files that stand where a program is to write: refused without `--overwrite`, else set aside in one piece.

Files that belong together go into one folder, `<name>.previous`, under the names that they had; a single file becomes
`<its name>.previous`. One generation is kept.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.files import sync, temporary_name


def is_there(path: Path) -> bool:
    """Whether anything has that name, a dangling symbolic link included."""
    return os.path.lexists(path)


def check_replaceable(paths: Sequence[Path], overwrite: bool, instead: str, previous: Path | None = None) -> None:
    """Refuses to replace files unless `overwrite` is set, and folders always.

    Args:
        instead: what a user can do about it besides --overwrite, as a part of the message.
        previous: the folder that they move to together; None: each keeps a `.previous` beside it.

    Raises:
        UserError: for the first path where something stands.
    """
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file or nothing; {instead}")
        if is_there(path) and not overwrite:
            raise UserError(f"{path}: exists already; {instead}, or --overwrite moves it to "
                            f"{previous or previous_name(path)}")


def previous_name(path: Path) -> Path:
    """Where a file goes that is replaced."""
    return path.with_name(f"{path.name}.previous")


def set_aside_file(path: Path) -> Path | None:
    """Renames the file, if there is one, over the `.previous` of an earlier time; returns its new name."""
    if not is_there(path):
        return None
    path.replace(previous_name(path))
    return previous_name(path)


def set_aside(files: Sequence[Path], previous: Path) -> None:
    """Moves files of one folder into the folder `previous` beside them, which replaces an older one of that name.

    `previous` appears in one step, with all of them. What a killed process leaves half done, `bring_back` undoes.

    Raises:
        UserError: if they cannot be moved; they then are where they were.
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
    """Undoes a `set_aside` that a killed process left half done; does nothing where there is none.

    Raises:
        UserError: if another file has taken the place of one of them.
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
    """Where an older generation is until the newer one is sure to stay."""
    return previous.with_name(f".{previous.name}.older.tmp")


def remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or a symbolic link but not what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
