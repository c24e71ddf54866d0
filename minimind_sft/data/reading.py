"""Reads files into rows, each with its place (`file:line`).

A row that cannot be read is an error at its own place: the caller decides whether it ends the reading or is counted. A
problem with the file as a whole (missing, damaged, not what its name says) always ends the reading.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimind_sft.data.arrow import arrow_rows
from minimind_sft.data.json_arrays import BEGINS_WITH_ROW, array_rows, find_array
from minimind_sft.data.json_objects import object_rows
from minimind_sft.data.lines import MAX_ROW_VALUES, NEWLINE, UNPACKERS, RawRow, lines, opened
from minimind_sft.data.recognition import looks_like_gb18030, read_start
from minimind_sft.data.tables import table_rows
from minimind_sft.errors import UserError, describe
from minimind_sft.strict_json import parse_json

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
"""Files with these may also be compressed."""
OTHER_SUFFIXES = (".parquet", ".arrow")
_KIND = re.compile(rf"((?:{'|'.join(TEXT_SUFFIXES)})(?:{'|'.join(UNPACKERS)})?|{'|'.join(OTHER_SUFFIXES)})\Z"
                   .replace(".", r"\."), re.IGNORECASE)


def read_rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Yields the rows of a file with their places: `("sft.jsonl:3", {...})`.

    Raises:
        UserError: naming file and line, if the file cannot be read, has no row, or a row cannot be read.
    """
    found = False
    for raw in read_raw_rows(Path(path)):
        found = True
        yield raw.place, parse_raw_row(raw)
    if not found:
        raise UserError(f"{path}: the file has no rows")


def read_raw_rows(path: Path) -> Iterator[RawRow]:
    """Yields the rows of one file, unparsed; blank lines are not rows.

    The suffix decides: JSON in any layout, a table with one row per record (`.csv`, `.tsv`, `.parquet`, `.arrow`) or
    text with one row per line (`.txt`); and whether the file is compressed.

    Raises:
        UserError: if the file cannot be read, or its content is not what its name says.
    """
    kind = file_kind(path)
    start = read_start(path, kind)
    kind = kind.partition(".")[0]
    if kind in ("parquet", "arrow"):
        yield from arrow_rows(path, kind)
    elif kind in ("csv", "tsv"):
        yield from table_rows(path, kind)
    elif kind == "txt":
        with opened(path) as file:
            yield from (_text_row(raw) for raw in lines(file, path) if not isinstance(raw.content, bytes)
                        or raw.content.strip())
    else:
        before, key = (None, "") if BEGINS_WITH_ROW.match(start) else find_array(start)
        with opened(path) as file:
            if before is None:
                yield from object_rows(lines(file, path))
            else:
                file.read(before + 1)
                yield from array_rows(file, path, 1 + start[:before].count(NEWLINE), key)


def parse_raw_row(raw: RawRow) -> dict:
    """Returns the JSON object of a row.

    Raises:
        UserError: at the row's place, if it is not one JSON object of valid text.
    """
    place, content = raw
    if isinstance(content, dict):
        return content
    text = decoded(raw)
    try:
        row = parse_json(text.rstrip("\r\n"), place, "one JSON object per row", MAX_ROW_VALUES)
    except UserError as error:
        # Lines come with their end. Elements of an array come without, and torn ones were reported already.
        is_torn = text.startswith("{") and not text.endswith(("\n", "}"))
        raise UserError(f"{error}{' (the row has no end: was the file cut off?)' * is_torn}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected one JSON object per row, found {describe(row)}")
    return row


def decoded(raw: RawRow) -> str:
    """Returns the text of a row.

    Raises:
        UserError: at the row's place, if it is an error or not valid UTF-8.
    """
    place, content = raw
    if isinstance(content, UserError):
        raise content
    assert isinstance(content, bytes), "only text is decoded"
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        hint = " (it looks like GB18030)" if looks_like_gb18030(content) else ""
        raise UserError(f"{place}: not valid UTF-8: byte {error.start + 1} of the row is "
                        f"0x{content[error.start]:02x}{hint}") from error


def read_texts(path: str | Path) -> Iterator[str]:
    """Yields the running text of a file: the lines of a .txt with their line ends, every string in other rows.

    Raises:
        UserError: as `read_rows`.
    """
    path, found = Path(path), False
    kind = file_kind(path)
    if kind.startswith("txt"):
        read_start(path, kind)
        with opened(path) as file:
            for line in lines(file, path):
                found = True
                yield decoded(line)
    else:
        for raw in read_raw_rows(path):
            found = True
            yield from _strings(parse_raw_row(raw))
    if not found:
        raise UserError(f"{path}: the file has no rows")


def file_kind(path: Path) -> str:
    """Returns how a file is read, by its name: `jsonl`, `jsonl.gz`, ...

    Raises:
        UserError: for a name without a known suffix.
    """
    match = _KIND.search(path.name)
    if match is None:
        raise UserError(f"{path}: expected a file named *{', *'.join(TEXT_SUFFIXES)} (also with "
                        f"{', '.join(UNPACKERS)} after it), *{' or *'.join(OTHER_SUFFIXES)}")
    return match[1].lower()[1:]


def _text_row(raw: RawRow) -> RawRow:
    try:
        return raw._replace(content={"text": decoded(raw).rstrip("\r\n")})
    except UserError as error:
        return raw._replace(content=error)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
