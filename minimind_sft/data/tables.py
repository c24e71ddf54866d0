"""Reads comma- or tab-separated tables: the header names the fields, each record is a row."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from minimind_sft.data.lines import MAX_ROW_BYTES, RawRow, lines, opened
from minimind_sft.errors import UserError

MAX_COLUMNS = 10_000
DELIMITERS = {"csv": ",", "tsv": "\t"}
DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
ENDLESS = ("unexpected end of data", "field larger than field limit")
"""The beginnings of the csv module's messages about a quote that is not closed."""


def table_rows(path: Path, kind: str, header: list[str] | None = None) -> Iterator[RawRow]:
    """Yields the records of a `csv` or `tsv` file, each at its first line.

    `header` names the fields of a file whose first line does not.

    An empty cell is a missing field, as a table gives every row all columns. A record of empty cells is not a row, like
    a blank line.

    Raises:
        UserError: if the file cannot be read, its header cannot be used, or a quote is not closed.
    """
    # The limit belongs to the whole process; there is no other way to raise it.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    with opened(path) as file:
        texts = _Texts(lines(file, path))
        records = csv.reader(texts, delimiter=DELIMITERS[kind], strict=True)
        while True:
            place = f"{path}:{records.line_num + 1}"
            texts.begin_record(place)
            try:
                cells = next(records, None)
            except csv.Error as error:
                if str(error).startswith(ENDLESS):
                    raise UserError(f"{place}: a quoted cell of this row has no end; it would swallow all rows after "
                                    "it") from error
                problem = UserError(f"{place}: broken {kind.upper()}: {error}")
                if header is None:
                    raise problem from error
                yield RawRow(place, problem)
                continue
            if cells is None:
                return
            if not any(cells):
                continue
            if header is None:
                header = _checked_header(cells, place, kind)
            else:
                yield RawRow(place, _row(header, cells, place))


class _Texts:
    """Decoded lines; bytes that are not UTF-8 become surrogates, which `_row` finds."""

    def __init__(self, raw_lines: Iterator[RawRow]):
        self._lines, self._place, self._size = raw_lines, "", 0

    def begin_record(self, place: str) -> None:
        """Begins to count the bytes of a record, which may have many lines."""
        self._place, self._size = place, 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._lines:
            if isinstance(raw.content, UserError):
                raise raw.content
            assert isinstance(raw.content, bytes), "lines are not parsed"
            self._size += len(raw.content)
            if self._size > MAX_ROW_BYTES:
                raise UserError(f"{self._place}: a quoted cell of this row has no end; it would swallow all rows "
                                f"after it (or the row has more than {MAX_ROW_BYTES // 2**20} MiB)")
            yield raw.content.decode(errors="surrogateescape")


def _checked_header(cells: list[str], place: str, kind: str) -> list[str]:
    """Returns the field names; a column without a name, such as the index of pandas, is named by its number."""
    if len(cells) > MAX_COLUMNS:
        raise UserError(f"{place}: expected at most {MAX_COLUMNS:,} columns, found {len(cells):,}")
    _check_text(cells, place)
    used = DELIMITERS[kind]
    if len(cells) == 1:
        for other in DELIMITER_NAMES.keys() - {used}:
            if other in cells[0]:
                raise UserError(f"{place}: expected a header with {DELIMITER_NAMES[used]} between its names, found "
                                f"{DELIMITER_NAMES[other]}: {cells[0][:80]}")
    cells = [name or f"column {number}" for number, name in enumerate(cells, 1)]
    twice = sorted(name for name, count in Counter(cells).items() if count > 1)
    if twice:
        raise UserError(f"{place}: expected columns of different names, found {', '.join(map(repr, twice))} more than "
                        "once")
    return cells


def _row(header: list[str], cells: list[str], place: str) -> dict | UserError:
    if len(cells) != len(header):
        return UserError(f"{place}: expected {len(header)} columns as in the header, found {len(cells)}")
    try:
        _check_text(cells, place)
    except UserError as error:
        return error
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def _check_text(cells: list[str], place: str) -> None:
    for number, cell in enumerate(cells, 1):
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            byte = ord(error.object[error.start]) - 0xDC00
            raise UserError(f"{place}: not valid UTF-8: column {number} has the byte 0x{byte:02x}") from error
