"""Chat templates in Jinja's sandbox, and the control tokens in what they write."""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a template that asks for the date gets: training and chatting must see the same, on every day.
PINNED_DATE = datetime(2026, 1, 1)

# Parts of a syntax tree that decide or look something up; what stands there is not written out.
UNWRITTEN = {
    nodes.If: {"test"},
    nodes.For: {"test"},
    nodes.CondExpr: {"test"},
    nodes.Getitem: {"arg"},
    nodes.Pair: {"key"},
}
# Filters whose arguments can end up in what is written.
WRITING_FILTERS = ("default", "d", "join")


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks an assistant's words in some templates; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja's Extension prescribes

    def parse(self, parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def make_environment() -> jinja2.Environment:
    """Jinja as Hugging Face's `apply_chat_template` sets it up, except that the date is pinned."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = PINNED_DATE.strftime
    return environment


def written_constants(tree: nodes.Node) -> Iterator[nodes.Const | nodes.TemplateData]:
    """The string constants of a template that it writes, rather than compares with or passes to a method."""
    if isinstance(tree, nodes.TemplateData) or (isinstance(tree, nodes.Const) and isinstance(tree.value, str)):
        yield tree
    elif not isinstance(tree, nodes.Compare | nodes.Test):
        for child in tree.iter_child_nodes(exclude=_unwritten_fields(tree)):
            yield from written_constants(child)


def compile_template(environment: jinja2.Environment, source: str, mark: Callable[[str], str]) -> jinja2.Template:
    """The template with `mark` applied to every constant that it writes."""
    tree = environment.parse(source)
    for constant in written_constants(tree):
        _set_text(constant, mark(_text(constant)))
    return environment.template_class.from_code(environment, environment.compile(tree), environment.make_globals(None))


def assembles_tokens(tree: nodes.Node, tokens: Iterable[str]) -> bool:
    """Whether a constant breaks off inside a control token, as in `'<|' + message.role + '|>'`: no constant then
    holds the token, and marking constants misses it."""
    beginnings = tuple(token[:length] for token in tokens for length in range(1, len(token)))
    return any(_text(constant).endswith(beginnings) for constant in written_constants(tree))


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with `change` applied to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_strings(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [map_strings(part, change) for part in value]
    return value


def iter_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from iter_strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from iter_strings(part)


def _unwritten_fields(node: nodes.Node) -> set[str]:
    if isinstance(node, nodes.Filter) and node.name not in WRITING_FILTERS:
        return {"args", "kwargs", "dyn_args", "dyn_kwargs"}
    # A call of a method passes constants to compare with or cut at; a call of a macro passes them to be written.
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return {"args", "kwargs", "dyn_args", "dyn_kwargs"}
    return UNWRITTEN.get(type(node), set())


def _text(constant: nodes.Const | nodes.TemplateData) -> str:
    return constant.data if isinstance(constant, nodes.TemplateData) else constant.value


def _set_text(constant: nodes.Const | nodes.TemplateData, text: str) -> None:
    if isinstance(constant, nodes.TemplateData):
        constant.data = text
    else:
        constant.value = text


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:
    """Jinja's own filter escapes `<` and `>` for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
