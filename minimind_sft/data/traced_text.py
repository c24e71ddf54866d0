"""Text that knows of each of its characters where it comes from.

An ordinary `str` is text of the data. Text of the template is a `TracedText`, and so is whatever an operation of this
module makes of it: each character of a result keeps the origin of the character that it is a copy of. All other
operations (C functions, filters, encoders) return an ordinary `str`, and an operation that the data steers, such as
`text.replace(data, '')` or `data % text`, does so too. So an origin can be lost, but text of the data never gains one.

Where text of the data was left out, or was empty, the characters beside the gap know that, too: the template did not
write them one after the other.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, SupportsIndex

DATA, TEMPLATE, TAG = 0, 1, 2
"""Origins: the data, the template, and a tag that an assistant's message may spell."""
GAP_AFTER, GAP_BEFORE = 4, 8
"""Added to the origin of a character of the template that had text of the data, even an empty one, beside it."""
TEMPLATE_RUN = b"[\\x05\\x0d]|[\\x01\\x09]\\x01*\\x05?"
"""Matches origins of characters that the template wrote one after the other."""

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
        return concat((self, other))

    def __radd__(self, other: Any) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return concat((other, self))

    def __mul__(self, times: SupportsIndex) -> str:
        return _traced(str.__mul__(self, times), self._origins * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        result = plain(str.__mod__(plain(self), values))
        shown = list(values) if isinstance(values, tuple) else [values]
        placeholders = PLACEHOLDER.findall(self)
        if not is_of_template(self) or placeholders.count("%s") != len(shown) or "%" in PLACEHOLDER.sub("", self):
            return result
        shown.reverse()
        parts: list[str] = []
        position = 0
        for found in PLACEHOLDER.finditer(self):
            parts += [*self._part(position, found.start()),
                      of_template("%") if found[0] == "%%" else str(shown.pop())]
            position = found.end()
        return _traced_as(result, [*parts, *self._part(position, len(self))])

    def __getitem__(self, at: Any) -> str:
        result = str.__getitem__(self, at)
        start, stop, step = (at.indices(len(self)) if isinstance(at, slice) else
                             (at % len(self), at % len(self) + 1, 1))
        origins = self._origins[start:stop:step] if step > 0 else self._origins[at]
        if step != 1:
            return _traced(result, origins) if is_of_template(self) else result
        if self._origins[stop:stop + 1] not in (b"", OF_TEMPLATE):
            origins = _with_gap_after(origins)
        if start and self._origins[start - 1:start] != OF_TEMPLATE:
            origins = _with_gap_before(origins)
        return _traced(result, origins)

    def __iter__(self) -> Iterator[str]:
        if is_of_template(self):
            return map(of_template, str.__iter__(self))
        return map(self.__getitem__, range(len(self)))

    def join(self, parts: Iterable[str]) -> str:
        """Joins; a separator between two texts of the data is data, too, as the data may decide how many there are."""
        parts = list(parts)
        str.join(self, parts)  # raises what it raises
        joined = parts[:1]
        for before, after in pairwise(parts):
            is_own = origins_of(before)[-1:] == OF_TEMPLATE or origins_of(after)[:1] == OF_TEMPLATE
            joined += [self if is_own or not self else plain(self), after]
        return concat(joined)

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Replaces; what takes the place of data is data."""
        result = str.replace(self, old, new, count)
        if not old or not is_of_template(old):
            return result
        parts: list[str] = []
        position = 0
        times = count.__index__()
        while times and (start := self.find(old, position)) >= 0:
            parts += [*self._part(position, start),
                      new if is_of_template(self[start:start + len(old)]) else plain(new)]
            position = start + len(old)
            times -= 1
        return _traced_as(result, [*parts, *self._part(position, len(self))])

    def strip(self, characters: str | None = None, /) -> str:
        if len(str.strip(self, characters)) == len(self):
            return self
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
        return self._partition(str.partition(self, sep), sep)

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._partition(str.rpartition(self, sep), sep)

    def lower(self) -> str:
        return self._in_case(str.lower(self))

    def upper(self) -> str:
        return self._in_case(str.upper(self))

    def capitalize(self) -> str:
        return self._in_case(str.capitalize(self))

    def title(self) -> str:
        return self._in_case(str.title(self))

    def _part(self, start: int, stop: int) -> list[str]:
        return [self[start:stop]] if start < stop else []

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

    def _partition(self, pieces: tuple[str, str, str], separator: str) -> tuple[str, str, str]:
        first, middle, last = self._cut(pieces) if is_of_template(separator) else map(plain, pieces)
        return first, middle, last

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


OF_TEMPLATE = bytes([TEMPLATE])


def plain(value: object) -> str:
    """Returns a text without origins: text of the data."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def of_template(text: str) -> TracedText:
    """Returns text of the template."""
    return _new(text, OF_TEMPLATE * len(text))


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


def untraced(value: Any) -> Any:
    """Returns a result of a method of the data: some return their argument itself, as `partition` does."""
    if type(value) is TracedText:
        return plain(value)
    if type(value) in (list, tuple):
        return type(value)(map(untraced, value))
    return value


def modulo(left: Any, right: Any) -> Any:
    """Returns `left % right`; with text of the data on the left, the result is the data's."""
    return left % right if type(left) is TracedText else untraced(left % right)


def concat(parts: Iterable[str]) -> str:
    """Returns what `"".join` returns, with origins if one of the parts has any."""
    parts = list(parts)
    text = "".join(parts)
    if TracedText not in map(type, parts):
        return text
    if "" not in parts:
        return _traced(text, b"".join(map(origins_of, parts)))
    joined: list[bytes] = []
    is_gap = False
    for part in parts:
        origins = origins_of(part)
        if not part:
            is_gap = is_gap or type(part) is not TracedText  # an empty constant is none
        elif is_gap:
            joined[-1:] = map(_with_gap_after, joined[-1:])
            joined.append(_with_gap_before(origins))
            is_gap = False
        else:
            joined.append(origins)
    if is_gap:
        joined[-1:] = map(_with_gap_after, joined[-1:])
    return _traced(text, b"".join(joined))


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


def _with_gap_after(origins: bytes) -> bytes:
    return origins[:-1] + bytes([origins[-1] | GAP_AFTER]) if origins and origins[-1] & TEMPLATE else origins


def _with_gap_before(origins: bytes) -> bytes:
    return bytes([origins[0] | GAP_BEFORE]) + origins[1:] if origins and origins[0] & TEMPLATE else origins


def _traced(text: str, origins: bytes) -> str:
    return _new(text, origins) if text else ""


def _new(text: str, origins: bytes) -> TracedText:
    traced: TracedText = str.__new__(TracedText, text)
    traced._origins = origins
    return traced


def _traced_as(result: str, parts: list[str]) -> str:
    """Returns `result` with the origins of its parts; without, if it does not consist of them."""
    traced = concat(parts)
    return traced if traced == result else result
