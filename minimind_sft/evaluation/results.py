"""Keeps what an evaluation has done so far, and describes what was evaluated."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minimind_sft.errors import UserError
from minimind_sft.evaluation.items import Item
from minimind_sft.files import peek_object, read_regular_file, sha256_of_file
from minimind_sft.inference.loading import Loaded
from minimind_sft.locks import FolderLock
from minimind_sft.paths import shown
from minimind_sft.set_aside import is_there, previous_name, set_aside_file
from minimind_sft.settings.chat import ChatRuntimeSettings
from minimind_sft.strict_json import parse_json
from minimind_sft.writing import append_to, check_writable, cut, remove, write_text_atomically

MARK = "evaluation"
"""The field by which results files, and the lines of answers files that begin a task, are recognised."""

BEGINNINGS = tuple(f'{{"{name}": "'.encode() for name in (MARK, "task"))
"""How the lines of an answers file begin."""

MAX_ANSWERS_BYTES = 2**30
"""Of an answers file, which is read whole."""

PACKAGES = ("minimind-sft", "torch", "tokenizers", "sacrebleu", "rouge-score", "jieba")


class Outcome(NamedTuple):
    """The findings of a task: an object for the results file, lines for the terminal, and items to compare with
    another model's."""

    result: dict[str, Any]
    lines: list[str]
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation.

    identity: what its answers depend on; answers of another identity are never reused.
    names: the paths of its weights and adapters.
    """

    loaded: Loaded
    identity: dict[str, Any]
    names: dict[str, Any]

    @classmethod
    def of(cls, loaded: Loaded, runtime: ChatRuntimeSettings) -> "Candidate":
        """Describes a loaded model: hashes of its files, its tokenizer and template, and how it computes."""
        adapters = [{"weight": weight, "sha256": sha256_of(adapter.path)} for adapter, weight in loaded.adapters]
        template = loaded.template.fingerprint if loaded.template else None
        config = loaded.model.config
        identity = {"weights": sha256_of(loaded.path), "adapters": adapters, "tokenizer": loaded.tokenizer.fingerprint,
                    "chat_template": template, "context": config.context,
                    "rope_scaling": asdict(config.rope_scaling) if config.rope_scaling else None,
                    "dtype": str(loaded.model.embed_tokens.weight.dtype).removeprefix("torch."),
                    "quantize": runtime.quantize}
        names = {"weights": shown(loaded.path), "adapters": [shown(adapter.path) for adapter, _ in loaded.adapters]}
        return cls(loaded, identity, names)

    @property
    def facts(self) -> dict[str, Any]:
        """The model's description in the results file."""
        return {"names": self.names, **self.identity}


def sha256_of(path: Path) -> str | dict[str, str]:
    """Returns the SHA-256 of a file, or of each file of a folder by its name."""
    if path.is_dir():
        return {file.name: sha256_of_file(file) for file in sorted(path.iterdir()) if file.is_file()}
    return sha256_of_file(path)


def data_facts(files: Iterable[Path]) -> list[dict[str, str]]:
    """Returns name and SHA-256 of each file."""
    return [{"path": shown(file), "sha256": sha256_of_file(file)} for file in files]


def machine_facts() -> dict[str, Any]:
    """Returns what computed: processor, threads, GPU and the versions of packages."""
    facts: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(),
                             "python": platform.python_version(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts


class Task:
    """The finished items of one task, by their names, which are unique in the task.

    done: the values that were added, in this process or an earlier one.
    """

    def __init__(self, store: "Store", name: str, done: dict[str, dict]):
        self._store, self._name, self.done = store, name, done

    def add(self, items: Mapping[str, dict]) -> None:
        """Adds items that are finished; they survive whatever happens to the process from now on."""
        self.done.update(items)
        self._store.write({"task": self._name, "item": item, **values} for item, values in items.items())

    def foreign(self, item: str) -> UserError:
        """Returns the error for an item that somebody changed."""
        return _foreign(f"{self._store.path}: {self._name}: item {item}")


class Store:
    """The answers file: one JSON object per line, appended as items are finished.

    A task begins with a line `{"evaluation": its name, "identity": what its items depend on}`; each of its items is a
    line `{"task": its name, "item": the item's name, ...}`. A last line that a killed process left unfinished is cut
    off. Without a path, nothing is kept.
    """

    def __init__(self, path: Path | None):
        self.path, self._whose = path, ""
        self._identities: dict[str, dict] = {}
        self._done: dict[str, dict[str, dict]] = {}
        if path is None:
            return
        self._lock = FolderLock(path.with_name(f".{path.name}.lock"))
        if not self._lock.try_take():
            raise UserError(f"{path}: another evaluation is writing there ({self._lock.described_holder()})")
        if is_there(path):
            self._read(path)
        with self._disk():
            self._file = append_to(path)

    def task(self, name: str, identity: Mapping[str, Any], is_item: Callable[[dict], bool] = bool) -> Task:
        """Opens a task, with the items that an earlier process finished.

        Args:
            is_item: says whether the values of an item are as the task adds them.

        Raises:
            UserError: if they depend on something else than `identity`, naming the first difference, or if one of them
                was changed by somebody else.
        """
        given = json.loads(json.dumps(identity))
        name += self._whose
        if name not in self._identities:
            self._identities[name] = given
            self.write([{MARK: name, "identity": given}])
        self._check_same(name, self._identities[name], given)
        task = Task(self, name, self._done.setdefault(name, {}))
        for item, values in task.done.items():
            if not is_item(values):
                raise task.foreign(item)
        return task

    def of(self, whose: str) -> "Store":
        """Returns the same store for another model's tasks, whose names end in `whose`."""
        other = copy(self)
        other._whose = f" of {whose}"
        return other

    def finished(self, name: str) -> dict[str, dict]:
        """Returns the finished items of a task, by their names; none if there is no such task."""
        return self._done.get(name + self._whose, {})

    @property
    def items(self) -> int:
        """The number of finished items of all tasks."""
        return sum(map(len, self._done.values()))

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines and waits until they are on the disk."""
        if self.path is None:
            return
        with self._disk():
            self._file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self.path is not None:
            self._file.close()
            self._lock.release()

    def abandon(self) -> None:
        """Closes the store after an error, and removes a file in which no item has anything measured."""
        items = chain.from_iterable(items.values() for items in self._done.values())
        if self.path is not None and all("problem" in values or values.get("tokens") == 0 for values in items):
            self._file.close()
            remove(self.path)
        self.close()

    def _read(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: expected a file for the answers, found something else; choose another --out, or "
                            "--overwrite moves it away")
        with self._disk("read"):
            whole = read_regular_file(path, MAX_ANSWERS_BYTES)
        kept = whole.rfind(b"\n") + 1
        for number, line in enumerate(whole[:kept].split(b"\n")[:-1], start=1):
            try:
                self._take(parse_json(line.decode(), f"{path}:{number}"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _foreign(f"{path}:{number}") from error
        if kept < len(whole):
            self._cut(path, kept, whole[kept:])

    def _take(self, row: dict[str, Any]) -> None:
        """Takes a line that an earlier process wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if it is not such a line.
        """
        if MARK in row:
            name, identity = row[MARK], row["identity"]
            if not isinstance(name, str) or not isinstance(identity, dict) or name in self._identities:
                raise ValueError
            self._identities[name], self._done[name] = identity, {}
            return
        task, item = row.pop("task"), row.pop("item")
        if not isinstance(item, str):
            raise TypeError
        self._done[task][item] = row

    def _cut(self, path: Path, kept: int, unfinished: bytes) -> None:
        """Cuts off the line that a killed process left unfinished; a line of somebody else is no such line."""
        if not any(unfinished.startswith(beginning[:len(unfinished)]) for beginning in BEGINNINGS):
            raise _foreign(f"{path}, last line")
        with self._disk():
            cut(path, kept)

    def _check_same(self, task: str, before: dict, now: dict) -> None:
        for field in {**before, **now}:
            if before.get(field) != now.get(field):
                raise UserError(f"{self.path}: holds {task} with another {field}: {_short(before.get(field))}, now "
                                f"{_short(now.get(field))}; choose another --out, or --overwrite starts again")

    @contextmanager
    def _disk(self, done: str = "written") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be {done} ({error.strerror})") from error


def open_store(out: str | None, overwrite: bool) -> Store:
    """Opens the answers file beside the results file `out`, before anything is computed.

    Raises:
        UserError: if a file there was not written by an evaluation, or cannot be written.
    """
    if out is None:
        return Store(None)
    path = Path(out)
    check_writable(path.parent, "--out")
    answers = answers_path(path)
    if overwrite:
        for file in (path, answers):
            if is_there(file) and file.lstat().st_size:  # an empty one must not replace the last `.previous`
                set_aside_file(file)
    elif is_there(path) and MARK not in peek_object(path):
        raise UserError(f"--out {path}: exists and holds something other than results of an evaluation; choose another "
                        f"name, or --overwrite moves it to {previous_name(path)}")
    return Store(answers)


def answers_path(results: Path) -> Path:
    """Returns the path of the answers that belong to a results file."""
    return results.with_name(f"{results.stem}.answers.jsonl")


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the results file.

    Raises:
        UserError: if it cannot be written.
    """
    text = json.dumps({MARK: 1, **results}, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    write_text_atomically(path, text)


def are_numbers(values: Iterable[Any]) -> bool:
    """Says whether all values, as read from an answers file, are finite numbers."""
    return all(type(value) in (int, float) and abs(value) < sys.float_info.max for value in values)


def _foreign(place: str) -> UserError:
    return UserError(f"{place}: not a line of an evaluation's answers; choose another --out, or --overwrite moves the "
                     "file away")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
