"""Writing data files and reading their rows, errors and places."""

import json
from pathlib import Path

from minimind_sft.data.reading import parse_raw_row, read_raw_rows
from minimind_sft.errors import UserError
from minimind_sft.writing import MARKER


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def left_private_folder(parent: Path) -> Path:
    """Makes what a killed process leaves of a private folder."""
    folder = parent / f".minimind_sft.{16 * '0'}.tmp"
    folder.mkdir()
    (folder / MARKER).touch()
    return folder


def rows_or_errors(file: Path) -> list[dict | str]:
    """Returns each row, or its error message without the file's name."""
    found = []
    for raw in read_raw_rows(file):
        try:
            found.append(parse_raw_row(raw))
        except UserError as error:
            found.append(str(error).removeprefix(f"{file}:"))
    return found


def places(file: Path) -> list[str]:
    """Returns the place of each row without the file's name."""
    return [raw.place.removeprefix(f"{file}:") for raw in read_raw_rows(file)]


def jsonl(rows: list) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
