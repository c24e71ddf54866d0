"""Files become rows, each with the place it stands at.

A row that cannot be read is an error of its own, at its own place: whoever goes through a file decides whether that
ends the reading or is counted. What concerns the file as a whole (it is not there, it is no gzip) ends it always.
"""

import glob
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from minimind_sft.data.parquet import parquet_rows
from minimind_sft.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 100
"""Of lists and objects in one another: far beyond what data needs, and far below what recursion bears."""
MAX_ROW_BYTES = 32 * 2**20
"""Of one row: no conversation is as long, and a file without line ends is not to fill the memory."""
BLOCK_BYTES = 2**20
NEWLINE = b"\n"
TORN = " (the row has no end: was the file cut off?)"

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".txt.gz")


class RawRow(NamedTuple):
    """A row as it stands in its file: JSON text, or a value that is parsed already, or why it cannot be read."""

    place: str
    content: bytes | dict | UserError


def find_files(patterns: Sequence[str | Path]) -> list[Path]:
    """The files that names and globs stand for, in the order given (globs sorted), each once.

    Raises:
        UserError: naming what does not exist, is no regular file, or has a suffix that is not known.
    """
    files: dict[Path, Path] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        found = [path] if exists(path) else _matching(pattern)
        if not found:
            kind = "no file matches it" if glob.has_magic(pattern) else "no such file"
            raise UserError(f"{pattern}: {kind}")
        for path in found:
            files.setdefault(path.resolve(), path)
    for path in files.values():
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{str(path)!r}: expected a name that is valid UTF-8; files are to hold it") from error
        if path.is_dir():
            raise UserError(f"{path}: expected a file, found a folder ({path}/*.jsonl names the files in it)")
        if not path.is_file():
            raise UserError(f"{path}: expected a regular file; it is read more than once")
        file_kind(path)
    return list(files.values())


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

    By suffix: `.jsonl` has one JSON object a line, `.json` an array of objects (or lines, as many files of that name
    do), `.txt` a text a line, `.parquet` a row a row (needs pyarrow); the first three also compressed, `.gz`.

    Raises:
        UserError: if the file cannot be read.
    """
    kind = file_kind(path).removesuffix(".gz")
    if kind == "parquet":
        yield from map(RawRow._make, parquet_rows(path))
        return
    with _opened(path) as file:
        if kind == "json" and _starts_array(file):
            yield from _array_rows(file, path)
        elif kind == "txt":
            yield from map(_text_row, _line_rows(file, path))
        else:
            yield from _line_rows(file, path)


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
        with _opened(path) as file:
            yield from map(_text, _lines(file, path))
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
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{place}: expected {expected}, found broken JSON at {line}column {error.colno}: "
                        f"{error.msg}") from error
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


def describe(value: Any) -> str:
    """A value of a row, short enough for an error message: its kind, and itself where that helps."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."


def file_kind(path: Path) -> str:
    """What decides how a file is read, besides its bytes: `jsonl`, `jsonl.gz`, ...

    Raises:
        UserError: for a name that says nothing.
    """
    name = path.name.lower()
    found = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if found is None:
        raise UserError(f"{path}: expected a file named *{', *'.join(SUFFIXES)}")
    return found[1:]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed; what goes wrong while they are read is a `UserError`."""
    try:
        with (gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")) as file:
            yield file
    except EOFError as error:
        raise UserError(f"{path}: the compressed file ends in the middle") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a gzip file, or a damaged one ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Every line with its line end."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        place = f"{path}:{number}"
        too_long = len(line) > MAX_ROW_BYTES
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if too_long:
            length = len(line)
            while not line.endswith(NEWLINE) and (line := file.readline(BLOCK_BYTES)):
                length += len(line)
            yield RawRow(place, UserError(f"{place}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row, found "
                                          f"{length / 2**20:.0f} MiB"))
        else:
            yield RawRow(place, line)


def _line_rows(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """The lines that are not blank."""
    return (raw for raw in _lines(file, path) if isinstance(raw.content, UserError) or raw.content.strip())


def _text_row(raw: RawRow) -> RawRow:
    try:
        return raw._replace(content={"text": _text(raw).rstrip("\r\n")})
    except UserError as error:
        return raw._replace(content=error)


def _text(raw: RawRow) -> str:
    if isinstance(raw.content, UserError):
        raise raw.content
    return _decode(raw.content, raw.place)


def _starts_array(file: IO[bytes]) -> bool:
    start = file.read(BLOCK_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    file.seek(0)
    return start.startswith(b"[")


# A string (to its end, or to the end of what was read so far), or what opens, closes or separates.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)|[\[\]{},]', re.DOTALL)
CLOSER = {b"[": b"]", b"{": b"}"}


def _array_rows(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """The elements of a JSON array, cut out without being parsed, so that each can be wrong for itself."""
    line, rows, line_before = 1, 0, 0
    closers: list[bytes] = []  # of what is open
    is_over = False
    pieces: list[bytes] = []
    size = 0
    for before, mark in _structure(file, path):
        pieces.append(before)
        size += len(before) + len(mark)
        if mark in CLOSER:
            closers.append(CLOSER[mark])
        elif closers and mark == closers[-1]:
            closers.pop()
        elif mark in (b"]", b"}") and len(closers) == 1:  # inside a row its JSON tells
            raise UserError(f"{path}:{line}: expected , or ] after a row of the array, found {mark.decode()}")
        depth = len(closers)
        if size > MAX_ROW_BYTES:
            raise UserError(f"{path}:{line}: expected at most {MAX_ROW_BYTES // 2**20} MiB in a row of the array")
        if not ((depth == 1 and mark in (b"[", b",")) or depth <= 0 or mark == b""):
            pieces.append(mark)
            continue
        content = b"".join(pieces)
        stripped = content.strip()
        begins = line + _lead(content).count(NEWLINE)
        place = f"{path}:{begins}" + (f" (row {rows + 1})" if begins == line_before else "")
        line += content.count(NEWLINE)
        pieces.clear()
        size = 0
        if mark == b"[" and rows == 0 and not stripped.removeprefix(BYTE_ORDER_MARK):
            continue
        if mark == b"":
            problem = "expected nothing after the array" if is_over else "the file ends in the middle of this row"
            if stripped or not is_over:
                yield RawRow(place, UserError(f"{place}: {problem}"))
        elif is_over:
            yield RawRow(place, UserError(f"{place}: expected nothing after the array"))
            return
        elif stripped or rows or mark == b",":
            yield RawRow(place, stripped)
            rows, line_before = rows + 1, begins
        is_over = is_over or depth == 0


def _structure(file: IO[bytes], path: Path) -> Iterator[tuple[bytes, bytes]]:
    """JSON cut at each `[ ] { } ,` outside of strings: (what stands before it, itself), at last (the rest, b"")."""
    buffer, start, position = b"", 0, 0
    while True:
        token = _TOKEN.search(buffer, position)
        if token is None or token[1] in (b"", b"\\"):
            block = file.read(max(BLOCK_BYTES, len(buffer) - start))
            if not block:
                yield buffer[start:], b""
                return
            if len(buffer) - start > MAX_ROW_BYTES:  # no caller would keep a row with such a string
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


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        hint = " (UTF-16, by its look)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
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
