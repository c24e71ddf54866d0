"""Filters and tests of chat templates, within a budget: Jinja's own, each paid for before it runs."""

import json
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

from jinja2 import Environment
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Undefined
from jinja2.tests import TESTS

from minimind_sft.data.template_budget import Budget, Lazy, require_text
from minimind_sft.data.template_operations import (
    COMPARISONS,
    LINE_ENDS,
    STRING_METHODS,
    Operations,
    require_number,
    require_width,
)

JINJA_TESTS: dict[str, Any] = dict(TESTS.items())

REFUSED = ("random",)
"""Renders another text each time."""
LAZY = ("map", "select", "reject", "selectattr", "rejectattr", "batch", "slice", "items")
ORDERING = ("sort", "dictsort", "groupby", "min", "max")
NUMERIC = ("int", "float", "round", "abs")
TEXT_ONLY = ("indent", "truncate", "wordwrap", "urlize")
"""Filters that take nothing but text."""
STRUCTURED = ("urlencode", "xmlattr", "pprint")
ESCAPE = 12
"""Characters of an escaped one, at most: in JSON and in addresses of web pages."""


class Filters:
    """
    Attributes:
        filters, tests: Jinja's, by name.
    """

    def __init__(self, environment: Environment, budget: Budget, operations: Operations):
        self._environment, self._budget, self._operations = environment, budget, operations
        self.filters: dict[str, Callable] = {
            **{name: function for name, function in FILTERS.items() if name not in REFUSED},
            **{name: self._lazy(FILTERS[name]) for name in LAZY},
            **{name: self._ordering(FILTERS[name]) for name in ORDERING},
            **{name: self._of_text(name) for name in TEXT_FILTERS},
            **{name: self._numeric(name) for name in NUMERIC},
            "list": self._list, "reverse": self._reverse, "unique": self._unique, "join": self._join,
            "sum": self._sum, "trim": self._trim, "replace": self._replace, "format": self._format,
            "string": self._soft_text, "tojson": self._to_json,
            **{name: self._structured(FILTERS[name]) for name in STRUCTURED},
        }
        self.tests: dict[str, Callable] = {
            **JINJA_TESTS,
            **{name: self._comparison(test) for name, test in JINJA_TESTS.items() if test in COMPARISONS.values()},
            "in": operations.contains,
            "odd": lambda number: _remainder(number, 2) == 1,
            "even": lambda number: _remainder(number, 2) == 0,
            "divisibleby": lambda number, divisor: _remainder(number, divisor) == 0,
            "lower": lambda value: budget.text(value).islower(),
            "upper": lambda value: budget.text(value).isupper(),
        }

    def _comparison(self, test: Callable) -> Callable[[Any, Any], Any]:
        name = next(name for name, comparison in COMPARISONS.items() if comparison is test)
        return partial(self._operations.compare, name)

    def _lazy(self, function: Callable) -> Callable:
        """Bounds a filter that gives its items one by one."""
        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Lazy:
            context, value, arguments = _split_arguments(function, args, kwargs)
            if function in (FILTERS["batch"], FILTERS["slice"]):
                self._budget.spend(require_width(arguments[:1]))
            source = self._budget.source(value, self._item_steps(arguments))
            return Lazy(self._budget, function(*context, source, *args[len(context) + 1:], **kwargs), source)
        return bounded

    def _ordering(self, function: Callable) -> Callable:
        """Bounds a filter that compares all items."""
        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            context, value, arguments = _split_arguments(function, args, kwargs)
            items = self._compared_items(value, arguments)
            return function(*context, items, *args[len(context) + 1:], **kwargs)
        return bounded

    def _of_text(self, name: str) -> Callable:
        """Bounds a filter that makes text out of text."""
        function, pay = FILTERS[name], TEXT_FILTERS[name]

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            context, value, arguments = _split_arguments(function, args, kwargs)
            if name in TEXT_ONLY and not isinstance(value, str | Undefined):
                raise TypeError(f"{name}: expected text")  # indent would append to a list of the conversation
            text = value if name in TEXT_ONLY else self._soft_text(value)
            pay(self._budget, text, arguments)
            return function(*context, text, *args[len(context) + 1:], **kwargs)
        return bounded

    def _structured(self, function: Callable) -> Callable:
        """Bounds a filter that writes out a list or an object."""
        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            context, value, _ = _split_arguments(function, args, kwargs)
            items = self._budget.items(value)
            weight = self._budget.weigh(items)
            require_text(items)
            self._budget.write((ESCAPE * weight.characters + 8 * weight.items) * (1 + weight.depth))
            return function(*context, items, *args[len(context) + 1:], **kwargs)
        return bounded

    def _numeric(self, name: str) -> Callable:
        """Bounds a filter that makes a number out of a number or its text."""
        def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "round":
                require_width((*args, *kwargs.values()))
            require_number(value)
            self._budget.write(len(value) if isinstance(value, str | bytes) else 1)
            number = FILTERS[name](value, *args, **kwargs)
            require_number(number)
            return number
        return bounded

    def _item_steps(self, arguments: Sequence[Any]) -> int:
        """Pays for a filter's arguments and returns the steps for each of its items: paths of attributes are walked."""
        paths = sum(self._budget.weigh(argument).characters for argument in arguments)
        return 1 + paths // 32

    def _compared_items(self, value: Any, arguments: Sequence[Any]) -> Any:
        """Pays for comparing all items with each other and returns them."""
        items = self._budget.items(value)
        weight = self._budget.weigh(items)
        self._budget.spend(2 * weight.items * self._item_steps(arguments) + weight.characters // 64)
        return items

    def _attributes(self, value: Any, attribute: Any) -> list:
        """Returns the items, or an attribute of each."""
        source = self._budget.source(value, self._item_steps([attribute]))
        return list(source if attribute is None else map(make_attrgetter(self._environment, attribute), source))

    def _soft_text(self, value: Any) -> str:
        return value if isinstance(value, str) else self._budget.text(value)

    def _list(self, value: Any) -> list:
        return list(self._budget.source(value))

    def _reverse(self, value: Any) -> Any:
        return FILTERS["reverse"](self._budget.source(value))

    def _unique(self, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Lazy:
        items = self._compared_items(value, [attribute])
        return Lazy(self._budget, FILTERS["unique"](self._environment, items, case_sensitive, attribute), None)

    def _join(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        texts = [self._budget.text(item) for item in self._attributes(value, attribute)]
        return self._budget.joined(texts, self._budget.text(d))

    def _sum(self, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        for item in self._attributes(value, attribute):
            start = self._operations.add(start, item)
        return start

    def _trim(self, value: Any, *characters: Any) -> str:
        text = self._soft_text(value)
        STRING_METHODS["strip"](self._budget, text, characters)
        return text.strip(*characters)

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = map(self._budget.text, (value, old, new))
        STRING_METHODS["replace"](self._budget, text, (old, new))
        return text.replace(old, new, -1 if count is None else count)

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return self._operations.modulo(self._soft_text(value), kwargs or args)

    def _to_json(self, value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
                 sort_keys: bool = False) -> str:
        """Writes JSON without escaping `<` and `>` for HTML, unlike Jinja's own filter."""
        weight = self._budget.weigh(value)
        indentation = len(indent) if isinstance(indent, str) else require_width([indent])
        between = indentation * (weight.depth + 1) + self._budget.weigh(separators).characters
        self._budget.write(weight.characters * (ESCAPE if ensure_ascii else ESCAPE // 2)
                           + weight.items * (between + 4))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _split_arguments(function: Callable, args: tuple, kwargs: dict) -> tuple[tuple, Any, tuple]:
    """Returns (what Jinja passes first if the filter wants it, the filtered value, the other arguments)."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    return args[:first], args[first], (*args[first + 1:], *kwargs.values())


def _remainder(number: Any, divisor: Any) -> Any:
    """
    Raises:
        TypeError: if they are no numbers; with text, `%` would format.
    """
    if not isinstance(number, int | float) or not isinstance(divisor, int | float):
        raise TypeError("expected a number")
    require_number(number)
    require_number(divisor)
    return number % divisor


def _expand(times: int) -> Callable[[Budget, str, Sequence[Any]], None]:
    """Returns what a filter costs that writes up to `times` characters for each one."""
    def pay(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
        budget.write(times * len(text))
    return pay


def _indent(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    width = max(require_width(arguments[:1]), *(len(one) for one in arguments if isinstance(one, str)), 4)
    lines = 1 + sum(map(text.count, LINE_ENDS))
    budget.cut(text, lines)
    budget.write(len(text) + lines * width)


def _wrap(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    """Patterns that find words and addresses of web pages take quadratic time for some texts."""
    separator = max((len(one) for one in arguments if isinstance(one, str)), default=1)
    budget.write(len(text) * (2 + separator) + len(text) * len(text) // 16)


def _truncate(budget: Budget, text: str, arguments: Sequence[Any]) -> None:
    budget.write(len(text) + sum(len(one) for one in arguments if isinstance(one, str)))


TEXT_FILTERS: dict[str, Callable[[Budget, str, Sequence[Any]], None]] = {
    "capitalize": _expand(3), "lower": _expand(3), "upper": _expand(3), "title": _expand(12), "wordcount": _expand(6),
    "escape": _expand(5), "e": _expand(5), "forceescape": _expand(5), "safe": _expand(1),
    "striptags": _expand(3), "center": STRING_METHODS["center"], "indent": _indent,
    "truncate": _truncate, "wordwrap": _wrap, "urlize": _wrap,
}
