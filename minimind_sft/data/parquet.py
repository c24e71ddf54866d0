"""Parquet files become rows, through pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError

PARQUET_ROWS = 1000
"""Read at a time."""


def parquet_rows(path: Path) -> Iterator[tuple[str, dict | UserError]]:
    """The rows of a file with their places, or why one cannot be read.

    Raises:
        UserError: if the file cannot be read, or pyarrow is not here.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'minimind-sft[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: expected columns of different names, found {', '.join(names)}")
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    place = f"{path}:{number}"
                    yield place, _row(batch.slice(index, 1), place)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or _one_line(error)})") from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file, or a damaged one ({_one_line(error)})") from error


def _row(table: Any, place: str) -> dict | UserError:
    """The row of a table of one row."""
    try:
        (row,) = table.to_pylist()
    except UnicodeDecodeError as error:
        return UserError(f"{place}: a string is not valid UTF-8: its byte {error.start + 1} is "
                         f"0x{error.object[error.start]:02x}")
    return _without_nothing(row)


def _without_nothing(value: Any) -> Any:
    """Without null fields: a column of objects gives each of them the fields of all."""
    if isinstance(value, dict):
        return {name: _without_nothing(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nothing(part) for part in value]
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
