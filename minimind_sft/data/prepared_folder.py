"""Opens a folder of prepared samples, once it is sure that it holds what was prepared; and removes such folders."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimind_sft.data.dataset import DatasetCounts, ExampleDataset, Group
from minimind_sft.data.stored_tokens import StoredTokens
from minimind_sft.errors import UserError, printable
from minimind_sft.files import read_object, read_regular_file
from minimind_sft.manifest import MANIFEST, Damaged, verify
from minimind_sft.paths import shown

FORMAT = 5
"""Increased whenever the same rows and settings give other samples or files."""
TOKENS = ("input_ids", "labels")
ARRAYS = (*TOKENS, "lengths", "examples", "groups")
MARKER = "made_by_minimind_sft"
"""The first file of every prepared folder."""
HEADER = "header.json"
SEALED = frozenset([HEADER, *(f"{name}.bin" for name in ARRAYS)])
"""The files whose checksums are in the manifest."""
OWN_FILES = SEALED | {MARKER, MANIFEST}
MAX_ARRAY_BYTES = 2**34
"""Of lengths, which are read as a whole: four thousand million samples."""


def name_of(content: Mapping[str, Any]) -> str:
    """Returns the name of a prepared folder: the hash of everything that decides its content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class PreparedDataset(ExampleDataset):
    """The samples in a prepared folder, read as they are needed.

    Attributes:
        counts: what became of the rows.
        folder: the prepared folder.
        sums: the SHA-256 of each data file.

    Args:
        vocab_size: the number of token ids there are.

    Raises:
        Damaged: if the folder is not a complete prepared folder of that name, with the content it had at first.
    """

    def __init__(self, folder: Path, files: Sequence[Path], vocab_size: int):
        dtype = token_dtype(vocab_size)
        try:
            input_ids, labels = (StoredTokens(folder / f"{name}.bin", dtype) for name in TOKENS)
            sums = _verify(folder)
            for stored in (input_ids, labels):
                stored.sha256 = sums[stored.path.name]
            header = read_object(folder / HEADER)
            lengths, examples, group_of = (_array(folder / f"{name}.bin") for name in ("lengths", "examples", "groups"))
            for stored in (input_ids, labels):
                stored.check_unchanged()
        except ValueError as error:  # a UserError, or NumPy's for a part of a number
            raise Damaged(str(error)) from error
        _check_header(header, folder.name, len(files))
        ignore = int(np.iinfo(dtype).max)
        self._set(input_ids, labels, _ends(lengths), _ends(examples), ignore)
        tokens = header["counts"]["tokens"]
        if not (self._example_ends[-1] == len(input_ids) == len(labels) == tokens and lengths.min(initial=1) > 0
                and self._sample_ends[-1] == len(lengths) and examples.min(initial=1) > 0
                and len(group_of) == len(self)):
            raise Damaged("the parts have the wrong lengths")
        (largest_id, _), (largest_label, supervised) = input_ids.survey(), labels.survey(ignore)
        if max(largest_id, largest_label) >= vocab_size:
            raise Damaged(f"it has token ids beyond the vocabulary of {vocab_size:,}")
        if supervised != header["counts"]["supervised"]:
            raise Damaged(f"labels.bin: {supervised:,} tokens are supervised, not {header['counts']['supervised']:,}")
        groups = [Group(shown(files[file]), kind) for file, kind in header["groups"]]
        if len(group_of) and not 0 <= group_of.min() <= group_of.max() < len(groups):
            raise Damaged("groups.bin: names groups that there are not")
        self._set_groups(groups, group_of)
        self.folder, self.counts = folder, DatasetCounts(**header["counts"])
        self.counts.rename(header["paths"], list(map(str, files)))
        self.sums = [sha256 for sha256, _ in header["content"]["files"]]
        self.fingerprint = self.sums if len(self.sums) > 1 else self.sums[0]


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the unsigned type for tokens; its largest number stands for `IGNORE_INDEX`."""
    return np.dtype(np.uint16 if vocab_size < 2**16 else np.uint32)


def refuse_foreign(folder: Path) -> None:
    """Protects what other programs have put in the place of a folder that is prepared again.

    Raises:
        UserError: if there is something that no preparation has made.
    """
    if os.path.lexists(folder) and (foreign := _foreign(folder)):
        raise UserError(f"{folder}: {foreign}; move it away")


def remove_folder(folder: Path) -> None:
    """Removes the files of a preparation and their folder, if nothing else is in it."""
    if not os.path.lexists(folder) or _foreign(folder):
        return
    for name in sorted(OWN_FILES, key=lambda name: name == MARKER):  # a kill leaves the marker to the last
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def _foreign(folder: Path) -> str:
    """Says what in a folder was not made by a preparation; "" if all was.

    An empty folder counts as ours: the process was killed before it wrote the marker.
    """
    if folder.is_symlink() or not folder.is_dir():
        return "expected a folder of prepared data, found something else"
    entries = list(os.scandir(folder))
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name not in OWN_FILES or not entry.is_file(follow_symlinks=False):
            return f"{printable(entry.name)} in it was not put there by this program"
    if entries and MARKER not in {entry.name for entry in entries}:
        return f"it lacks the file {MARKER}, so it was not made by this program"
    return ""


def _verify(folder: Path) -> dict[str, str]:
    """Returns the checksums of the files.

    Raises:
        Damaged: if a file is not what it was when it was prepared.
    """
    sums = verify(folder, SEALED.__contains__)
    if sums.keys() != SEALED:
        raise Damaged(f"{MANIFEST} does not list {', '.join(sorted(SEALED - sums.keys()))}")
    return sums


def _check_header(header: Mapping[str, Any], name: str, files: int) -> None:
    """
    Raises:
        Damaged: if the header does not describe samples of that many files in a folder of that name.
    """
    try:
        if name_of(header["content"]) != name:
            raise Damaged(f"{HEADER}: describes other data")
        counts, paths, groups = header["counts"], header["paths"], header["groups"]
        known = DatasetCounts()
        is_right = (counts.keys() == vars(known).keys() and _are_texts(paths) and len(paths) == files and all(
            type(value) is int and value >= 0 if isinstance(vars(known)[field], int) else _are_texts(value)
            for field, value in counts.items()))
        for file, kind in groups:
            is_right = is_right and type(file) is int and 0 <= file < files and isinstance(kind, str)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{HEADER}: not the header of prepared data") from error
    if not is_right:
        raise Damaged(f"{HEADER}: not the header of prepared data")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _array(path: Path) -> np.ndarray:
    return np.frombuffer(read_regular_file(path, MAX_ARRAY_BYTES), np.int32)


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
