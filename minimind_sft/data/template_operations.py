"""Operators and methods of chat templates, within a budget.

Each pays for its work before doing it. Numbers that say how much to write, such as widths, have a limit of their own.
"""

import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter, SecurityError

from minimind_sft.data.template_budget import Budget, Lazy, escaping
from minimind_sft.data.traced_text import TracedText, modulo, untraced

MAX_WIDTH = 10_000
"""Characters or items that a number may ask for: widths, precisions, columns."""
MAX_BITS = 14_000
"""Of an integer. Python writes out 4,300 digits, which are 14,284 bits."""
MAX_NEEDLE = 100
"""Longer texts are searched for in linear time."""
MAX_EXPANSION = 100
"""Characters that encoding one character may take: backslashes and the character's name."""
FREE_CHARACTERS = 16
"""Of a short text that costs nothing beyond its part of the syntax tree."""
NUMBER_CHARACTERS = 400
"""Characters of a float written without an exponent."""
ENCODINGS = ("utf8", "utf16", "utf32", "ascii", "latin1", "unicodeescape", "rawunicodeescape")
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"

TEXT = (str, TracedText)

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge,
}
"""By their names in Jinja's syntax tree."""

OTHER_METHODS: dict[type, tuple[str, ...]] = {
    dict: ("get", "items", "keys", "values", "copy"), list: ("index", "count", "copy"), tuple: ("index", "count"),
    range: ("index", "count"), bytes: ("decode",), int: ("bit_length",), float: ("is_integer",),
}


class Operations:
    """Operators and methods that pay from a budget.

    Attributes:
        operators: by names with a space in them, which no template can spell: the sandbox has them as filters.
    """

    def __init__(self, budget: Budget):
        self._budget = budget
        self.operators: dict[str, Callable] = {
            "add ": self.add, "sub ": _arithmetic(operator.sub), "mul ": self._multiply,
            "div ": _arithmetic(operator.truediv), "floordiv ": _arithmetic(operator.floordiv), "mod ": self.modulo,
            "pow ": _power, "concat ": self._concatenate, "slice ": self._slice, "compared ": self.compared,
            "text ": budget.text, "step ": budget.step,
            "in ": self.contains, "notin ": lambda item, container: not self.contains(item, container),
            **{f"{name} ": partial(self.compare, name) for name in COMPARISONS},
        }

    def call_method(self, method: Any, args: tuple, kwargs: dict) -> Any:
        """Calls a method of a string, a number, a list or an object.

        Raises:
            SecurityError: if chat templates may not call it.
        """
        owner, name = method.__self__, method.__name__
        arguments = (*args, *kwargs.values()) if kwargs else args
        if isinstance(owner, str) and name in STRING_METHODS:
            if name == "join":
                args = arguments = tuple(map(self._budget.items, args))
            STRING_METHODS[name](self._budget, owner, arguments)
        elif name in OTHER_METHODS.get(type(owner), ()):
            self._pay_for(owner, name, arguments)
        else:
            raise SecurityError(f"chat templates have no method {name} of {type(owner).__name__}")
        result = method(*args, **kwargs)
        return untraced(result) if type(owner) is str and type(result) is not str else result

    def add(self, left: Any, *others: Any) -> Any:
        """Returns left + other + other and so on."""
        if len(others) > 1 and type(left) in TEXT and all(type(other) in TEXT for other in others):
            return self._budget.joined([left, *others])
        for other in others:
            left = self._add(left, other)
        return left

    def _add(self, left: Any, right: Any) -> Any:
        value = left + right  # at most twice as large as a value that was paid for
        if isinstance(value, str | bytes):
            if len(value) > FREE_CHARACTERS:
                self._budget.write(len(value) * escaping(value))
        elif isinstance(value, int):
            require_number(value)
        elif isinstance(value, list | tuple):
            self._budget.copy(len(value))
        return value

    def modulo(self, left: Any, right: Any) -> Any:
        """Returns left % right, which formats if `left` is text."""
        if not isinstance(left, str | bytes):
            return _arithmetic(operator.mod)(left, right)
        values = right.values() if isinstance(right, dict) else right if isinstance(right, tuple) else (right,)
        for value in values:
            self._budget.text(value)
        width = require_format(left, tuple(values))
        characters = 4 * self._budget.weigh(right).characters * escaping(left)
        places = left.count("%") if isinstance(left, str) else left.count(b"%")
        self._budget.write(len(left) + places * (width + NUMBER_CHARACTERS)
                           + characters * (1 if isinstance(right, tuple) else places))
        return modulo(left, right)

    def compare(self, comparison: str, left: Any, right: Any) -> Any:
        """Returns what a comparison of `COMPARISONS` says."""
        if isinstance(left, str) and isinstance(right, str):
            self._budget.scan(len(left))
        else:
            self.compared(left)
            self.compared(right)
        return COMPARISONS[comparison](left, right)

    def contains(self, item: Any, container: Any) -> bool:
        """Returns whether a container has an item, or a text another text."""
        is_text = isinstance(item, str)
        if is_text and isinstance(container, str):
            self._budget.scan(len(container), min(len(item), MAX_NEEDLE))
        elif not (is_text and isinstance(container, dict)):  # which looks it up
            self.compared(item)
            self.compared(container)
        return item in container

    def compared(self, value: Any) -> Any:
        """Pays for comparing a value with others, or hashing it, and returns it."""
        if isinstance(value, str):
            self._budget.scan(len(value), MAX_NEEDLE)
        elif not isinstance(value, Lazy):  # whose items pay for themselves
            self._budget.weigh(value)
        return value

    def _pay_for(self, owner: Any, name: str, arguments: tuple) -> None:
        """Pays for a method of anything but a string."""
        for argument in arguments:
            self._budget.weigh(argument)
        if name in ("index", "count"):
            self._budget.weigh(owner)
            self._budget.spend(len(owner) // 8)
        elif name == "copy":
            self._budget.copy(len(owner))
        elif name == "decode":
            _require_encoding(arguments)
            self._budget.write(len(owner) * MAX_EXPANSION // 10)

    def _multiply(self, left: Any, right: Any) -> Any:
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                pay = self._budget.write if isinstance(sequence, str | bytes) else self._budget.copy
                pay(len(sequence) * max(times, 0))
        return _arithmetic(operator.mul)(left, right)

    def _concatenate(self, parts: list) -> str:
        return self._budget.joined(list(map(self._budget.text, parts)))

    def _slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        if isinstance(part, str | bytes):
            self._budget.write(len(part))
        elif isinstance(part, list | tuple):
            self._budget.copy(len(part))
        return part


class LimitedFormatter(SandboxedFormatter):
    """Jinja's `str.format`, within a budget."""

    def __init__(self, environment: SandboxedEnvironment, budget: Budget):
        super().__init__(environment)
        self._budget = budget

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Converts a value as `!r` and `!s` ask for."""
        if conversion is not None:
            self._budget.write(4 * len(self._budget.text(value)))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        """Formats one value."""
        if not isinstance(value, int | float):
            value = self._budget.text(value)
        width = require_format(format_spec, ())
        self._budget.write(width + (len(value) if isinstance(value, str) else NUMBER_CHARACTERS))
        require_number(value)
        return super().format_field(value, format_spec)


def require_width(numbers: Sequence[Any]) -> int:
    """Returns the largest integer among values.

    Raises:
        TemplateRuntimeError: if it is beyond `MAX_WIDTH`.
    """
    largest = max((abs(number) for number in numbers if isinstance(number, int)), default=0)
    if largest > MAX_WIDTH:
        raise TemplateRuntimeError(f"it asks for a width of more than {MAX_WIDTH:,}")
    return largest


def require_format(template: str | bytes, values: Sequence[Any]) -> int:
    """Returns the largest width in a format, such as 5 in '%5d' or '>5'; `*` takes it from the values.

    Raises:
        TemplateRuntimeError: if it is beyond `MAX_WIDTH`. Digits outside the conversions count, too.
    """
    text = template if isinstance(template, str) else template.decode("latin-1")
    digits = re.findall(r"\d+", text)
    return require_width([10 ** min(len(number), 9) - 1 if len(number) > 5 else int(number) for number in digits]
                         + (list(values) if "*" in text else []))


def require_number(value: Any) -> None:
    """
    Raises:
        TemplateRuntimeError: if an integer has more than `MAX_BITS`.
    """
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TemplateRuntimeError(f"it computes a number of more than {MAX_BITS:,} bits")


def _arithmetic(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Bounds an operator whose work grows with its numbers."""
    def bounded(left: Any, right: Any) -> Any:
        require_number(left)
        require_number(right)
        value = compute(left, right)
        require_number(value)
        return value
    return bounded


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_BITS:
        raise TemplateRuntimeError(f"it computes a number of more than {MAX_BITS:,} bits")
    return left ** right


def _needle(arguments: Sequence[Any]) -> int:
    """Returns the length of the longest text among a method's arguments."""
    if len(arguments) == 1 and isinstance(arguments[0], str):
        return len(arguments[0])
    return max((len(argument) for argument in arguments if isinstance(argument, str)), default=1)


def _scan(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    for argument in arguments:
        budget.weigh(argument)  # startswith takes a tuple
    budget.scan(len(text), min(_needle(arguments), MAX_NEEDLE))


def _scan_backwards(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.scan(len(text), _needle(arguments))  # has no linear algorithm


def _copy(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text))


def _unescape(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(4 * len(text))


def _change_case(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(3 * len(text))  # some letters become three


def _strip(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text))
    if arguments:
        budget.scan(len(text), _needle(arguments))


def _pad(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text) + require_width(arguments))


def _expand_tabs(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text) + text.count("\t") * (require_width(arguments) or 8))


def _partition(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text))
    budget.scan(len(text), _needle(arguments))


def _split(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    separator = next((argument for argument in arguments if isinstance(argument, str)), "")
    pieces = text.count(separator) if separator else len(text) // 2
    limit = next((number for number in arguments if isinstance(number, int) and number >= 0), pieces)
    budget.spend(min(pieces, limit))
    budget.cut(text, min(pieces, limit))
    _partition(budget, text, arguments)


def _split_lines(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    lines = sum(map(text.count, LINE_ENDS))
    budget.spend(lines)
    budget.cut(text, lines)
    budget.write(len(text))


def _replace(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    _scan(budget, text, arguments)
    if all(isinstance(argument, str) for argument in arguments[:2]) and len(arguments) >= 2:
        places = text.count(arguments[0])
        budget.spend(places)
        budget.cut(text, places)
        budget.write(len(text) + places * len(arguments[1]))


def _join(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    for parts in arguments:
        weight, count = budget.weigh(parts), len(parts) if hasattr(parts, "__len__") else 0
        budget.spend(weight.items)
        budget.cut(text, count)
        budget.cut(parts, count)
        budget.write((weight.characters + count * len(text)) * escaping(text))


def _translate(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text) * max(1, *(budget.weigh(argument).characters for argument in arguments)))


def _encode(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    _require_encoding(arguments)
    budget.write(len(text) * (MAX_EXPANSION if len(arguments) > 1 else MAX_EXPANSION // 10))


def _require_encoding(arguments: Sequence[Any]) -> None:
    """
    Raises:
        SecurityError: if the encoding is none of `ENCODINGS`; some others take quadratic time.
    """
    names = [re.sub("[-_]", "", str(argument).lower()) for argument in arguments]
    if names and not set(names) & set(ENCODINGS):
        raise SecurityError("chat templates encode as UTF-8, UTF-16, UTF-32, ASCII, Latin-1 or with backslashes only")


STRING_METHODS: dict[str, Callable[[Budget, str, Sequence[Any]], None]] = {
    **dict.fromkeys(("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
                     "isprintable", "isspace", "istitle", "isupper", "count", "find", "index", "startswith",
                     "endswith"), _scan),
    **dict.fromkeys(("rfind", "rindex"), _scan_backwards),
    **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), _change_case),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _strip),
    **dict.fromkeys(("removeprefix", "removesuffix"), _copy),
    **dict.fromkeys(("unescape", "striptags"), _unescape),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _pad),
    **dict.fromkeys(("partition", "rpartition"), _partition),
    **dict.fromkeys(("split", "rsplit"), _split),
    "splitlines": _split_lines, "expandtabs": _expand_tabs, "replace": _replace, "join": _join, "encode": _encode,
    "translate": _translate,
}
"""The cost of each method of a string."""
