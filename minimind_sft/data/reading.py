"""Files become rows, each with the place it stands at.

A row that cannot be read is an error of its own, at its own place: whoever goes through a file decides whether that
ends the reading or is counted. What concerns the file as a whole (it is not there, it is no gzip) ends it always.
"""

import glob
import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from minimind_sft.data.arrow import arrow_rows, saved_dataset_files
from minimind_sft.data.compression import NAMES, opened
from minimind_sft.data.json_rows import json_rows
from minimind_sft.data.lines import RawRow, lines
from minimind_sft.data.recognition import looks_like_gb18030, refuse_foreign
from minimind_sft.data.tables import table_rows
from minimind_sft.errors import UserError, describe

MAX_DEPTH = 100
"""Of lists and objects in one another: far beyond what data needs, and far below what recursion bears."""
TORN = " (the row has no end: was the file cut off?)"

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
"""Of files that may also be compressed."""
OTHER_SUFFIXES = (".parquet", ".arrow")
FILES_LOOKED_AT = 1000
"""Of a folder that is named instead of its files."""


def find_files(patterns: Sequence[str | Path], flag: str = "") -> list[Path]:
    """The files that names and globs stand for, in the order given (globs sorted), each once.

    Raises:
        UserError: naming the flag, if it is given, and what does not exist, is no regular file, or has a suffix that is
            not known.
    """
    files: dict[Path, Path] = {}
    try:
        for path in (path for pattern in patterns for path in _found(str(pattern))):
            files.setdefault(path.resolve(), path)
        return [_checked(path) for path in files.values()]
    except UserError as error:
        raise UserError(f"{flag} {error}" if flag else str(error)) from error


def _found(pattern: str) -> list[Path]:
    """The files that a name or glob stands for; a folder written by `datasets.save_to_disk` stands for its own."""
    path = Path(pattern)
    paths = [path] if exists(path) else _matching(pattern)
    if not paths:
        kind = "no file matches it" if glob.has_magic(pattern) else "no such file"
        raise UserError(f"{pattern}: {kind}")
    return [file for path in paths for file in saved_dataset_files(path) or [path]]


def _checked(path: Path) -> Path:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r}: expected a name that is valid UTF-8; files are to hold it") from error
    if path.is_dir():
        raise UserError(f"{path}: expected a file, found a folder ({_pattern_in(path)} names the files in it)")
    if not path.is_file():
        raise UserError(f"{path}: expected a regular file; it is read more than once")
    file_kind(path)
    return path


def _pattern_in(folder: Path) -> str:
    """A glob for the files of data in a folder or right below it: those like the largest of the first few."""
    try:
        paths = islice(chain(folder.iterdir(), folder.glob("*/*")), FILES_LOOKED_AT)
        sizes = {path: path.stat().st_size for path in sorted(paths) if _kind(path) and path.is_file()}
    except OSError:
        sizes = {}
    largest = max(sizes, key=lambda path: sizes[path], default=folder / ".jsonl")
    return f"{largest.parent}/*.{_kind(largest)}"


def exists(path: Path) -> bool:
    """
    Raises:
        UserError: if the folders on the way do not let us see.
    """
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"{str(path)[:200]}: cannot be read ({error.strerror})") from error


def _matching(pattern: str) -> list[Path]:
    return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - a pattern may begin with /


def read_rows(path: str | Path) -> Iterator[tuple[str, dict]]:
    """The rows of a file with their places: `("sft.jsonl:3", {...})`.

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
    """The rows of one file, unparsed. Blank lines are no rows.

    The suffix says whether it is JSON (in any layout, `json_rows`), a table (`.csv`, `.tsv`, `.parquet`, `.arrow`; a
    record a row) or text (`.txt`; a line a row), and whether it is compressed.

    Raises:
        UserError: if the file cannot be read, or is something else than its name says.
    """
    kind = file_kind(path).partition(".")[0]
    refuse_foreign(path)
    if kind in ("parquet", "arrow"):
        yield from arrow_rows(path, kind)
    elif kind in ("csv", "tsv"):
        yield from table_rows(path, kind)
    elif kind == "txt":
        with opened(path) as file:
            yield from (_text_row(raw) for raw in lines(file, path) if not _is_blank(raw))
    else:
        yield from json_rows(path)


def parse_raw_row(raw: RawRow) -> dict:
    """The JSON object that a row is.

    Raises:
        UserError: at the row's place, if it is not one JSON object of valid text.
    """
    place, content = raw
    if isinstance(content, UserError):
        raise content
    if isinstance(content, dict):
        return content
    text = _decode(content, place)
    try:
        row = parse_json(text.rstrip("\r\n"), place, "one JSON object per row")
    except UserError as error:
        # Lines come with their end, elements of an array without: those that are torn are known already.
        torn = "" if text.endswith("\n") or not text.startswith("{") or text.endswith("}") else TORN
        raise UserError(f"{error}{torn}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected one JSON object per row, found {describe(row)}")
    return row


def read_texts(path: str | Path) -> Iterator[str]:
    """The running text of a file: the lines of a .txt with their line ends, every string value of other rows.

    Raises:
        UserError: as `read_rows`.
    """
    path = Path(path)
    if file_kind(path).startswith("txt"):
        refuse_foreign(path)
        with opened(path) as file:
            yield from map(_text, lines(file, path))
        return
    for raw in read_raw_rows(path):
        yield from _strings(parse_raw_row(raw))


def parse_json(text: str, place: str, expected: str) -> Any:
    """`json.loads` whose every failure is a `UserError` at `place`; strings with half a character are refused."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        hint = ("; is it Python's way of writing? json.dumps writes JSON"
                if text[error.pos:error.pos + 1] == "'" and "double quotes" in error.msg else "")
        line = f"line {_first_line(place) + error.lineno - 1}, " if error.lineno > 1 else ""
        raise UserError(f"{place}: expected {expected}, found broken JSON at {line}column {error.colno}: "
                        f"{error.msg}{hint}") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{place}: a string holds {half}, half of a surrogate pair, which is no character") from error
    except RecursionError:
        raise UserError(f"{place}: the JSON is nested too deeply") from None
    except ValueError as error:  # NaN, or an integer of more digits than Python converts
        raise UserError(f"{place}: {error}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise UserError(f"{place}: the JSON is nested too deeply")
    return value


def _first_line(place: str) -> int:
    """The line that a row begins at, by its place; 1 for a place that is no row."""
    row = re.search(r":(\d+)(?: \(row \d+\))?$", place)
    return int(row[1]) if row else 1


def file_kind(path: Path) -> str:
    """What decides how a file is read, besides its bytes: `jsonl`, `jsonl.gz`, ...

    Raises:
        UserError: for a name that says nothing.
    """
    kind = _kind(path)
    if kind is None:
        raise UserError(f"{path}: expected a file named *{', *'.join(TEXT_SUFFIXES)} (also with "
                        f"{', '.join(NAMES)} after it), *{' or *'.join(OTHER_SUFFIXES)}")
    return kind


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    plain = next((name.removesuffix(suffix) for suffix in NAMES if name.endswith(suffix)), name)
    found = next((suffix for suffix in TEXT_SUFFIXES if plain.endswith(suffix)), None)
    if found:
        return found[1:] + name.removeprefix(plain)
    return next((suffix[1:] for suffix in OTHER_SUFFIXES if name.endswith(suffix)), None)


def _is_blank(raw: RawRow) -> bool:
    return isinstance(raw.content, bytes) and not raw.content.strip()


def _text_row(raw: RawRow) -> RawRow:
    try:
        return raw._replace(content={"text": _text(raw).rstrip("\r\n")})
    except UserError as error:
        return raw._replace(content=error)


def _text(raw: RawRow) -> str:
    if isinstance(raw.content, UserError):
        raise raw.content
    return _decode(raw.content, raw.place)


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        hint = " (GB18030, by the look of it)" if looks_like_gb18030(raw) else ""
        raise UserError(f"{place}: not valid UTF-8: byte {error.start + 1} of the row is "
                        f"0x{raw[error.start]:02x}{hint}") from error


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


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
