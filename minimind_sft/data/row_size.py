"""Measures rows, so that none takes more memory than the rest of the program."""

from typing import Any

from minimind_sft.data.lines import RawRow
from minimind_sft.errors import UserError

MAX_SMALL = 30
"""Characters of a number, a truth value or a date."""


def json_characters(value: Any) -> int:
    """Returns about how many characters a value takes as JSON, whatever it holds and however deep it is."""
    count, left = 0, [value]
    while left:
        part = left.pop()
        if isinstance(part, (str, bytes)):
            count += len(part) + 4
        elif isinstance(part, dict):
            count += 2
            for name in part:
                count += len(name) + 4 if isinstance(name, str) else MAX_SMALL
            left.extend(part.values())
        elif isinstance(part, (list, tuple)):
            count += 2 + 2 * len(part)
            left.extend(part)
        else:
            count += part.bit_length() // 3 + 2 if isinstance(part, int) else MAX_SMALL
    return count


def row_bytes(raw: RawRow) -> int:
    """Returns about how much memory an unparsed row takes, in bytes."""
    if isinstance(raw.content, bytes | UserError):
        return len(raw.content) if isinstance(raw.content, bytes) else len(str(raw.content))
    return json_characters(raw.content)
