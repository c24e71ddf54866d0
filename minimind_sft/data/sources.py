"""Resolves `--data_path`: files, folders of `datasets`, globs, and the shares in which they are mixed."""

import glob
import re
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from minimind_sft.data.arrow import saved_dataset_files
from minimind_sft.data.reading import file_kind
from minimind_sft.errors import UserError
from minimind_sft.files import path_exists, resolved
from minimind_sft.settings.data import split_share

HUB_NAME = re.compile(r"[\w-]+/[\w-]+", re.ASCII)
"""How data sets are named on Hugging Face's hub; files have an ending."""
FILES_LOOKED_AT = 1000
"""In a folder given instead of its files, to suggest a glob."""


class Source(NamedTuple):
    """Files that are sampled alike; `share` of the samples of an epoch, or None if every sample comes once."""

    name: str
    files: list[Path]
    share: float | None


def find_sources(texts: Sequence[str], flag: str) -> list[Source]:
    """Returns one source with all files, or with shares one source for each of `texts`.

    Raises:
        UserError: naming the flag, for missing files, and if only some have a share.
    """
    try:
        parts = [(*split_share(text), find_files([split_share(text)[0]])) for text in texts]
    except UserError as error:
        raise UserError(f"{flag} {error}") from error
    shares = [share for _, share, _ in parts]
    if not any(shares):
        files: dict[Path, Path] = {}
        for path in (path for _, _, found in parts for path in found):
            files.setdefault(resolved(path), path)
        return [Source(", ".join(texts), list(files.values()), None)]
    for name, share, _ in parts:
        if not share:
            raise UserError(f"{flag} {name}: expected a share like those of the others, {name}:0.5")
        if not float(share) > 0:
            raise UserError(f"{flag} {name}: the share is {share}, expected a number above 0")
    seen: dict[Path, str] = {}
    for name, _, found in parts:
        for path in found:
            if resolved(path) in seen:
                raise UserError(f"{flag} {name}: {path} has a share already, as {seen[resolved(path)]}")
            seen[resolved(path)] = name
    return [Source(name, found, float(share)) for name, share, found in parts]


def find_eval_sources(texts: Sequence[str]) -> list[Source]:
    """Resolves `--eval_data_path`; returns no sources for no texts.

    Raises:
        UserError: for shares, and as `find_sources` does.
    """
    sources = find_sources(texts, "--eval_data_path") if texts else []
    if any(source.share for source in sources):
        raise UserError("--eval_data_path: expected files without shares; every row is evaluated once")
    return sources


def find_files(patterns: Sequence[str | Path], flag: str = "") -> list[Path]:
    """Finds the files of names and globs in the order given (a glob's sorted), each file once.

    Raises:
        UserError: naming the flag, if given, for a name that does not exist, is not a regular file, or has an unknown
            suffix.
    """
    files: dict[Path, Path] = {}
    try:
        for path in (path for pattern in patterns for path in _found(str(pattern))):
            files.setdefault(resolved(path), path)
        return [_checked(path) for path in files.values()]
    except UserError as error:
        raise UserError(f"{flag} {error}" if flag else str(error)) from error


def _found(pattern: str) -> list[Path]:
    """Finds the files of a name or a glob; a folder written by `datasets.save_to_disk` stands for its files."""
    path = Path(pattern)
    # glob.glob, as a pattern for Path.glob must not begin with /
    paths = [path] if path_exists(path) else sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
    if not paths:
        kind = "no file matches it" if glob.has_magic(pattern) else "no such file"
        raise UserError(f"{pattern}: {kind}{_hint(pattern)}")
    return [file for path in paths for file in saved_dataset_files(path) or [path]]


def _hint(pattern: str) -> str:
    """Returns what is probably wrong with a name that no file has."""
    before, colon, _ = pattern.rpartition(":")
    if colon and path_exists(Path(before)):
        return f" (a share is a plain number, as in {before}:0.5)"
    if "://" in pattern:
        return " (nothing is downloaded here; give a file on this machine)"
    if "," in pattern and path_exists(Path(pattern.partition(",")[0])):
        return " (blanks separate files, not commas)"
    if HUB_NAME.fullmatch(pattern):
        return (f" (a data set of Hugging Face has to be fetched first: hf download {pattern} --repo-type dataset "
                f"--local-dir {Path(pattern).name})")
    return ""


def _checked(path: Path) -> Path:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r}: expected a name in valid UTF-8, as it is written into files") from error
    if path.is_dir():
        raise UserError(f"{path}: expected a file, found a folder ({_pattern_in(path)} names the files in it)")
    if not path.is_file():
        raise UserError(f"{path}: expected a regular file; it is read more than once")
    file_kind(path)
    return path


def _pattern_in(folder: Path) -> str:
    """Suggests a glob for the data files in a folder or right below it: the folder and kind of the largest."""
    sizes: dict[Path, int] = {}
    try:
        for path in sorted(islice(chain(folder.iterdir(), folder.glob("*/*")), FILES_LOOKED_AT)):
            if _is_data(path):
                sizes[path] = path.stat().st_size
    except OSError:
        sizes = {}
    largest = max(sizes, key=lambda path: sizes[path], default=folder / ".jsonl")
    return f"{largest.parent}/*.{file_kind(largest)}"


def _is_data(path: Path) -> bool:
    try:
        return bool(file_kind(path)) and path.is_file()
    except UserError:
        return False
