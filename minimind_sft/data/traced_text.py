"""Text that knows of each of its characters where it comes from.

An ordinary `str` is text of the data. Text of the template is a `TracedText`, and so is whatever an operation of this
module makes of it: each character of a result keeps the origin of the character that it is a copy of. All other
operations (C functions, filters, encoders) return an ordinary `str`, and an operation that the data steers, such as
`text.replace(data, '')`, does so too. So an origin can be lost, but text of the data never gains one.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, SupportsIndex

DATA, TEMPLATE, TAG = 0, 1, 2
"""Origins: the data, the template, and a tag that an assistant's message may spell."""

PLACEHOLDER = re.compile("%[s%]")


class TracedText(str):
    """Text with an origin for each character. It behaves as the same `str` without origins.

    Called, it makes an ordinary `str`, as code does that wants a result of its argument's type.
    """

    __slots__ = ("_origins",)
    _origins: bytes

    def __new__(cls, value: object = "") -> str:  # type: ignore[misc]
        return plain(value)

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return _traced(str.__add__(self, other), self._origins + origins_of(other))

    def __radd__(self, other: Any) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return _traced(str.__add__(other, self), origins_of(other) + self._origins)

    def __mul__(self, times: SupportsIndex) -> str:
        return _traced(str.__mul__(self, times), self._origins * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        result = str.__mod__(plain(self), values)
        shown = list(values) if isinstance(values, tuple) else [values]
        if not is_of_template(self) or len(PLACEHOLDER.findall(self.replace("%%", ""))) != len(shown):
            return result
        shown.reverse()
        parts: list[str] = []
        position = 0
        for found in PLACEHOLDER.finditer(self):
            parts += [self[position:found.start()], of_template("%") if found[0] == "%%" else str(shown.pop())]
            position = found.end()
        return _traced_as(result, [*parts, self[position:]])

    def __getitem__(self, at: Any) -> str:
        origins = self._origins[at]
        return _traced(str.__getitem__(self, at), origins if isinstance(at, slice) else bytes([origins]))

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def join(self, parts: Iterable[str]) -> str:
        """Joins; a separator between two texts of the data is data, too, as the data may decide how many there are."""
        parts = list(parts)
        text = str.join(self, parts)
        origins = list(map(origins_of, parts))
        joined = origins[:1]
        for before, after in pairwise(origins):
            joined += [self._origins if TEMPLATE in before or TEMPLATE in after else bytes(len(self)), after]
        return _traced(text, b"".join(joined))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Replaces; what takes the place of data is data."""
        result = str.replace(self, old, new, count)
        if not old or not is_of_template(old):
            return result
        parts, position = [], 0
        times = count.__index__()
        while times and (start := self.find(old, position)) >= 0:
            parts += [self[position:start], new if is_of_template(self[start:start + len(old)]) else plain(new)]
            position = start + len(old)
            times -= 1
        return _traced_as(result, [*parts, self[position:]])

    def strip(self, characters: str | None = None, /) -> str:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None, /) -> str:
        result = str.lstrip(self, characters)
        if len(result) == len(self):
            return self
        return self[len(self) - len(result):] if _steers_nothing(characters) else result

    def rstrip(self, characters: str | None = None, /) -> str:
        result = str.rstrip(self, characters)
        if len(result) == len(self):
            return self
        return self[:len(result)] if _steers_nothing(characters) else result

    def removeprefix(self, prefix: str, /) -> str:
        result = str.removeprefix(self, prefix)
        return self[len(self) - len(result):] if is_of_template(prefix) else result

    def removesuffix(self, suffix: str, /) -> str:
        result = str.removesuffix(self, suffix)
        return self[:len(result)] if is_of_template(suffix) else result

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._split(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._split(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return [line if keepends else line[:len(kept)] for line, kept in
                zip(self._cut(str.splitlines(self, True)), str.splitlines(self), strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        first, middle, last = str.partition(self, sep)
        return tuple(self._cut([first, middle, last])) if is_of_template(sep) else (first, middle, last)  # type: ignore

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        first, middle, last = str.rpartition(self, sep)
        return tuple(self._cut([first, middle, last])) if is_of_template(sep) else (first, middle, last)  # type: ignore

    def lower(self) -> str:
        return self._in_case(str.lower(self))

    def upper(self) -> str:
        return self._in_case(str.upper(self))

    def capitalize(self) -> str:
        return self._in_case(str.capitalize(self))

    def title(self) -> str:
        return self._in_case(str.title(self))

    def _in_case(self, changed: str) -> str:
        # Changing the case may add characters (ß becomes SS) but never drops one.
        return _traced(changed, self._origins) if len(changed) == len(self) else changed

    def _cut(self, pieces: Iterable[str]) -> list[str]:
        """Returns pieces that together are the text, with their origins."""
        cut, position = [], 0
        for piece in pieces:
            cut.append(self[position:position + len(piece)])
            position += len(piece)
        return cut

    def _split(self, pieces: list[str], separator: str | None) -> list[str]:
        if not _steers_nothing(separator):
            return pieces
        cut, position = [], 0
        for piece in pieces:
            if separator is None:  # what lies between is whitespace, with which no piece begins
                position = self.find(piece, position)
            cut.append(self[position:position + len(piece)])
            position += len(piece) + len(separator or "")
        return cut


def plain(value: object) -> str:
    """Returns a text without origins: text of the data."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def of_template(text: str) -> TracedText:
    """Returns text of the template."""
    return _traced(text, bytes([TEMPLATE]) * len(text))


def with_tags(text: str, tags: re.Pattern) -> str:
    """Returns an assistant's text; its tags have their own origin."""
    if not tags.search(text):
        return text
    origins = bytearray(len(text))
    for tag in tags.finditer(text):
        origins[tag.start():tag.end()] = bytes([TAG]) * len(tag[0])
    return _traced(text, bytes(origins))


def origins_of(text: str) -> bytes:
    """Returns the origin of each character."""
    return text._origins if type(text) is TracedText else bytes(len(text))


def is_traced_text(text: str) -> bool:
    """Tells whether a text has origins; without, it is text of the data."""
    return type(text) is TracedText


def is_of_template(text: Any) -> bool:
    """Tells whether every character of a text comes from the template."""
    return type(text) is TracedText and text._origins.count(TEMPLATE) == len(text)


def concat(parts: Iterable[str]) -> str:
    """Returns what `"".join` returns, with origins if one of the parts has any."""
    parts = list(parts)
    text = "".join(parts)
    if TracedText not in map(type, parts):
        return text
    return _traced(text, b"".join([part._origins if type(part) is TracedText else bytes(len(part)) for part in parts]))


def format_traced(template: TracedText, formatted: Callable[..., str], *values: Any, **names: Any) -> str:
    """Returns what `formatted(*values, **names)` returns, where `formatted` is `template.format`."""
    result = formatted(*values, **names)
    if not is_of_template(template):
        return result
    unnamed = iter(values)
    parts: list[str] = []
    for literal, name, spec, conversion in string.Formatter().parse(plain(template)):
        parts.append(of_template(literal))
        if name is None:
            continue
        if spec or conversion or not (name == "" or name.isdigit() or name in names):
            return result
        parts.append(str(next(unnamed) if name == "" else values[int(name)] if name.isdigit() else names[name]))
    return _traced_as(result, parts)


def _steers_nothing(argument: str | None) -> bool:
    return argument is None or is_of_template(argument)


def _traced(text: str, origins: bytes) -> TracedText:
    traced: TracedText = str.__new__(TracedText, text)
    traced._origins = origins
    return traced


def _traced_as(result: str, parts: list[str]) -> str:
    """Returns `result` with the origins of its parts; without, if it does not consist of them."""
    traced = concat(parts)
    return traced if traced == result else result
