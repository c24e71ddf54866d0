"""Verifies a folder by the checksums of its files: notices what is missing, damaged, swapped or smuggled in."""

from collections.abc import Callable
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.files import read_object, sha256_of_file

MANIFEST = "manifest.json"
"""Lists the other files with the SHA-256 of each: {"state.json": "9f86d0...", ...}."""


class Damaged(Exception):
    """A folder that cannot be trusted; the message is one line that names the file."""


def verify(folder: Path, belongs: Callable[[str], bool]) -> dict[str, str]:
    """Checks that each file in the folder's manifest is plain and has the checksum given there; returns the checksums.

    Args:
        belongs: which names the manifest may list at all; none may lead out of the folder.

    Raises:
        Damaged: for the first fault.
    """
    if folder.is_symlink():
        raise Damaged("it is a symbolic link")
    if (folder / MANIFEST).is_symlink():
        raise Damaged(f"{MANIFEST} is a symbolic link")
    try:
        checksums = read_object(folder / MANIFEST)
    except UserError as error:
        raise Damaged(f"it cannot be read: {error}") from error
    for name, expected in checksums.items():
        path = folder / name
        if not belongs(name):
            raise Damaged(f"{MANIFEST} lists {name!r}, which is no part of it")
        if path.is_symlink():
            raise Damaged(f"{name} is a symbolic link")
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        try:
            found = sha256_of_file(path)
        except UserError as error:
            raise Damaged(f"it cannot be read: {error}") from error
        if found != expected:
            raise Damaged(f"{name} was damaged: its SHA-256 is not the one in {MANIFEST}")
    return checksums
