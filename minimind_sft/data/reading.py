"""Files become rows, each with the place it stands at."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 100
"""Of lists and objects in one another: far beyond what data needs, and far below what recursion bears."""


def read_rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """The rows of a JSONL file with their places: `("sft.jsonl:3", {...})`. Blank lines are no rows.

    Raises:
        UserError: naming file and line, if the file cannot be read, has no row, or a line is not one JSON object
            of valid text.
    """
    found = False
    for place, line in _read_lines(Path(path)):
        if line.isspace():
            continue
        row = parse_json(line.rstrip("\r\n"), place, "one JSON object per line")
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected one JSON object per line, found {describe(row)}")
        found = True
        yield place, row
    if not found:
        raise UserError(f"{path}: the file has no rows")


def read_texts(path: str | Path) -> Iterator[str]:
    """The running text of a file: the lines of a .txt, every string value inside a .json or .jsonl.

    Raises:
        UserError: as `read_rows`, and for another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from (line for _, line in _read_lines(path))
    elif suffix == ".jsonl":
        for place, line in _read_lines(path):
            if not line.isspace():
                yield from _strings(parse_json(line, place, "one JSON value per line"))
    elif suffix == ".json":
        text = "".join(line for _, line in _read_lines(path))
        yield from _strings(parse_json(text, str(path), "one JSON value"))
    else:
        raise UserError(f"{path}: expected a file named *.jsonl, *.json or *.txt")


def parse_json(text: str, place: str, expected: str) -> Any:
    """`json.loads` whose every failure is a `UserError` at `place`; strings with half a character are refused."""
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{place}: expected {expected}, found broken JSON at {line}column {error.colno}: "
                        f"{error.msg}") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{place}: a string holds {half}, half of a surrogate pair, which is no character") from error
    except RecursionError:
        raise UserError(f"{place}: the JSON is nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise UserError(f"{place}: {error}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise UserError(f"{place}: the JSON is nested too deeply")
    return value


def describe(value: Any) -> str:
    """A JSON value, short enough for an error message: its kind, and itself where that helps."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file with their endings, each with its place."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(BYTE_ORDER_MARK)
                yield f"{path}:{number}", _decode(raw, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not valid UTF-8: byte {error.start + 1} of the line is "
                        f"0x{raw[error.start]:02x}") from error


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, list | dict)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
