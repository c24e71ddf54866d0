"""Follows metrics files while runs write them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from minimind_sft.errors import UserError
from minimind_sft.files import open_regular, path_exists
from minimind_sft.report.run_files import SUFFIX, Run, RunReader

REMEMBERED = 4096
"""Bytes: so many of the last that were read tell whether a file still begins with what was read."""


class FollowedRun:
    """A run whose metrics file is read on, line by line, as it grows.

    A resumed run rewrites its file without the lines that it will write again, and a new run of the same name starts
    another file: both are noticed, and the file is read again from its beginning. A last line without its end is still
    being written; it is read when it is complete.

    Attributes:
        version: changes whenever `run` or `problem` does.
        problem: the first line of the file that cannot be read, or why the file cannot; "" if all is well.
        written: when the file last grew (seconds since the epoch); None without a file.
    """

    def __init__(self, path: Path):
        self.path, self.version = path, 0
        self.problem = ""
        self.written: float | None = None
        self._file_id: tuple[int, int] | None = None
        self._start_again()

    @property
    def run(self) -> Run:
        return self._reader.run

    def update(self) -> None:
        """Reads the lines that were written since the last call."""
        try:
            with _open_file(self.path) as file:
                self._read_on(file)
        except OSError as error:
            reason = "not there yet" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            self._lose_file(f"{self.path}: {reason}")
        except UserError as error:
            self._lose_file(str(error))

    def _start_again(self) -> None:
        self._reader = RunReader(self.path)
        self._lines, self._offset, self._last_bytes = 0, 0, b""

    def _lose_file(self, reason: str) -> None:
        if self.problem != reason:
            self._start_again()
            self._file_id, self.problem, self.written = None, reason, None
            self.version += 1

    def _read_on(self, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        if self._file_id != (state.st_dev, state.st_ino) or not self._continues(file, state.st_size):
            self._start_again()
            self._file_id, self.problem = (state.st_dev, state.st_ino), ""
            self.version += 1
        file.seek(self._offset)
        complete = file.read(state.st_size - self._offset).rpartition(b"\n")[:2]
        text = b"".join(complete)
        self.written = state.st_mtime
        if text:
            self._offset += len(text)
            self._last_bytes = (self._last_bytes + text)[-REMEMBERED:]
            self._add_lines(text)
            self.version += 1

    def _continues(self, file: BinaryIO, size: int) -> bool:
        """Says whether the file still begins with what was read."""
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._last_bytes))
        return file.read(len(self._last_bytes)) == self._last_bytes

    def _add_lines(self, text: bytes) -> None:
        """Reads lines; of those that cannot be read the first is the problem, and the others are still shown."""
        for line in text.split(b"\n")[:-1]:
            self._lines += 1
            try:
                self._reader.add(line.decode("utf-8", errors="replace"), f"{self.path}:{self._lines}")
            except UserError as error:
                self.problem = self.problem or str(error)


def _open_file(path: Path) -> BinaryIO:
    """Opens a regular file.

    Raises:
        FileNotFoundError: if it is not there.
        UserError: if it cannot be opened.
    """
    path.stat()
    return open_regular(path)


class FollowedRuns:
    """The runs of metrics files, and of folders of them; in a folder, runs that start later are found later.

    Raises:
        UserError: if a name is neither a folder nor a file, nor that of a metrics file that may appear.
    """

    def __init__(self, names: Sequence[str]):
        self._names = [Path(name) for name in names]
        self._followed: dict[Path, FollowedRun] = {}
        for name in self._names:
            if not (path_exists(name) or name.name.endswith(SUFFIX)):
                raise UserError(f"{name}: not there; expected metrics files, <save_dir>/<name>{SUFFIX}, or folders of "
                                "them")

    def update(self) -> list[FollowedRun]:
        """Reads what was written since the last call; returns the runs, the one that wrote last first."""
        paths = dict.fromkeys(path.absolute() for name in self._names
                              for path in (sorted(name.glob(f"*{SUFFIX}")) if name.is_dir() else [name]))
        self._followed = {path: self._followed.get(path) or FollowedRun(path) for path in paths}
        for followed in self._followed.values():
            followed.update()
        return sorted(self._followed.values(), key=lambda one: -(one.written or 0))
