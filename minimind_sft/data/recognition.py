"""Recognises files whose content is not what their names say; the error names the content and a remedy."""

import os
import re
import shlex
from codecs import getincrementaldecoder
from pathlib import Path

from minimind_sft.data.json_arrays import START_BYTES, holds_rows
from minimind_sft.data.lines import UNPACKERS, opened
from minimind_sft.errors import UserError
from minimind_sft.files import LFS_POINTER, open_regular, refuse_lfs_pointer

IS_WINDOWS = os.name == "nt"
JSON_KINDS = ("jsonl", "ndjson", "json")

SIGNATURES: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind, remedy) for pattern, kind, remedy in (
        (rb"\x1f\x8b\x08", ".gz", "gzip data; rename the file so that it ends in .gz"),
        (rb"BZh[1-9]1AY&SY", ".bz2", "bzip2 data; rename the file so that it ends in .bz2"),
        (rb"\xfd7zXZ\0", ".xz", "xz data; rename the file so that it ends in .xz"),
        (rb"\x28\xb5\x2f\xfd", ".zst", "zstd data; rename the file so that it ends in .zst"),
        (rb"PAR1[\x10-\x1f]", ".parquet", "a Parquet file; rename it so that it ends in .parquet"),
        (rb"ARROW1\0\0", ".arrow", "an Arrow file; rename it so that it ends in .arrow"),
        (rb"PK\x03\x04", "", "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "", "an archive; unpack it and name the files in it"),
        (rb".{257}ustar", "", "a tar archive; unpack it and name the files in it"),
        (rb"%PDF-", "", "a PDF document; save its text"),
        (rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html)", "",
         "a web page; download the file itself (a page that shows a file is not the file)"),
    ))
"""(beginning of a file that is not text, the suffix under which it is data, the end of the message about it)."""

_JSON_LINE = re.compile(rb'^(?:\xef\xbb\xbf)?[ \t]*[\[\]{}"]', re.MULTILINE)
"""The beginning of a line of JSON; even a torn file of JSON has one."""
COMMON_CHARACTERS = set("的一是不了在人有我他这个们中来上大为和国到说要就会可你您好请问什么吗")
"""Chinese text has several of these in every ten characters, other text decoded as Chinese hardly any."""


def read_start(path: Path, kind: str) -> bytes:
    """Reads the first `START_BYTES` of a file, unpacked, and refuses content that is not what the file's name says.

    Args:
        kind: as `reading.file_kind`.

    Raises:
        UserError: saying what the file is and what helps, or if it cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(START_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    looks_like_json = kind in JSON_KINDS and start[:1] in (b"{", b"[") and b"\0" not in start
    if looks_like_json and (start.isascii() or _is_text(start, "UTF-8")):
        return start  # as most files: no foreign signature, no other encoding
    return _checked(path, kind, start)


def _checked(path: Path, kind: str, start: bytes) -> bytes:
    """Returns the first bytes of a file unpacked, given those of the file itself.

    Raises:
        UserError: as `read_start`.
    """
    if start.startswith(LFS_POINTER):
        refuse_lfs_pointer(path)
    _refuse_signature(path, start)
    kind, _, compression = kind.partition(".")
    if compression:
        if start and b"\0" not in start[:1024] and _is_text(start[:1024], "UTF-8"):
            raise UserError(f"{path}: the content is not compressed; rename the file, without {path.suffix}")
        with opened(path) as file:
            start = file.read(START_BYTES)
        _refuse_signature(path, start)
    encoding = "" if kind in ("parquet", "arrow") else _encoding(start)
    if encoding:
        raise UserError(f"{path}: expected UTF-8, found what looks like {encoding}; to convert the file: "
                        f"{conversion(path, encoding)}")
    if kind in ("txt", "csv", "tsv") and holds_rows(start):
        raise UserError(f"{path}: the content is rows in JSON; rename the file, .{kind} to .jsonl")
    if kind in JSON_KINDS and start.strip() and _is_text(start, "UTF-8") and not _JSON_LINE.search(start):
        raise UserError(f"{path}: expected JSON, found text; running text has the suffix .txt, a table .csv or .tsv")
    return start


def _refuse_signature(path: Path, start: bytes) -> None:
    for pattern, suffix, what in SIGNATURES:
        if pattern.match(start[:1024]) and path.suffix.lower() != (suffix or None):
            raise UserError(f"{path}: the content is {what}")


def _encoding(start: bytes) -> str:
    """Guesses the encoding of text that is not UTF-8; returns "" for UTF-8 and if a guess would not be safe."""
    for encoding, marks in (("UTF-32", (b"\xff\xfe\0\0", b"\0\0\xfe\xff")), ("UTF-16", (b"\xff\xfe", b"\xfe\xff"))):
        if start.startswith(marks) and _is_text(start, encoding):
            return encoding
    even, odd = (start[side:2000:2].count(0) for side in (0, 1))
    if max(even, odd) > max(len(start[:2000]) // 10, 3, 4 * min(even, odd)):
        return "UTF-16LE" if odd > even else "UTF-16BE"
    if _is_text(start, "UTF-8"):
        return ""
    lines = [line for line in start.splitlines() if not line.isascii()]
    valid = sum(_is_text(line, "UTF-8") for line in lines)
    return "GB18030" if valid <= len(lines) // 10 and looks_like_gb18030(start) else ""


def _is_text(text: bytes, encoding: str) -> bool:
    try:
        getincrementaldecoder(encoding)().decode(text)  # incremental, as the text may end inside a character
    except UnicodeDecodeError:
        return False
    return True


def looks_like_gb18030(text: bytes) -> bool:
    """Tells whether bytes are Chinese text in GB18030: nearly all of it common characters and punctuation."""
    try:
        decoded = getincrementaldecoder("gb18030")().decode(text)
    except UnicodeDecodeError:
        return False
    characters = [character for character in decoded if not character.isascii()]
    common = sum(map(_is_in_gb2312, characters))
    return (common >= 0.95 * len(characters)
            and sum(character in COMMON_CHARACTERS for character in characters) > 0.05 * len(characters))


def _is_in_gb2312(character: str) -> bool:
    """Tells whether it is punctuation, a full-width letter or one of the 3,755 most frequent Chinese characters."""
    code = character.encode("gb18030")
    return len(code) == 2 and (0xB0 <= code[0] <= 0xD7 or code[0] in (0xA1, 0xA3)) and code[1] >= 0xA1


def conversion(path: Path, encoding: str) -> str:
    """Returns the command that writes a UTF-8 copy beside the file."""
    suffix = path.suffix.lower()
    unpack = UNPACKERS.get(suffix)
    plain = path.with_suffix("") if unpack else path
    out = plain.with_name(f"{plain.stem}.utf8{plain.suffix}")
    if IS_WINDOWS and not unpack:
        return (f"python -c \"from pathlib import Path; Path({out.as_posix()!r}).write_bytes("
                f"Path({path.as_posix()!r}).read_bytes().decode({encoding!r}).encode())\"")
    source, target = shlex.quote(str(path)), shlex.quote(str(out))
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"{unpack} -dc {source} | {convert} > {target}" if unpack else f"{convert} {source} > {target}"
