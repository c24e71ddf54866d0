"""The lines of a file, each with its place; and what a row is before it is parsed."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from minimind_sft.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE = b"\n"
BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 32 * 2**20
"""No conversation is as long, and a file without line ends must not fill the memory."""


class RawRow(NamedTuple):
    """A row as it stands in its file: JSON text, a value that is parsed already, or why it cannot be read."""

    place: str
    content: bytes | dict | UserError


def lines(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Yields every line with its line end; for a line that is too long, an error in its place."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        place = f"{path}:{number}"
        too_long = len(line) > MAX_ROW_BYTES
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if too_long:
            length = len(line)
            while not line.endswith(NEWLINE) and (line := file.readline(BLOCK_BYTES)):
                length += len(line)
            yield RawRow(place, UserError(f"{place}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row, found "
                                          f"{length / 2**20:.0f} MiB"))
        else:
            yield RawRow(place, line)
