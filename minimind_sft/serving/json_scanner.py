"""Follows JSON that arrives in pieces, character by character."""

import re

from minimind_sft.strict_json import MAX_DEPTH, MAX_DIGITS

PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
BLANKS = re.compile(r"[ \t\n\r]*")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
NUMBER_BEGUN = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*|(?:\.\d+)?[eE][+-]?\d*)?)?", re.ASCII)
WORDS = ("true", "false", "null")
IN_SCALAR = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
HEX = frozenset("0123456789abcdefABCDEF")


class BrokenJson(ValueError):
    """The text is not JSON from here on."""


def is_scalar(text: str) -> bool:
    """Tells whether a text is a number, true, false or null."""
    return text in WORDS or bool(NUMBER.fullmatch(text))


class JsonScanner:
    """Finds the end of one JSON value, and the first character that no JSON could have.

    broken_at: where that character is in the text, after `BrokenJson`.

    A number or word by itself ends only with the character after it, so the value is an object, list or string.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        """The brackets that are still to be closed, as the brackets that close them."""
        self._expects = "value"
        """value, key, colon, comma (or the end of a list or object), or their variants `item` and `name` after an
        opening bracket, which may be closed at once."""
        self._in_string = self._is_name = False
        self._escape = 0
        """Characters of an escape that are still to come: -1 right after the backslash."""
        self._scalar = ""
        self.broken_at = 0

    def scan(self, text: str, start: int) -> tuple[int, bool]:
        """Returns how far the value goes: a position after `start`, and whether it ends there.

        Raises:
            BrokenJson: if the character at `broken_at` cannot be.
        """
        at = start
        while at < len(text):
            self.broken_at = at
            if self._in_string:
                at = self._string(text, at)
            elif self._scalar and text[at] in IN_SCALAR:
                self._extend(text[at])
                at += 1
            else:
                if self._scalar:
                    self._end_scalar()
                at = self._structure(text, at)
            if self._expects == "end":
                return at, True
        return at, False

    def _string(self, text: str, at: int) -> int:
        if self._escape:
            character = text[at]
            if self._escape > 0:
                self._require(character in HEX)
                self._escape -= 1
            else:
                self._require(character in '"\\/bfnrtu')
                self._escape = 4 if character == "u" else 0
            return at + 1
        found = PLAIN.match(text, at)
        assert found
        at = found.end()
        if at < len(text):
            self.broken_at = at
            self._require(text[at] in '"\\')
            if text[at] == "\\":
                self._escape = -1
            else:
                self._in_string = False
                self._expects = "colon" if self._is_name else self._after_value()
            at += 1
        return at

    def _structure(self, text: str, at: int) -> int:
        found = BLANKS.match(text, at)
        assert found
        if found.end() > at:
            return found.end()
        character = text[at]
        if character in "}]" and self._open and self._expects in ("item", "name", "comma"):
            self._require(self._open.pop() == character)
            self._expects = self._after_value()
        elif self._expects in ("value", "item"):
            self._begin(character)
        elif self._expects in ("name", "key"):
            self._require(character == '"')
            self._in_string = self._is_name = True
        else:
            self._require(character == (":" if self._expects == "colon" else ","))
            is_list = self._open[-1] == "]"
            self._expects = "value" if self._expects == "colon" or is_list else "key"
        return at + 1

    def _begin(self, character: str) -> None:
        """Begins a value."""
        if character in "{[":
            self._open.append("}" if character == "{" else "]")
            self._expects = "name" if character == "{" else "item"
            self._require(len(self._open) <= MAX_DEPTH)
        elif character == '"':
            self._in_string, self._is_name = True, False
        else:
            self._require(bool(self._open))
            self._extend(character)

    def _extend(self, character: str) -> None:
        scalar = self._scalar + character
        self._require(len(scalar) <= MAX_DIGITS and (bool(NUMBER_BEGUN.fullmatch(scalar)) or
                                                     any(word.startswith(scalar) for word in WORDS)))
        self._scalar = scalar

    def _end_scalar(self) -> None:
        self._require(is_scalar(self._scalar))
        self._scalar, self._expects = "", self._after_value()

    def _after_value(self) -> str:
        return "comma" if self._open else "end"

    @staticmethod
    def _require(holds: bool) -> None:
        if not holds:
            raise BrokenJson
