"""Splits a file of JSON objects into rows: one object per line, one over several lines, or several on one line.

Once the first line has proved to be a whole object, every line that begins and ends like one is taken for a row, so
JSONL is read as fast as lines are. Only the other lines are searched for the beginnings and ends of their objects.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from minimind_sft.data.lines import MAX_ROW_BYTES, MAX_ROW_VALUES, RawRow
from minimind_sft.errors import UserError
from minimind_sft.strict_json import has_more_values

MAX_ROW_LINES = 100_000
"""In one row: each line takes memory of its own."""
ENDS = (b"}\n", b"}\r\n", b"}")
"""The ends of a line that may hold a whole object."""

# A string, up to its end or the end of the line, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)|[\[\]{}]', re.DOTALL)
_BETWEEN = re.compile(rb"[, \t\r\n]*(?:\xef\xbb\xbf)?")
"""Between two objects: commas, as in a list without brackets, and the byte order mark of a file that was appended."""
_REST_IS_BLANK = re.compile(rb"\s*\Z")
_INSIDE = re.compile(rb'[}\],]|"[^"]*"\s*:')
"""The beginning of a line that can only be the middle or the end of an object."""


class Piece(NamedTuple):
    """A line of the file, or a part of one."""

    place: str
    content: bytes


def is_json(text: bytes) -> bool:
    """Tells whether text is one JSON value. Text with too many values counts as one; parsing the row refuses it."""
    try:
        if has_more_values(text.decode(), MAX_ROW_VALUES):
            return True
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def object_rows(lines: Iterator[RawRow]) -> Iterator[RawRow]:
    """Yields the objects of a file; anything else is passed on as it is, to be refused at its place.

    The place of an object that begins on the same line as another names its row: `file:1 (row 2)`.

    Raises:
        UserError: for an object over several lines that is too long.
    """
    splitter: _ObjectSplitter | None = None
    rows, last, is_plain = 0, "", False
    for raw in lines:
        content = raw.content
        if (isinstance(content, bytes) and content.startswith(b"{") and content.endswith(ENDS)
                and (is_plain or (splitter is None and is_json(content)))):
            rows, is_plain = rows + 1, True
            yield raw
            continue
        splitter = splitter or _ObjectSplitter(is_plain)
        for row in splitter.add(raw):
            rows += 1
            yield row if row.place != last else row._replace(place=f"{row.place} (row {rows})")
            last = row.place
        is_plain = splitter.is_plain
    if splitter is not None:
        yield from splitter.give_up()


class _ObjectSplitter:
    """Takes lines that are not plain rows, and returns the rows they hold.

    Attributes:
        is_plain: whether a following line that looks like an object is one: no object is open, and no line so far held
            several.
    """

    def __init__(self, is_plain: bool):
        self.is_plain = is_plain
        self._pieces: list[Piece] = []
        """The lines so far of an object that is still open."""
        self._depth = self._size = 0
        self._has_several = self._is_in_fragment = False

    def add(self, raw: RawRow) -> Iterator[RawRow]:
        if not isinstance(raw.content, bytes):
            yield from self.give_up()
            yield raw
        elif raw.content.strip():
            if self._pieces and raw.content.startswith(b"{") and not self._may_hold_object():
                yield from self.give_up()
            yield from self._split(Piece(raw.place, raw.content))
            self.is_plain = not (self._pieces or self._has_several or self._is_in_fragment)

    def give_up(self) -> Iterator[RawRow]:
        """Yields an object without an end: lines that look like rows as rows, and those between them as one error.

        Nothing tells which line is torn, and a torn row must not take the good ones after it along.
        """
        pieces = self._pieces
        self._forget()
        for are_whole, group in groupby(pieces, lambda piece: _looks_whole(piece.content)):
            rows = list(group)
            if are_whole or len(rows) == 1:
                yield from (RawRow(*row) for row in rows)
            else:
                place = rows[0].place
                yield RawRow(place, UserError(f"{place}: expected one JSON object per row, found one without an end "
                                              "(was the file cut off?)"))

    def _may_hold_object(self) -> bool:
        """Tells whether an object that begins at the left margin can be part of the open one."""
        is_indented = len(self._pieces) > 1 and self._pieces[1].content[:1].isspace()
        last = self._pieces[-1].content.rstrip()[-1:]
        return not is_indented and (last == b":" or (self._depth > 1 and last in (b"[", b",")))

    def _split(self, line: Piece) -> Iterator[RawRow]:
        place, text = line
        at = 0  # an index, as a line may hold many objects: its rest is not copied for each
        while True:
            if not self._pieces:
                at = _after_commas(text, at)
            if _REST_IS_BLANK.match(text, at):
                return
            if not self._pieces and not text.startswith(b"{", at):
                yield from self._no_object(place, text[at:])
                return
            if self._is_in_fragment and text[:1].isspace():
                return
            end, is_torn = self._find_end(text, at)
            if is_torn and not self._pieces:
                self._forget()
                yield RawRow(place, text[at:])
                return
            if not self._pieces and text[:1].isspace() and (end is None or not _REST_IS_BLANK.match(text, end)):
                self._forget()
                yield from self._fragment(place)
                return
            self._is_in_fragment = False
            self._keep(Piece(place, text[at:end]))
            if end is None:
                if self._size > MAX_ROW_BYTES or len(self._pieces) > MAX_ROW_LINES:
                    yield from self._give_up_too_long()
                return
            yield from self._close()
            at = end
            self._has_several |= text.startswith(b"{", _after_commas(text, at))

    def _find_end(self, text: bytes, at: int) -> tuple[int | None, bool]:
        """Finds the end of the open object in `text`, from `at` on.

        Returns (the end, or None if it is not on this line; whether the line is torn: it ends inside a string).
        """
        for token in _TOKEN.finditer(text, at):
            if token[0][:1] == b'"':
                if token[1] != b'"':
                    return None, True
            elif token[0] in (b"{", b"["):
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    return token.end(), False
        return None, False

    def _keep(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._size += len(piece.content)

    def _forget(self) -> None:
        self._pieces, self._depth, self._size = [], 0, 0

    def _close(self) -> Iterator[RawRow]:
        """Yields an object whose brackets are closed. Two torn rows may have closed each other's."""
        content = b"".join(piece.content for piece in self._pieces)
        if any(piece.content.startswith(b"{") for piece in self._pieces[1:]) and not is_json(content):
            yield from self.give_up()
            return
        place = self._pieces[0].place
        self._forget()
        yield RawRow(place, content)

    def _give_up_too_long(self) -> Iterator[RawRow]:
        if not any(_looks_whole(piece.content) for piece in self._pieces):
            raise UserError(f"{self._pieces[0].place}: expected at most {MAX_ROW_BYTES // 2**20} MiB and "
                            f"{MAX_ROW_LINES:,} lines in a row, found no end")
        yield from self.give_up()

    def _no_object(self, place: str, text: bytes) -> Iterator[RawRow]:
        """Yields text that stands outside all objects."""
        if self._is_in_fragment or _INSIDE.match(text):
            yield from self._fragment(place)
        else:
            yield RawRow(place, text)

    def _fragment(self, place: str) -> Iterator[RawRow]:
        """Yields one error for the middle or the end of an object, up to the next object at the left margin.

        Indented text belongs to the object whose beginning is missing, even if it looks like a row.
        """
        if not self._is_in_fragment:
            yield RawRow(place, UserError(f"{place}: expected one JSON object per row, found the middle or the end of "
                                          "one (is the part before it missing?)"))
        self._is_in_fragment = True


def _after_commas(text: bytes, at: int) -> int:
    """Returns where the next object can begin."""
    between = _BETWEEN.match(text, at)
    assert between is not None, "it matches nothing, too"
    return between.end()


def _looks_whole(line: bytes) -> bool:
    return line.startswith(b"{") and line.endswith(ENDS)
