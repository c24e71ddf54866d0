"""Reads Parquet and Arrow files and folders of `datasets.save_to_disk`, through pyarrow."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from minimind_sft.data.arrow_limits import check_batches, value_bytes
from minimind_sft.data.lines import BLOCK_BYTES, MAX_ROW_BYTES, RawRow
from minimind_sft.data.parquet_limits import check_parquet, dictionary_columns, rows_at_once
from minimind_sft.errors import UserError, one_line
from minimind_sft.files import read_object

NAMES = {"parquet": "a Parquet", "arrow": "an Arrow"}
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
FILE_MARK, STREAM_IN_FILE = b"ARROW1", 8
"""The beginning and the end of a file, and where its stream begins."""
MAX_EXPANSION, MIN_TEXT_BYTES = 1000, 2**26
"""Rows may share a long system text. More text than that is refused beyond so many bytes."""
MAX_ROWS = 1_000_000
"""In a file with fewer bytes than that: rows of nothing take no room."""


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
        with _batches(path, kind) as (schema, batches):
            names = schema.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: expected columns of different names, found {', '.join(names)}")
            number, text_bytes, size = 0, 0, path.stat().st_size
            for batch in batches:
                if number + batch.num_rows > max(size, MAX_ROWS):
                    raise UserError(f"{path}: expected rows of text, found more rows than the file has bytes")
                if kind == "arrow":  # these files have no checksums, and a wrong length would go unnoticed
                    batch.validate(full=True)
                batch_bytes = value_bytes(batch)
                text_bytes += batch_bytes
                if text_bytes > max(size * MAX_EXPANSION, MIN_TEXT_BYTES):
                    raise UserError(f"{path}: expected rows of text, found more than {MAX_EXPANSION:,} times the size "
                                    "of the file")
                are_small = batch_bytes <= MAX_ROW_BYTES
                if are_small and batch.schema != schema:
                    with suppress(pyarrow.ArrowNotImplementedError):  # of some types: they are read as they are
                        batch = batch.cast(schema)  # it is faster to read without dictionaries
                for index in range(batch.num_rows):
                    number += 1
                    place = f"{path}:{number}"
                    yield RawRow(place, _row(batch.slice(index, 1), place, are_small))
    except RecursionError:
        raise UserError(f"{path}: its columns are nested too deeply") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError) as error:  # the latter for field names and pages
        raise UserError(f"{path}: not {NAMES[kind]} file, or a damaged one ({one_line(error)})") from error


@contextmanager
def _batches(path: Path, kind: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Opens a file; gives (schema, rows in batches, in which columns may refer to their texts by number)."""
    import pyarrow
    import pyarrow.parquet

    if kind == "parquet":
        metadata = pyarrow.parquet.read_metadata(path)
        check_parquet(path, metadata)
        with pyarrow.parquet.ParquetFile(path, metadata=metadata, buffer_size=BLOCK_BYTES,
                                         read_dictionary=dictionary_columns(metadata)) as file:
            yield pyarrow.parquet.ParquetFile(path, metadata=metadata).schema_arrow, chain.from_iterable(
                file.iter_batches(rows_at_once(metadata, group), row_groups=[group])
                for group in range(metadata.num_row_groups))
        return
    with pyarrow.OSFile(str(path)) as source:
        is_file = source.read(len(FILE_MARK)) == FILE_MARK  # otherwise a stream, as `datasets` writes it
        end = FILE_MARK if is_file else END_OF_STREAM
        source.seek(max(source.size() - len(end), 0))
        if source.read() != end:  # pyarrow accepts a stream that is cut between two batches
            raise pyarrow.ArrowInvalid("it has no end")
        start = STREAM_IN_FILE if is_file else 0  # a file holds a stream, and a list of its batches that is not needed
        check_batches(path, start)
        source.seek(start)
        with pyarrow.ipc.open_stream(source) as reader:
            yield reader.schema, iter(reader)


def _row(table: Any, place: str, is_small: bool) -> dict | UserError:
    """Returns the row of a table of one row."""
    if not is_small and (size := value_bytes(table)) > MAX_ROW_BYTES:
        return UserError(f"{place}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row, found "
                         f"{size / 2**20:,.0f} MiB")
    try:
        (row,) = table.to_pylist()
    except UnicodeDecodeError as error:
        return UserError(f"{place}: a string is not valid UTF-8: its byte {error.start + 1} is "
                         f"0x{error.object[error.start]:02x}")
    except (ValueError, OverflowError, NotImplementedError) as error:  # dates and types that Python lacks
        return UserError(f"{place}: a value cannot be read ({one_line(error)})")
    return _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """Drops null fields: a column of objects gives each object the fields of all."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value

