"""Refuses regular expressions, of tokenizers and adapters, that can take exponential time.

Oniguruma and Python's `re`, which run them, backtrack: where a repeated group can divide the same text in several ways,
as in `(a+)+$`, they try all of them. Real expressions repeat single characters and classes.
"""

import re

MAX_LENGTH = 10_000
MAX_DEPTH = 50

ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|.)", re.DOTALL)
GROUP = re.compile(r"\((?:\?(?:#[^)]*\)|[imsu-]*[):]|=|!|<=|<!|>|<\w+>))?")
QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d*)(,?)(\d*)\})[?+]?")


def regex_problem(pattern: str, max_repetitions: int | None = None, max_choices: int | None = None) -> str | None:
    """Returns why an expression is refused, or None.

    Args:
        max_repetitions: how many items may be repeated a variable number of times; "?" counts as well.
        max_choices: how many ways there may be to choose an alternative in each group.
    """
    if len(pattern) > MAX_LENGTH:
        return f"a regular expression of {len(pattern):,} characters, expected at most {MAX_LENGTH:,}"
    scanner = _Scanner(pattern)
    try:
        scanner.scan()
        if max_repetitions is not None and scanner.repetitions > max_repetitions:
            raise ValueError(f"repeats {scanner.repetitions} items, expected at most {max_repetitions}")
        if max_choices is not None and scanner.choices > max_choices:
            raise ValueError(f"has more than {max_choices:,} ways to choose among its alternatives")
    except ValueError as error:
        shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}..."
        return f"the regular expression {shown!r} {error}"
    return None


class _Scanner:
    """Reads an expression from left to right.

    For each open group it keeps whether the group can match the same text in several ways.

    Attributes:
        repetitions: how many items vary in number.
        choices: the product of the numbers of alternatives.
    """

    def __init__(self, pattern: str):
        self._pattern, self._at = pattern, 0
        self.repetitions, self.choices = 0, 1

    def scan(self) -> None:
        """
        Raises:
            ValueError: saying what is wrong with the expression.
        """
        varies = [False]  # of each open group, the whole expression first
        alternatives = [1]
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            inner_varies = False  # of the item just read
            if character == "(":
                if self._open():
                    varies.append(False)
                    alternatives.append(1)
                if len(varies) > MAX_DEPTH:
                    raise ValueError(f"nests more than {MAX_DEPTH} groups")
                continue
            if character == ")" and len(varies) > 1:
                self._at += 1
                inner_varies = varies.pop()
                self.choices *= alternatives.pop()
            elif character == "|":
                self._at += 1
                varies[-1] = True
                alternatives[-1] += 1
                continue
            else:
                self._skip_item(character)
            varies[-1] |= self._quantified(inner_varies)

    def _open(self) -> bool:
        """Skips what opens a group; returns whether it is one, rather than a comment or a switch such as (?i)."""
        found = GROUP.match(self._pattern, self._at)
        assert found
        if self._pattern.startswith(("(?", "(*"), self._at) and found[0] == "(":
            raise ValueError(f"has {self._pattern[self._at:self._at + 3]!r}, which is not supported")
        self._at = found.end()
        return found[0] == "(" or found[0][-1] != ")"

    def _skip_item(self, character: str) -> None:
        if character == "\\":
            found = ESCAPE.match(self._pattern, self._at)
            if not found or found[0][1] in "123456789kg":
                raise ValueError("refers back to a group, which is not supported")
            self._at = found.end()
        elif character == "[":
            self._skip_class()
        else:
            self._at += 1

    def _skip_class(self) -> None:
        """Skips a class of characters, which may contain others."""
        depth, start = 0, self._at
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            if character == "\\":
                self._at += 1
            elif character == "[":
                depth += 1
                if self._pattern.startswith("[^", self._at):
                    self._at += 1
                start = self._at
            elif character == "]" and self._at > start + 1:  # as the first character it is one of the class
                depth -= 1
            self._at += 1
            if not depth:
                return

    def _quantified(self, inner_varies: bool) -> bool:
        """Skips the quantifiers of an item; returns whether it can match the same text in several ways.

        Raises:
            ValueError: if an item that varies itself is repeated without a limit.
        """
        while (found := QUANTIFIER.match(self._pattern, self._at)) and found[0] not in ("{}", "{,}"):
            sign, low, comma, high = found.groups()
            most = 1 if sign == "?" else None if sign or (comma and not high) else int(high or low)
            if inner_varies and (most is None or most > 1):
                raise ValueError("repeats what can itself vary in length, which can take exponential time")
            inner_varies |= bool(sign or comma)
            self.repetitions += bool(sign or comma)
            self._at = found.end()
        return inner_varies
