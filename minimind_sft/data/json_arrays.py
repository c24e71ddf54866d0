"""Splits an array of rows, the whole file or one value of an object (`{"data": [...]}`), without parsing it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from minimind_sft.data.json_objects import is_json
from minimind_sft.data.lines import BLOCK_BYTES, BYTE_ORDER_MARK, MAX_ROW_BYTES, NEWLINE, RawRow
from minimind_sft.errors import UserError

START_BYTES = 2**20
"""Read from the beginning of a file to recognise it and find its layout."""
FORM_FIELDS = {"conversations", "messages", "conversation", "prompt", "question", "query", "instruction", "completion",
               "response", "answer", "output", "chosen", "rejected", "text"}
"""An object with one of these is a row itself, not a wrapper of rows."""
WRAPPERS = {"data", "train", "rows", "examples", "items", "samples", "records", "instances"}
"""Keys whose list of objects can only be rows. Under another key a list counts if its first object has the fields of a
conversation: {"dialog": [{"speaker": ..., "text": ...}]} is one conversation in an unknown form, not running text."""

BEGINS_WITH_ROW = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:' + "|".join(sorted(FORM_FIELDS)).encode() + rb')"')
"""The beginning of a file whose first object cannot be a wrapper."""
# Between the values of an object, in text with one character per byte.
_KEY = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*')
_COMMA = re.compile(r"\s*,")
_OPENS_OBJECTS = re.compile(r"\[\s*(?=\{)")
_DECODER = json.JSONDecoder()
# A string, up to its end or the end of the text read so far, or an opening, closing or separating character.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)|[\[\]{},]', re.DOTALL)
_CLOSER = {b"[": b"]", b"{": b"}"}


def find_array(start: bytes) -> tuple[int | None, str]:
    """Finds the array of rows by the beginning of a file.

    Returns (the offset of its opening bracket, or None if the file has objects instead; the key of the array, or "").
    """
    skipped = len(start) - len(start.removeprefix(BYTE_ORDER_MARK).lstrip())
    first_line, _, others = start[skipped:].partition(NEWLINE)
    if start[skipped:skipped + 1] == b"[":
        is_array, key = True, ""
    elif start[skipped:skipped + 1] == b"{":
        key, offset = _find_wrapped(start[skipped:])
        is_array, skipped = bool(key), skipped + offset
    else:
        return None, ""
    if is_array and not (others.strip() and is_json(first_line)):  # otherwise each line is a value of its own
        return skipped, key
    return None, ""


def _find_wrapped(start: bytes) -> tuple[str, int]:
    """Returns (the first key of an object that holds a list of rows, the offset of this list), or ("", 0)."""
    text = start.decode("latin-1")  # one character per byte, so that offsets stay the same
    try:
        for name, at in _members(text, 1):
            if name in FORM_FIELDS:
                break
            objects = _OPENS_OBJECTS.match(text, at)
            if objects:
                is_wrapper = name in WRAPPERS or _begins_with_conversation(text, objects.end())
                return (name, at) if is_wrapper else ("", 0)
    except (ValueError, RecursionError):  # broken, or longer than `start`: not a wrapper
        pass
    return "", 0


def _members(text: str, position: int) -> Iterator[tuple[str, int]]:
    """Yields (key, offset of its value) for the members of an object, from a position before a key.

    Raises:
        ValueError: if the text is broken or ends.
    """
    while key := _KEY.match(text, position):
        yield json.loads(key[1].encode("latin-1")), key.end()
        _, position = _DECODER.raw_decode(text, key.end())
        comma = _COMMA.match(text, position)
        if not comma:
            return
        position = comma.end()


def holds_rows(start: bytes) -> bool:
    """Tells whether a file begins with JSON that holds a row, whatever the file is called."""
    text = start.removeprefix(BYTE_ORDER_MARK).lstrip(b"[ \t\r\n").decode("latin-1")
    try:
        return text.startswith("{") and any(name in FORM_FIELDS for name, _ in _members(text, 1))
    except (ValueError, RecursionError):
        return False


def _begins_with_conversation(text: str, position: int) -> bool:
    row, _ = _DECODER.raw_decode(text, position)
    return not FORM_FIELDS.isdisjoint(row.keys() - {"text"})


def array_rows(file: IO[bytes], path: Path, line: int, key: str) -> Iterator[RawRow]:
    """Yields the elements of an array unparsed, then an error if something is wrong after the array.

    Args:
        file: read up to and including the opening bracket.
        line: the line of this bracket.
        key: the array's key in the object around it; "" if the array is the whole file.
    """
    rows = line_before = size = 0
    closers, content = bytearray(b"]"), bytearray()  # one closer for each open bracket
    structure = _structure(file)
    for before, mark in structure:
        content += before
        size += len(before) + len(mark)
        if mark in _CLOSER:
            closers += _CLOSER[mark]
        elif mark and mark[0] == closers[-1]:
            closers.pop()
        elif mark in (b"]", b"}") and len(closers) == 1:  # inside a row the parser reports it
            raise UserError(f"{path}:{line}: expected , or ] after a row of the array, found {mark.decode()}")
        if size > MAX_ROW_BYTES:
            raise UserError(f"{path}:{line}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row of the array")
        if mark and closers and not (mark == b"," and len(closers) == 1):
            content += mark
            continue
        element = bytes(content)
        content.clear()
        begins = line + _lead(element).count(NEWLINE)
        place = _place(path, begins, line_before, rows)
        line += element.count(NEWLINE)
        if not mark:
            yield RawRow(place, UserError(f"{place}: the file ends in the middle of this row"))
            return
        if element.strip() or rows or mark == b",":
            yield RawRow(place, element.strip())
            rows, line_before = rows + 1, begins
        if not closers:
            break
        size = 0
    rest = _rest(structure)
    begins = line + _lead(rest).count(NEWLINE)
    place = _place(path, begins, line_before, rows)
    problem = _problem_after(rest, place, key)
    if problem:
        yield RawRow(place, UserError(f"{place}: {problem}"))


def _place(path: Path, line: int, line_before: int, rows: int) -> str:
    return f"{path}:{line}" + (f" (row {rows + 1})" if line == line_before else "")


def _rest(structure: Iterator[tuple[bytes, bytes]]) -> bytes:
    """Reads the text after an array: all of it, or at least `START_BYTES`."""
    rest, size = [], 0
    for before, mark in structure:
        rest += [before, mark]
        size += len(before) + len(mark)
        if size > START_BYTES:
            break
    return b"".join(rest)


def _problem_after(rest: bytes, place: str, key: str) -> str:
    """Says what is wrong with the text after an array; returns "" if nothing is.

    Raises:
        UserError: if the object around the array holds other rows too: half of the data must not count as all of it.
    """
    if not key:
        return "expected nothing after the array" if rest.strip() else ""
    text = rest.decode("latin-1")
    comma = _COMMA.match(text)
    try:
        for name, at in _members(text, comma.end()) if comma else ():
            if name in FORM_FIELDS or _OPENS_OBJECTS.match(text, at):
                raise UserError(f"{place}: expected one list of rows in the object, found {key} and {name}; write each "
                                "to a file of its own")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        pass  # reported below
    if is_json(b'{"":0' + rest):
        return ""
    if len(rest) > START_BYTES:
        return f"expected little after the rows under {key}, found more than {START_BYTES // 2**20} MiB"
    return f"the object around {key} has no end, or goes on after it (was the file cut off?)"


def _structure(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Splits JSON at each `[ ] { } ,` outside strings; yields (the text before it, it), at last (the rest, b"")."""
    buffer, start, position = b"", 0, 0
    while True:
        token = _TOKEN.search(buffer, position)
        if token is None or token[1] in (b"", b"\\"):
            block = file.read(max(BLOCK_BYTES, len(buffer) - start))
            if not block:
                yield buffer[start:], b""
                return
            if len(buffer) - start > MAX_ROW_BYTES:  # longer than any row may be
                yield buffer[start:], b""
                return
            position = (len(buffer) if token is None else token.start()) - start
            buffer, start = buffer[start:] + block, 0
        elif token[0].startswith(b'"'):
            position = token.end()
        else:
            yield buffer[start:token.start()], token[0]
            start = position = token.end()


def _lead(content: bytes) -> bytes:
    return content[:len(content) - len(content.lstrip())]
