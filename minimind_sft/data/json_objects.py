"""Cuts lines into JSON objects: one a line, or one over several lines, or several on one.

A line that begins and ends like an object is taken for one, so that plain JSONL is read as fast as lines are. Only
other lines are searched for where their objects begin and end.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby

from minimind_sft.data.lines import MAX_ROW_BYTES, RawRow
from minimind_sft.errors import UserError

MAX_ROW_LINES = 100_000
"""Of one row; each line costs memory of its own."""
ENDS = (b"}\n", b"}\r\n", b"}")
"""How a line ends that may hold a whole object."""

# A string (to its end, or to the end of the line), or what opens or closes.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)|[\[\]{}]', re.DOTALL)
_BETWEEN = re.compile(rb"[, \t\r\n]*(?:\xef\xbb\xbf)?")
"""Stands between two objects: a list without its brackets is clear enough; files with marks may have been joined."""
_REST_IS_BLANK = re.compile(rb"\s*\Z")
_INSIDE = re.compile(rb'[}\],]|"[^"]*"\s*:')
"""How a line begins that can only be the middle or the end of an object."""


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def object_rows(lines: Iterator[RawRow]) -> Iterator[RawRow]:
    """Yields the objects of a file; what is none comes as it stands, to be refused at its place.

    An object that begins on the line of another has the number of its row in its place: `file:1 (row 2)`.

    Raises:
        UserError: for an object over several lines that is too long.
    """
    cutter = _ObjectCutter()
    rows, last, takes_plain_lines = 0, "", False
    for raw in lines:
        content = raw.content
        if takes_plain_lines and isinstance(content, bytes) and content.endswith(ENDS) and content.startswith(b"{"):
            rows += 1
            yield raw
            continue
        for row in cutter.add(raw):
            rows += 1
            yield row if row.place != last else row._replace(place=f"{row.place} (row {rows})")
            last = row.place
        takes_plain_lines = cutter.takes_plain_lines
    yield from cutter.give_up()


class _ObjectCutter:
    """Takes the lines that are no plain rows, and hands out what they become.

    Attributes:
        takes_plain_lines: whether a line that looks like an object is one: it is not inside another object, and there
            are no lines with several objects.
    """

    def __init__(self) -> None:
        self.takes_plain_lines = False  # the first line that is not blank is always searched
        self._pieces: list[RawRow] = []
        """The lines so far of an object that is still open."""
        self._depth = self._size = 0
        self._has_several = self._is_in_fragment = False

    def add(self, raw: RawRow) -> Iterator[RawRow]:
        if isinstance(raw.content, UserError):
            yield from self.give_up()
            yield raw
        elif raw.content.strip():
            if self._pieces and raw.content.startswith(b"{") and not self._may_hold_object():
                yield from self.give_up()
            yield from self._cut(raw)
            self.takes_plain_lines = not (self._pieces or self._has_several or self._is_in_fragment)

    def give_up(self) -> Iterator[RawRow]:
        """Hands out an object that has no end: the lines that look like rows as rows, those between them as one error.

        Which line of it is torn cannot be told, and a torn row must not take the good ones after it along.
        """
        pieces = self._pieces
        self._forget()
        for are_whole, group in groupby(pieces, lambda piece: _looks_whole(piece.content)):
            rows = list(group)
            if are_whole or len(rows) == 1:
                yield from rows
            else:
                place = rows[0].place
                yield RawRow(place, UserError(f"{place}: expected one JSON object per row, found one without an end "
                                              "(was the file cut off?)"))

    def _may_hold_object(self) -> bool:
        """Whether an object that begins at the left margin can be a part of the one that is open."""
        is_indented = len(self._pieces) > 1 and self._pieces[1].content[:1].isspace()
        last = self._pieces[-1].content.rstrip()[-1:]
        return not is_indented and (last == b":" or (self._depth > 1 and last in (b"[", b",")))

    def _cut(self, raw: RawRow) -> Iterator[RawRow]:
        place, text = raw
        at = 0  # a line may hold many objects: what is left of it is not copied for each
        while True:
            if not self._pieces:
                at = _BETWEEN.match(text, at).end()
            if _REST_IS_BLANK.match(text, at):
                return
            if not self._pieces and not text.startswith(b"{", at):
                yield from self._no_object(place, text[at:])
                return
            if self._is_in_fragment and raw.content[:1].isspace():
                return
            end, is_torn = self._find_end(text, at)
            if is_torn and not self._pieces:
                self._forget()
                yield RawRow(place, text[at:])
                return
            if not self._pieces and raw.content[:1].isspace() and (end is None or not _REST_IS_BLANK.match(text, end)):
                self._forget()
                yield from self._fragment(place)
                return
            self._is_in_fragment = False
            self._keep(RawRow(place, text[at:end]))
            if end is None:
                if self._size > MAX_ROW_BYTES or len(self._pieces) > MAX_ROW_LINES:
                    yield from self._give_up_too_long()
                return
            yield from self._whole()
            at = end
            self._has_several |= text.startswith(b"{", _BETWEEN.match(text, at).end())

    def _find_end(self, text: bytes, at: int) -> tuple[int | None, bool]:
        """(where the open object ends, or None; whether the line ends inside a string, as no line of JSON does).

        Args:
            at: where to begin in `text`.
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

    def _keep(self, piece: RawRow) -> None:
        self._pieces.append(piece)
        self._size += len(piece.content)

    def _forget(self) -> None:
        self._pieces, self._depth, self._size = [], 0, 0

    def _whole(self) -> Iterator[RawRow]:
        """Hands out an object whose brackets are closed. Two torn rows may have closed each other's."""
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
                            f"{MAX_ROW_LINES:,} lines in a row, found no end of it")
        yield from self.give_up()

    def _no_object(self, place: str, text: bytes) -> Iterator[RawRow]:
        """Hands out what stands outside of all objects."""
        if self._is_in_fragment or _INSIDE.match(text):
            yield from self._fragment(place)
        else:
            yield RawRow(place, text)

    def _fragment(self, place: str) -> Iterator[RawRow]:
        """Hands out one error for the middle or the end of an object, up to an object at the left margin.

        What is indented there is a part of the object that was lost, however much like a row it looks.
        """
        if not self._is_in_fragment:
            yield RawRow(place, UserError(f"{place}: expected one JSON object per row, found the middle or the end of "
                                          "one (is the part before it missing?)"))
        self._is_in_fragment = True


def _looks_whole(line: bytes) -> bool:
    return line.startswith(b"{") and line.endswith(ENDS)
