"""Reads a file of token ids or labels as it is needed."""

import os
import threading
from pathlib import Path

import numpy as np

from minimind_sft.errors import UserError
from minimind_sft.files import open_regular, sha256_of_file

BLOCK = 2**20
"""Tokens that are read at a time where all are looked at."""

HAS_PREAD = hasattr(os, "pread")


class StoredTokens:
    """The unsigned numbers of a file; slices of it are arrays.

    The file is not mapped into memory: if another program cut it, a read would end the process with a bus error. Each
    read checks that the file is as it was when it was opened.

    Attributes:
        sha256: of the file, once it is known. A file that was only touched then counts as unchanged.

    Raises:
        UserError: naming the file: here if it cannot be opened, later if it has changed.
    """

    sha256 = ""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path, self._dtype, self._width = path, dtype, dtype.itemsize
        self._open()
        state = os.fstat(self._handle)
        self._length = state.st_size // self._width
        self._identity = state.st_dev, state.st_ino
        self._size, self._modified = state.st_size, state.st_mtime_ns

    def _open(self) -> None:
        self._file = open_regular(self.path)
        self._handle = self._file.fileno()
        self._one_reader = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> np.ndarray:
        """Returns the numbers of a slice without steps."""
        start, end, step = where.indices(self._length)
        assert step == 1
        content = self._read(max(end - start, 0) * self._width, start * self._width)
        self.check_unchanged()
        return np.frombuffer(content, self._dtype)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_handle", "_one_reader")}

    def __setstate__(self, state: dict) -> None:
        """Opens the file again, in a worker process."""
        self.__dict__.update(state)
        self._open()
        now = os.fstat(self._handle)
        if (now.st_dev, now.st_ino) != self._identity:
            raise self._changed()
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """
        Raises:
            UserError: if the file is not as it was when it was first opened.
        """
        state = os.fstat(self._handle)
        if state.st_size == self._size and state.st_mtime_ns == self._modified:
            return
        if state.st_size != self._size or self.sha256 != sha256_of_file(self.path):
            raise self._changed()
        self._modified = state.st_mtime_ns  # of a `touch`, with which people keep files from being cleaned away

    def _changed(self) -> UserError:
        return UserError(f"{self.path}: was changed by another program; start again, and the data are prepared anew")

    def survey(self, ignore: int = -1) -> tuple[int, int]:
        """Returns the largest number except `ignore`, 0 if there is none, and how many are not `ignore`."""
        largest = count = 0
        for start in range(0, len(self), BLOCK):
            block = self[start:start + BLOCK]
            kept = block[block != ignore]
            largest, count = max(largest, int(kept.max(initial=0))), count + len(kept)
        return largest, count

    def _read(self, size: int, offset: int) -> bytes:
        try:
            if HAS_PREAD:
                content = os.pread(self._handle, size, offset)
                if len(content) == size:
                    return content
            with self._one_reader:  # Windows; and Linux reads at most 2 GiB at once
                self._file.seek(offset)
                return self._file.read(size)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
