"""Writes an output, a folder or a few files, completely or not at all.

Everything is written into a private folder beside the output and moved into place at the end. A failure or Ctrl-C
removes that folder; after a power cut or SIGKILL the next program that writes beside it does.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from minimind_sft.errors import UserError, first_line
from minimind_sft.files import resolved
from minimind_sft.set_aside import check_replaceable, is_there, previous_name, set_aside_file
from minimind_sft.writing import PrivateFolder, check_name, remove, sync

MARKERS = ("config.json", "adapter_config.json")
"""A folder that has one is a model's or an adapter's and may be moved aside; any other folder may hold anything."""


def check_output(output: Path, files: Sequence[Path], overwrite: bool) -> None:
    """Refuses an output that exists, unless `overwrite` is set, and one that cannot be written.

    Args:
        files: the files of the output; empty if the output is a folder.

    Raises:
        UserError: naming the path.
    """
    check_name(output, "--output")
    if files:
        check_replaceable(files, overwrite, "choose another --output")
    elif output.is_dir() and not any(output.iterdir()):
        pass  # somebody made room for it
    elif is_there(output) and not output.is_dir():
        raise UserError(f"--output {output}: is a file, expected a folder or nothing")
    elif is_there(output) and not any((output / marker).is_file() for marker in MARKERS):
        raise UserError(f"--output {output}: is a folder without {' or '.join(MARKERS)}, so not one of a model; choose "
                        "another --output")
    elif is_there(output) and not overwrite:
        raise UserError(f"{output}: exists already; choose another --output, or --overwrite moves it to "
                        f"{previous_name(output)}")
    with _private_folder(output):
        pass


def check_apart(output: Path, source: Path, flag: str = "--weight") -> None:
    """Refuses an output that is, holds or lies in the folder of the weights or adapter to export, which `flag` names.

    Raises:
        UserError: naming both.
    """
    here, there = resolved(output), resolved(source)
    if here == there or here in there.parents:
        raise UserError(f"--output {output}: would replace {source}, which {flag} names; choose another place")
    if there.is_dir() and there in here.parents:
        raise UserError(f"--output {output}: lies inside {source}, which {flag} names; choose another place")


@contextmanager
def staged(output: Path, files: Sequence[Path]) -> Iterator[Path]:
    """Yields a folder to write into, and moves what it holds into place when the block ends without an error.

    What has the name by then moves to `<name>.previous`.

    Args:
        files: the files to move; empty if the whole folder becomes `output`.

    Raises:
        UserError: naming the output, if it cannot be written.
    """
    with _private_folder(output) as private:
        staging = private / output.name
        try:
            staging.mkdir()
            yield staging
            for path in staging.rglob("*"):
                sync(path)
            if files:
                for path in files:
                    set_aside_file(path)
                    (staging / path.name).replace(path)
            else:
                _set_aside_folder(output)
                staging.rename(output)
            sync(output.parent)
        except OSError as error:
            reason = error.strerror or f"probably no space left: {first_line(error)}"  # NumPy's errors have no number
            raise UserError(f"--output {output}: cannot be written ({reason})") from error


@contextmanager
def _private_folder(output: Path) -> Iterator[Path]:
    """Yields a private folder beside the output, then removes it, and what had to be made above it for nothing.

    Raises:
        UserError: naming the output, if there can be none.
    """
    created = _missing_folders(output)
    try:
        try:
            if created:
                output.parent.mkdir(parents=True)
            private = PrivateFolder(output.parent)
        except OSError as error:
            raise UserError(f"--output {output}: cannot write there ({error.strerror})") from error
        with private as folder:
            yield folder
    finally:
        _remove_empty(created)


def _missing_folders(output: Path) -> list[Path]:
    """Returns the folders above the output that do not exist yet, the innermost first."""
    return [folder for folder in output.parents if not is_there(folder)]


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _set_aside_folder(output: Path) -> None:
    if not is_there(output):
        return
    if not any(output.iterdir()):
        output.rmdir()
        return
    previous = previous_name(output)
    if is_there(previous):
        remove(previous)
    shutil.move(output, previous)
