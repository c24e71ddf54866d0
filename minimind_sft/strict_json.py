"""Parses JSON as the standard defines it, within limits that keep memory and recursion bounded."""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from minimind_sft.errors import MAX_SHOWN, UserError, printable

MAX_DEPTH = 100
"""Levels of nested lists and objects: far beyond what files need, and far below the recursion limit."""
MAX_VALUES = 4_000_000
"""Values in one text: those of the largest tokenizers are half as many, and so many small ones take 500 MB."""
MAX_DIGITS = 308
"""Digits of a whole number: a longer one is beyond the largest floating-point number."""
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def parse_json(text: str, place: str, expected: str = "JSON", max_values: int = MAX_VALUES) -> Any:
    """Parses JSON: no name twice in an object, no NaN, no infinite number, no half of a surrogate pair.

    Raises:
        UserError: `place: expected <expected>, found ...`
    """
    try:
        if has_more_values(text, max_values):
            raise ValueError(f"expected at most {max_values:,} values in the JSON")
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        hint = ("; is it a Python literal? json.dumps writes JSON"
                if text[error.pos:error.pos + 1] == "'" and "double quotes" in error.msg else "")
        line = f"line {_line_of(place) + error.lineno - 1}, " if error.lineno > 1 else ""
        raise UserError(f"{place}: expected {expected}, found broken JSON at {line}column {error.colno}: "
                        f"{error.msg}{hint}") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{place}: a string holds {half}, half of a surrogate pair, which is not a "
                        "character") from error
    except RecursionError:
        raise UserError(f"{place}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise UserError(f"{place}: the JSON is nested too deeply")
    return value


def has_more_values(text: str, limit: int) -> bool:
    """Tells whether JSON holds more than `limit` values, without parsing it."""
    return _marks(text) > limit and _marks(_STRING.sub("", text)) > limit


def _marks(text: str) -> int:
    """Returns an upper limit of the number of values."""
    return text.count(",") + text.count("[") + text.count("{")


def _line_of(place: str) -> int:
    """Returns the line of a row's place; 1 for a place that is not a row."""
    row = re.search(r":(\d+)(?: \(row \d+\))?$", place)
    return int(row[1]) if row else 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """
    Raises:
        ValueError: if a name is there twice; readers disagree about which of the two counts.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{printable(twice[:MAX_SHOWN])} is there twice")
    return found


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:MAX_SHOWN]}... is too large a number")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:MAX_SHOWN]} is too large a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_finite,
                            parse_constant=_refuse_constant)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, list | dict)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth
