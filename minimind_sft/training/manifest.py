"""A folder whose files are known by their sums: what is missing, damaged, exchanged or smuggled in is recognised."""

from collections.abc import Callable
from pathlib import Path

from minimind_sft.files import read_object, sha256_of_file

MANIFEST = "manifest.json"
"""Names the other files and gives the SHA-256 of each: {"state.json": "9f86d0...", ...}."""


class Damaged(Exception):
    """Why a folder cannot be trusted, in one line that names the file."""


def verify(folder: Path, belongs: Callable[[str], bool]) -> list[str]:
    """The names that the folder's manifest lists, each of them a plain file with the sum that it says.

    `belongs` says which names may be listed at all: none that leads out of the folder.

    Raises:
        Damaged: for the first fault.
    """
    if folder.is_symlink():
        raise Damaged("it is a symbolic link")
    if (folder / MANIFEST).is_symlink():
        raise Damaged(f"{MANIFEST} is a symbolic link")
    try:
        sums = read_object(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from error
    for name, expected in sums.items():
        path = folder / name
        if not belongs(name):
            raise Damaged(f"{MANIFEST} lists {name!r}, which is no part of it")
        if path.is_symlink():
            raise Damaged(f"{name} is a symbolic link")
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        try:
            found = sha256_of_file(path)
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error
        if found != expected:
            raise Damaged(f"{name} was damaged: its SHA-256 is not the one in {MANIFEST}")
    return list(sums)
