"""The metrics file, one JSON object per line."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.files import MAX_METRICS_BYTES, read_regular_file
from minimind_sft.report.run_files import RunReader
from minimind_sft.set_aside import is_there
from minimind_sft.training.loggers.loggers import Loggers
from minimind_sft.writing import append_to, write_text_atomically


class Metrics:
    """Appends lines to the metrics file and sends them to the loggers.

    Args:
        step: the step that the run starts at; later lines of the file are removed.

    Raises:
        UserError: here and in `write` and `sync`, if the file cannot be written.
    """

    def __init__(self, path: Path, step: int, loggers: Loggers):
        self.path, self._loggers = path, loggers
        with self._disk():
            cut_metrics(path, step)
            self._file = append_to(path)

    def write(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Writes a line, sends it, and returns it."""
        line = {"step": step, **finite(values)}
        with self._disk():
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        self._loggers.send(line)
        return line

    def sync(self) -> None:
        """Makes the lines so far survive a power cut, like the resume state that is written next."""
        with self._disk():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # failed writes have been reported
            self._file.close()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None, also inside objects and lists: JSON has none of them."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict]:
    """Reads the lines of a metrics file; returns none if one of them cannot be read."""
    with suppress(UserError):
        reader = RunReader(path)
        return [_read(reader, line, place) for line, place in _lines(path)]
    return []


def cut_metrics(path: Path, step: int) -> None:
    """Removes the lines past `step`, which a resumed run writes again; step 0 starts with an empty file.

    Lines at the end that cannot be read go as well: a run that is killed leaves half a line.

    Raises:
        UserError: for a line that is not one of metrics, if it is the first or one to keep follows it: the file is not
            ours, or somebody changed it.
    """
    kept: list[bytes] = []
    reader, fault = RunReader(path), None
    for number, (line, place) in enumerate(_lines(path) if step > 0 and is_there(path) else ()):
        try:
            is_kept = _read(reader, line, place)["step"] <= step
        except UserError as error:
            fault = fault or error
            is_kept = False
        if fault and (is_kept or number == 0):
            raise UserError(f"{fault}; move the file away, and the run starts a new one") from fault
        if is_kept:
            kept.append(line + b"\n")
    write_text_atomically(path, b"".join(kept).decode())


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yields the lines of a file, each with its place."""
    *complete, last = read_regular_file(path, MAX_METRICS_BYTES).split(b"\n")
    for number, line in enumerate([*complete, *([last] if last else [])], 1):
        yield line, f"{path}:{number}"


def _read(reader: RunReader, line: bytes, place: str) -> dict[str, Any]:
    try:
        return reader.add(line.decode(), place)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not valid UTF-8 (byte {error.start + 1})") from error
