"""Reads text that arrives in pieces as if it were there: reading pauses where the text ends so far."""

import re
from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from minimind_sft.errors import UserError
from minimind_sft.serving.json_scanner import IN_SCALAR, BrokenJson, JsonScanner, is_scalar
from minimind_sft.strict_json import parse_json

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""A part of the reading, which pauses where the text ends so far."""

WORD = re.compile(r"[\w.:/-]")
MAX_NAME = 256


class Broken(Exception):
    """The text is not what was to be read."""


class ArrivingText:
    """Text that is read while it arrives. All methods but `_pause` raise `Broken` at other text or at its end."""

    def __init__(self) -> None:
        self._text, self._start, self._at = "", 0, 0
        """The text that is still needed, the first character that is, and the next one to read."""
        self._ended = False

    def _arrive(self, text: str) -> None:
        """Adds text, and forgets what is not needed any more."""
        self._text = self._text[self._start:] + text
        self._at, self._start = self._at - self._start, 0

    def _pause(self) -> None:
        """Does what is to be done whenever the text ends so far."""

    def _has_more(self) -> Steps[bool]:
        """Waits for the next character; False: the answer ended."""
        while self._at >= len(self._text):
            if self._ended:
                return False
            self._pause()
            yield
        return True

    def _next(self) -> Steps[str]:
        """Returns the next character without reading it."""
        self._require((yield from self._has_more()))
        return self._text[self._at]

    def _after_blanks(self) -> Steps[str]:
        while (character := (yield from self._next())).isspace():
            self._at += 1
        return character

    def _literal(self, *texts: str) -> Steps[int]:
        """Reads one of several texts, with any blanks in it, and returns which. A blank text is there at once."""
        left = {index: "".join(text.split()) for index, text in enumerate(texts)}
        position = 0
        while True:
            for index, text in left.items():
                if len(text) == position:
                    return index
            character = yield from self._after_blanks()
            left = {index: text for index, text in left.items() if text[position] == character}
            self._require(bool(left))
            position += 1
            self._at += 1

    def _word(self) -> Steps[str]:
        yield from self._after_blanks()
        word = ""
        while WORD.match((yield from self._next())) and len(word) <= MAX_NAME:
            word += self._text[self._at]
            self._at += 1
        self._require(0 < len(word) <= MAX_NAME)
        return word

    def _until(self, end: str) -> Steps[str]:
        """Reads text and its end, which is not part of it; nor are the blanks that the template writes around it."""
        first, *others = end.split()
        offset = self._at - self._start
        while (place := self._text.find(first, self._at)) < 0:
            self._require(not self._ended)
            self._at = max(self._at, len(self._text) - len(first) + 1)
            yield
        text = self._text[self._start + offset:place]
        self._at = place + len(first)
        for other in others:
            yield from self._literal(other)
        for blank in end[len(end.rstrip()):]:
            if (yield from self._has_more()) and self._text[self._at] == blank:
                self._at += 1
        return text.removesuffix(end[:len(end) - len(end.lstrip())])

    def _json(self) -> Steps[str]:
        """Returns the text of a JSON value."""
        offset = self._at - self._start
        if (yield from self._next()) in '{["':
            yield from self._scan()
        else:
            while (yield from self._next()) in IN_SCALAR:
                self._at += 1
            self._require(is_scalar(self._text[self._start + offset:self._at]))
        return self._text[self._start + offset:self._at]

    def _scan(self) -> Steps[None]:
        scanner, is_done = JsonScanner(), False
        while not is_done:
            yield from self._next()
            try:
                self._at, is_done = scanner.scan(self._text, self._at)
            except BrokenJson:
                self._at = scanner.broken_at
                raise Broken from None

    def _string(self, text: str) -> str:
        value = self._parsed(text)
        self._require(isinstance(value, str))
        return value

    @staticmethod
    def _parsed(text: str) -> Any:
        try:
            return parse_json(text, "")
        except UserError:
            raise Broken from None

    @staticmethod
    def _require(holds: bool) -> None:
        if not holds:
            raise Broken
