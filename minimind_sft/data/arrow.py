"""Reads Parquet and Arrow files and folders of `datasets.save_to_disk`, through pyarrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minimind_sft.data.lines import RawRow
from minimind_sft.errors import UserError, one_line
from minimind_sft.files import read_object

ROWS_AT_ONCE = 1000
NAMES = {"parquet": "a Parquet", "arrow": "an Arrow"}
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def saved_dataset_files(folder: Path) -> list[Path] | None:
    """Returns the files of a folder written by `datasets.save_to_disk` in order; None for any other folder.

    Raises:
        UserError: for a folder of several splits, naming them, and for an incomplete one.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _member(folder / "dataset_dict.json", "splits")
        names = " or ".join(str(folder / str(split)) for split in splits)
        raise UserError(f"{folder}: expected one split of a saved dataset, found a folder with all splits: "
                        f"name {names}")
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    entries = _member(folder / "state.json", "_data_files")
    if not all(isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in entries):
        raise UserError(f"{folder / 'state.json'}: _data_files: expected objects with a filename")
    files = [folder / entry["filename"] for entry in entries]
    missing = next((path for path in files if not path.is_file()), None)
    if missing:
        raise UserError(f"{missing}: no such file, though {folder / 'state.json'} lists it")
    return files


def _member(path: Path, name: str) -> list:
    value = read_object(path).get(name)
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: {name}: expected a list of the parts of the saved dataset")
    return value


def arrow_rows(path: Path, kind: str) -> Iterator[RawRow]:
    """Yields the rows of a `parquet` or `arrow` file, each at its number.

    Raises:
        UserError: if the file cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading {NAMES[kind]} file needs pyarrow: pip install "
                        "'minimind-sft[parquet]'") from None
    try:
        with _batches(path, kind) as (names, batches):
            if len(set(names)) < len(names):
                raise UserError(f"{path}: expected columns of different names, found {', '.join(names)}")
            number = 0
            for batch in batches:
                if kind == "arrow":  # these files have no checksums, and a wrong length would go unnoticed
                    batch.validate(full=True)
                for index in range(batch.num_rows):
                    number += 1
                    place = f"{path}:{number}"
                    yield RawRow(place, _row(batch.slice(index, 1), place))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the latter for field names
        raise UserError(f"{path}: not {NAMES[kind]} file, or a damaged one ({one_line(error)})") from error


@contextmanager
def _batches(path: Path, kind: str) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """Opens a file; gives (column names, rows in batches)."""
    import pyarrow
    import pyarrow.parquet

    if kind == "parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file.schema_arrow.names, file.iter_batches(ROWS_AT_ONCE)
        return
    with pyarrow.OSFile(str(path)) as source:
        is_stream = source.read(6) != b"ARROW1"
        source.seek(max(source.size() - len(END_OF_STREAM), 0))
        is_whole = source.read() == END_OF_STREAM
        source.seek(0)
        if is_stream:  # as `datasets` writes it
            if not is_whole:  # pyarrow accepts a stream that is cut between two batches
                raise pyarrow.ArrowInvalid("it has no end")
            with pyarrow.ipc.open_stream(source) as reader:
                yield reader.schema.names, iter(reader)
        else:
            with pyarrow.ipc.open_file(source) as reader:
                yield reader.schema.names, map(reader.get_batch, range(reader.num_record_batches))


def _row(table: Any, place: str) -> dict | UserError:
    """Returns the row of a table of one row."""
    try:
        (row,) = table.to_pylist()
    except UnicodeDecodeError as error:
        return UserError(f"{place}: a string is not valid UTF-8: its byte {error.start + 1} is "
                         f"0x{error.object[error.start]:02x}")
    return _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """Drops null fields: a column of objects gives each object the fields of all."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value

