"""The metrics file, one JSON object per line."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.files import MAX_METRICS_BYTES, read_text
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
    """Reads the lines of a metrics file; returns none if it cannot be read."""
    with suppress(ValueError, KeyError, TypeError):
        return [line for line in map(json.loads, read_text(path, MAX_METRICS_BYTES).splitlines()) if line["step"] >= 0]
    return []


def cut_metrics(path: Path, step: int) -> None:
    """Removes the lines past `step`, which a resumed run writes again; step 0 starts with an empty file."""
    kept = []
    for line in read_text(path, MAX_METRICS_BYTES).splitlines() if path.exists() and step > 0 else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # half a line, from when the run was killed
    write_text_atomically(path, "".join(kept))
