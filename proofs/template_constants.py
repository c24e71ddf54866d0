"""Finds the strings in a chat template's syntax tree: material for attacks on it."""

from collections.abc import Iterable, Iterator

from jinja2 import nodes

# Parts of a syntax tree that decide or look something up. Constants there are not written out.
UNWRITTEN = {
    nodes.If: {"test"},
    nodes.For: {"test"},
    nodes.CondExpr: {"test"},
    nodes.Getitem: {"arg"},
    nodes.Pair: {"key"},
}
# Filters whose arguments may be written out.
WRITING_FILTERS = ("default", "d", "join")


def written_constants(tree: nodes.Node) -> Iterator[nodes.Const | nodes.TemplateData]:
    """Yields the string constants that a template writes, rather than compares or passes to a method."""
    if isinstance(tree, nodes.TemplateData) or (isinstance(tree, nodes.Const) and isinstance(tree.value, str)):
        yield tree
    elif not isinstance(tree, nodes.Compare | nodes.Test):
        for child in tree.iter_child_nodes(exclude=_unwritten_fields(tree)):
            yield from written_constants(child)


def continuations(tree: nodes.Node, tokens: Iterable[str]) -> tuple[str, ...]:
    """Returns the rests of control tokens inside which a constant ends, as in `'<|' + message.role + '|>'`.

    Data that begins with such a rest completes the token.
    """
    ends = {_text(constant) for constant in written_constants(tree)}
    return tuple({token[length:] for token in tokens for length in range(1, len(token))
                  if any(end.endswith(token[:length]) for end in ends)})


def _unwritten_fields(node: nodes.Node) -> set[str]:
    if isinstance(node, nodes.Filter) and node.name not in WRITING_FILTERS:
        return {"args", "kwargs", "dyn_args", "dyn_kwargs"}
    # Methods receive constants to compare with or to cut at; macros receive them to be written.
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return {"args", "kwargs", "dyn_args", "dyn_kwargs"}
    return UNWRITTEN.get(type(node), set())


def _text(constant: nodes.Const | nodes.TemplateData) -> str:
    return constant.data if isinstance(constant, nodes.TemplateData) else constant.value
