"""Prepares files of rows once, in parallel, and keeps their samples in a folder (prepared_folder.py).

The folder's name is the SHA-256 of everything that decides its content, the data files included, so it is never stale:
it exists or it does not. It appears under its name when it is complete, with the checksums of its files. Folders
that other programs made are left alone.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from minimind_sft.data.dataset import MAX_KINDS, OTHER_KINDS, DatasetCounts, Group, kind_of
from minimind_sft.data.prepared_folder import (
    ARRAYS,
    FORMAT,
    HEADER,
    MARKER,
    SEALED,
    PreparedDataset,
    name_of,
    refuse_foreign,
    remove_folder,
    token_dtype,
)
from minimind_sft.data.reading import RawRow, file_kind, parse_raw_row, read_raw_rows
from minimind_sft.data.recognition import read_start
from minimind_sft.data.samples import RowEncoder
from minimind_sft.data.workers import map_chunks
from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.locks import FolderLock
from minimind_sft.manifest import MANIFEST, Damaged
from minimind_sft.terminal import counted, progress_bar
from minimind_sft.writing import PrivateFolder, create, create_text, sync

T = TypeVar("T")

NAMED_AT_ONCE = 10
TOKENS_AT_ONCE = 2**20


class EncodedChunk(NamedTuple):
    """The samples of some rows, in the arrays of a prepared folder.

    input_ids, labels: of all Examples end to end, as unsigned numbers (`_joined`).
    lengths: the tokens of each Example, int32.
    examples: the number of Examples of each sample, int32.
    origins: the file and kind of each sample.
    counts: what became of the rows.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    examples: np.ndarray
    origins: list[Group]
    counts: DatasetCounts


def prepare(files: Sequence[Path], encoder: RowEncoder, folder: Path, bad_rows: str = "error",
            show_progress: bool = True, say: Callable[[str], None] = print) -> PreparedDataset:
    """Returns the samples of all rows of the files, prepared in a subfolder of `folder` unless they are there already.

    If several processes need the same samples at the same time, one prepares them and the others wait. A subfolder that
    is incomplete, or was changed since, is prepared again.

    Args:
        bad_rows: "error" or "skip".

    Raises:
        UserError: if a file cannot be read, has no rows or changes meanwhile; for bad rows, naming the first ones,
            unless they are skipped; if nothing is left to learn; and if the folder cannot be written.
    """
    states = [_state(path) for path in files]
    content = {"format": FORMAT, "files": [[state.sha256, file_kind(path)]
                                           for state, path in zip(states, files, strict=True)], **encoder.settings}
    target = folder / name_of(content)
    vocab_size = encoder.tokenizer.vocab_size
    try:
        dataset, _ = _open_prepared(target, files, vocab_size)
        if dataset is None:
            with _one_process(folder, target.name, say):
                dataset, fault = _open_prepared(target, files, vocab_size)
                if dataset is None:
                    if target.exists():
                        say(f"prepared    {target} is prepared again: {fault}")
                    _write(target, files, encoder, content, states, bad_rows, show_progress)
                    dataset = PreparedDataset(target, files, vocab_size)
    except OSError as error:
        raise UserError(f"{folder}: the prepared data cannot be kept there ({error.strerror}); --prepared_dir names "
                        "another folder") from error
    except Damaged as fault:
        raise UserError(f"{target}: the prepared data are damaged when read back: {fault}") from fault
    _check_counts(dataset, files, encoder, bad_rows)
    return dataset


def _open_prepared(target: Path, files: Sequence[Path], vocab_size: int) -> tuple[PreparedDataset | None, str]:
    """Opens the prepared folder `target`; returns None and what is wrong if it cannot be used."""
    if not target.exists():
        return None, ""
    try:
        return PreparedDataset(target, files, vocab_size), ""
    except Damaged as fault:
        return None, str(fault)


def _check_counts(dataset: PreparedDataset, files: Sequence[Path], encoder: RowEncoder, bad_rows: str) -> None:
    counts = dataset.counts
    if counts.bad_rows and bad_rows == "error":
        refuse_bad_rows(counts)
    if not len(dataset):
        names = ", ".join(map(str, files))
        if counts.bad_rows == counts.rows:
            raise UserError(f"{names}: none of {counted(counts.rows, 'row')} can be used; the first: {counts.bad[0]}")
        raise UserError(f"{names}: no row of {counts.rows:,} keeps a supervised token within --max_seq_len "
                        f"{encoder.settings['max_seq_len']}: all are empty, too long or flagged as not learned; the "
                        f"first: {(counts.dropped or counts.bad)[0]}")


def prepare_chunk(raw_rows: list[RawRow], encoder: RowEncoder) -> EncodedChunk:
    """Encodes some rows; those that cannot be used are in the counts."""
    counts = DatasetCounts()
    readable, errors = [], {}
    for number, raw in enumerate(raw_rows):
        try:
            readable.append((raw.place, parse_raw_row(raw)))
        except UserError as error:
            errors[number] = error
    encoded, parsed = iter(encoder.encode(readable)), iter(readable)
    samples, origins = [], []
    for number, raw in enumerate(raw_rows):
        row = errors[number] if number in errors else next(encoded)
        kind = "" if number in errors else kind_of(next(parsed)[1])
        counts.add(raw.place, row)
        if not isinstance(row, UserError):
            samples += row.samples
            origins += [Group(raw.place.rpartition(":")[0], kind)] * len(row.samples)
    examples = [example for sample in samples for example in sample]
    dtype = token_dtype(encoder.tokenizer.vocab_size)
    return EncodedChunk(_joined([example.input_ids for example in examples], dtype),
                        _joined([example.labels for example in examples], dtype),
                        np.array([len(example.labels) for example in examples], np.int32),
                        np.array([len(sample) for sample in samples], np.int32), origins, counts)


def refuse_bad_rows(counts: DatasetCounts) -> None:
    """Ends the preparation because of bad rows.

    Raises:
        UserError: with the first bad rows, a line each.
    """
    if counts.bad_rows == 1:
        raise UserError(f"{counts.bad[0]} (--bad_rows skip leaves the row out)")
    lines = counts.bad[:NAMED_AT_ONCE]
    more = counts.bad_rows - len(lines)
    lines.append((f"and {counted(more, 'more bad row')}; " if more else "") + "scripts/inspect_data.py lists all, "
                 "--bad_rows skip leaves them out")
    raise UserError("\n       ".join(lines))


class FileState(NamedTuple):
    """A file's content, and how to notice that it has been written since."""

    sha256: str
    size: int
    modified: int
    inode: int


def _state(path: Path) -> FileState:
    read_start(path, file_kind(path))  # refuses many a file that would take hours
    stat = _stat(path)
    return FileState(sha256_of_file(path), *stat)


def _stat(path: Path) -> tuple[int, int, int]:
    """Returns (size, time of the last change, inode)."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _write(target: Path, files: Sequence[Path], encoder: RowEncoder, content: dict[str, Any],
           states: Sequence[FileState], bad_rows: str, show_progress: bool) -> None:
    refuse_foreign(target)
    counts, grouping = DatasetCounts(), _Grouping(files)
    with PrivateFolder(target.parent) as private:
        temporary = private / target.name
        temporary.mkdir()
        create(temporary / MARKER).close()
        with ExitStack() as stack:
            out = {name: stack.enter_context(create(temporary / f"{name}.bin")) for name in ARRAYS}
            work = partial(prepare_chunk, encoder=encoder)
            for _, chunk in work_on_files(work, files, "preparing", show_progress, may_be_empty=False):
                counts += chunk.counts
                if counts.bad_rows and bad_rows == "error":
                    refuse_bad_rows(counts)
                arrays = {**chunk._asdict(), "groups": grouping.numbers(chunk.origins)}
                for name, file in out.items():
                    file.write(arrays[name].tobytes())
        for path, state in zip(files, states, strict=True):
            if _stat(path) != state[1:]:  # what was read may not have this sum
                raise UserError(f"{path}: the file changed while it was read; start again")
        header = {"content": content, "paths": list(map(str, files)), "counts": asdict(counts),
                  "groups": grouping.groups}
        create_text(temporary / HEADER, json.dumps(header, indent=1) + "\n")
        manifest = {name: sha256_of_file(temporary / name) for name in sorted(SEALED)}
        create_text(temporary / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        remove_folder(target)
        temporary.rename(target)
        sync(target.parent)


class _Grouping:
    """Numbers the groups of samples in the order in which they come: pairs of a file's index and a kind."""

    def __init__(self, files: Sequence[Path]):
        self._file = {str(path): index for index, path in enumerate(files)}
        self._kinds: set[str] = set()
        self._numbers: dict[tuple[int, str], int] = {}

    @property
    def groups(self) -> list[tuple[int, str]]:
        return list(self._numbers)

    def numbers(self, origins: Iterable[Group]) -> np.ndarray:
        """Returns the number of each sample's group; kinds after the first `MAX_KINDS` count as one."""
        return np.array([self._number(self._file[source], kind) for source, kind in origins], np.int32)

    def _number(self, file: int, kind: str) -> int:
        if kind not in self._kinds:
            if len(self._kinds) < MAX_KINDS:
                self._kinds.add(kind)
            else:
                kind = OTHER_KINDS
        return self._numbers.setdefault((file, kind), len(self._numbers))


def work_on_files(work: Callable[[list[RawRow]], T], files: Sequence[Path], title: str, show_progress: bool,
                  may_be_empty: bool = True) -> Iterator[tuple[list[RawRow], T]]:
    """Runs `map_chunks` on all rows of the files and shows a progress bar, in bytes if the files are plain text.

    Raises:
        UserError: for a file that cannot be read, or has no rows though it may not be empty.
        ProcessLost: as `map_chunks`.
    """
    plain = all(file_kind(path) in ("jsonl", "ndjson", "json", "txt") for path in files)
    with progress_bar(label=f"{title} {files[0].name}{', ...' if len(files) > 1 else ''}", delay=2,
                      total=sum(_stat(path)[0] for path in files) if plain else None, unit="B" if plain else " rows",
                      unit_scale=True, disable=None if show_progress else True) as bar:
        raw_rows = chain.from_iterable(map(read_raw_rows if may_be_empty else _rows_of_nonempty, files))
        for raw, result in map_chunks(work, raw_rows):
            bar.update(sum(len(one.content) for one in raw if isinstance(one.content, bytes)) if plain else len(raw))
            yield raw, result


def _rows_of_nonempty(path: Path) -> Iterator[RawRow]:
    rows = read_raw_rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: the file has no rows")
    return chain([first], rows)


@contextmanager
def _one_process(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Lets one process at a time into the block; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder / f".{name}.lock")
    has_said = False
    while not lock.try_take():
        if not has_said:
            say(f"waiting     another process prepares the same data ({lock.described_holder()})")
            has_said = True
        time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def _joined(arrays: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Joins the arrays as unsigned numbers, `IGNORE_INDEX` as the largest."""
    joined = np.concatenate(arrays or [np.zeros(0, np.int32)])
    unsigned = np.empty(len(joined), dtype)
    for start in range(0, len(joined), TOKENS_AT_ONCE):
        part = joined[start:start + TOKENS_AT_ONCE]
        unsigned[start:start + TOKENS_AT_ONCE] = np.where(part == IGNORE_INDEX, np.iinfo(dtype).max, part)
    return unsigned
