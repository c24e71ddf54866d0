"""Fits lines to the terminal: counts columns and breaks long lines."""

import os
import re
import sys
import unicodedata
from collections.abc import Collection, Sequence
from typing import TextIO

ANSI = re.compile("\x1b\\[[0-9;]*m")
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


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Returns the rows of a table as lines, with two blanks between columns.

    Args:
        numbers: indices of the columns that are aligned on the right.
    """
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


def say(line: str) -> None:
    """Prints a line, wrapped to fit the terminal."""
    print(fitted(line, sys.stdout), flush=True)
