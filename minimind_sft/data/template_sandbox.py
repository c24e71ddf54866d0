"""Runs chat templates in Jinja's sandbox, as Hugging Face's `apply_chat_template` does, with a pinned date."""

import json
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Templates are foreign code: besides Jinja's own errors they raise whatever an expression can raise.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
                   RecursionError)

# The date that templates read: training and chatting must see the same one, every day.
PINNED_DATE = datetime(2026, 1, 1)

DICT_ATTRIBUTES = frozenset(dir(dict))
# Without the format methods, which can reach into objects: the sandbox guards those.
PLAIN_STRING_METHODS = frozenset(name for name in dir(str) if not name.startswith(("_", "format")))


Environment = TypeVar("Environment", bound="TemplateEnvironment")


class GenerationTag(Extension):
    """Renders `{% generation %}...{% endgeneration %}`, which marks answers in some templates, as its content."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja's Extension prescribes

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a fast path for what templates read most: fields of messages and methods of strings."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Returns what the sandbox returns, without its exceptions and checks on the way."""
        if type(obj) is dict and attribute not in DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is str and attribute in PLAIN_STRING_METHODS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


def make_environment(kind: type[Environment]) -> Environment:
    """Sets up Jinja as Hugging Face's `apply_chat_template` does, except that the date is pinned."""
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = PINNED_DATE.strftime
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:
    """Writes JSON without escaping `<` and `>` for HTML, unlike Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
