"""Everything that the programs print: made harmless, and fitted to the terminal.

Text from data, models and file names may hold escape sequences. `say` and its companions are the only functions that
write to standard output and error, and they escape such characters.
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, TextIO

from tqdm import tqdm

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb"
                     "\U000e0000-\U000e007f]")
"""Characters that move the cursor, change the terminal, reverse the direction of text, or hide it; a line feed is not
among them."""
ANSI = re.compile("\x1b\\[[0-9;]*m")
DUMB_TERMINALS = ("", "dumb", "unknown")
LABEL = re.compile(r" *(?:\[rank \d+\] )?(?:error: |step +\d+/\d+: |\S.{0,18}? {2,})?")
"""The beginning of a line before its text: `model       `, `step     10/60: `, `error: `, or an indent."""
WIDE = ("\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
        "\U0001f300-\U0003fffd")
CLOSING = "、。，．：；？！）】》」』〉”’"
PIECE = re.compile(rf"\s+|[{WIDE}][{CLOSING}]*|[^\s{WIDE}]+[{CLOSING}]*")
"""A line may break between two of these: at blanks and beside Chinese characters, but not before closing
punctuation."""
COMMAND = re.compile(r"\s+|(?:--\S+ (?!--))?(?:'[^']*'|[^\s'])+")
"""A command may break between two of these: not between a flag and its value, and not inside quotes."""
SHELL_CONTINUES = " \\"
MIN_INDENT = "  "
RATE_A_SECOND = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
"""tqdm's own bar, but with 0.61 questions/s where tqdm writes 1.65s/ questions."""


def columns(text: str) -> int:
    """Returns the columns of `text` in a terminal: two for a Chinese character, none for an accent or a colour."""
    return sum(0 if unicodedata.category(character) in ("Mn", "Me", "Cf")
               else 2 if unicodedata.east_asian_width(character) in "WF" else 1
               for character in ANSI.sub("", text))


def wrap(line: str, width: int) -> str:
    """Breaks a line longer than `width` columns; further lines are indented to the text, after the label.

    A word that is still too long, such as a path, gets a line of its own with less indent and is never cut, so that it
    can be copied. A command breaks where a shell allows it.
    """
    if columns(line) <= width:
        return line
    found = LABEL.match(line)
    label = found[0] if found else ""
    indent = " " * columns(label) if 2 * columns(label) <= width else MIN_INDENT
    text = line[len(label):]
    pieces, broken = (COMMAND, SHELL_CONTINUES) if ANSI.sub("", text).startswith("python ") else (PIECE, "")
    room = width - len(broken)
    lines, current = [], label
    for piece in pieces.findall(text):
        word = piece.strip()
        moves = current != label or columns(MIN_INDENT + word) <= room
        if current.strip() and moves and columns(current + word) > room:
            lines.append(current.rstrip() + broken * (current != label))
            current = indent if columns(indent + word) <= room else MIN_INDENT
            piece = piece.lstrip()
        current += piece
    return "\n".join([*lines, current.rstrip()])


def counted(count: int, what: str) -> str:
    """Returns a number and a noun, such as "1 row" or "2,000 rows"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Returns the rows of a table as lines, with two blanks between columns; cells become harmless.

    Args:
        numbers: indices of the columns that are aligned on the right.
    """
    rows = [list(map(in_one_line, cells)) for cells in rows]
    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(" " * (width - columns(cell)) + cell if index in numbers else
                      cell + " " * (width - columns(cell))
                      for index, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows]


def width_of(stream: TextIO) -> int | None:
    """Returns the columns of the terminal behind `stream`; None if it is not a terminal or has no known size."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def fitted(text: str, stream: TextIO) -> str:
    """Wraps the long lines of `text` if `stream` is a terminal; a file or pipe gets the text unchanged."""
    width = width_of(stream)
    return "\n".join(wrap(line, width) for line in text.split("\n")) if width else text


def can_colour() -> bool:
    """Says whether standard output is a terminal that shows colours, and the user wants them."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return False
    if sys.platform == "win32":
        return "WT_SESSION" in os.environ  # older consoles print the codes
    return os.environ.get("TERM", "").lower() not in DUMB_TERMINALS


def harmless(text: str) -> str:
    """Escapes characters that would move a terminal's cursor or reverse its text: data may contain them."""
    return CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def in_one_line(text: str) -> str:
    """Makes text harmless that stands inside a line, such as a name from the data: line feeds are escaped as well."""
    return harmless(text).replace("\n", "\\n")


def painted(code: str, text: str) -> str:
    """Returns harmless text between an ANSI colour code and its end, for `say_painted`."""
    return f"\x1b[{code}m{harmless(text)}\x1b[0m"


def say_all(label: str, lines: Iterable[str]) -> None:
    """Prints lines, each behind the label of what it is about."""
    for line in lines:
        say(f"{label:<12}{line}")


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints lines, harmless and wrapped to fit the terminal, above a progress bar if there is one.

    Args:
        stream: standard output if None.
    """
    stream = stream or sys.stdout
    if stream is not None:  # as under pythonw.exe
        _write_lines(fitted(harmless(line), stream), stream)


def say_painted(text: str) -> None:
    """Prints lines like `say` to standard output, and lets their colours through, which `painted` has put there."""
    codes = ANSI.findall(text)
    parts = [harmless(part) for part in ANSI.split(text)]
    whole = "".join(part + code for part, code in zip(parts, [*codes, ""], strict=True))
    _write_lines(fitted(whole, sys.stdout), sys.stdout)


def say_json(value: Any) -> None:
    """Prints a value as JSON that another program can read: nothing is wrapped."""
    _write_lines(harmless(json.dumps(value, indent=1)), sys.stdout)  # an escaped character is the same in JSON


def say_piece(text: str, code: str = "") -> None:
    """Prints a piece of text that goes on, such as a token of an answer: harmless, but with its tabs.

    Args:
        code: the ANSI code of its colour.
    """
    shown = "\t".join(map(harmless, text.split("\t")))
    _write(f"\x1b[{code}m{shown}\x1b[0m" if code and shown else shown, sys.stdout)
    sys.stdout.flush()


def say_from_thread(line: str) -> None:
    """Prints a line to standard error, below a progress bar and past Python's buffers: another thread may use them."""
    below_the_bar = "\n" if sys.stderr.isatty() else ""
    os.write(sys.stderr.fileno(), f"{below_the_bar}{fitted(harmless(line), sys.stderr)}\n".encode(errors="replace"))


def progress_bar(items: Iterable | None = None, *, label: str, **options: Any) -> tqdm:
    """Returns tqdm's bar, which shows only at a terminal and goes when it ends.

    Args:
        options: of tqdm; `leave` and `disable` change what is said above.
    """
    bar = tqdm(items, desc=harmless(label), **{"leave": False, "disable": None, **options})
    if bar.total and "bar_format" not in options:
        bar.bar_format = RATE_A_SECOND
    return bar


def _write_lines(text: str, stream: TextIO) -> None:
    has_bars = bool(getattr(tqdm, "_instances", ()))
    with tqdm.external_write_mode(file=stream) if has_bars else nullcontext():
        _write(f"{text}\n", stream)
        stream.flush()


def _write(text: str, stream: Any) -> None:
    """Writes text that is harmless already, past the stream's own escaping (`output.prepare_output`)."""
    getattr(stream, "write_harmless", stream.write)(text)
