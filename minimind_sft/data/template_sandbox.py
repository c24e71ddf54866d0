"""Runs chat templates in Jinja's sandbox, as Hugging Face's `apply_chat_template` does, within limits.

Templates come with foreign tokenizers. A rendering has a budget of steps (`template_budget`), and its text depends on
nothing but the conversation: no clock, no time zone, no chance. The syntax tree is rewritten before it is compiled, so
that operators, comparisons and loops pay for their work; methods and filters pay when they are called.
"""

import re
from datetime import datetime
from functools import lru_cache, partial
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from minimind_sft.data.template_budget import MAX_CALL_DEPTH, Budget, TooMuchWork
from minimind_sft.data.template_filters import Filters
from minimind_sft.data.template_operations import LimitedFormatter, Operations
from minimind_sft.data.traced_text import TracedText
from minimind_sft.errors import one_line

TEMPLATE_ERRORS = (jinja2.TemplateError,)
"""Whatever a template raises reaches callers as this, except `TooMuchWork`, which is a UserError."""

MAX_SOURCE = 100_000
"""Characters of a template; the longest of known models has 20,000."""
MAX_SOURCE_BYTES = 4 * MAX_SOURCE
"""Bytes of a file that is a template."""
MAX_NODES = 15_000
"""Parts of a template's syntax tree; the largest of known models has 2,000."""
MAX_NESTING = 100
"""Levels of a template's syntax tree."""
MAX_SHOWN = 300
"""Characters of an error message."""
NODES_PER_STEP = 16
"""Parts of a syntax tree that a step may evaluate, apart from what they call."""
GUARDED_STEPS = 8
"""Steps for reading an attribute that the sandbox has to look at."""
CALL_STEPS = 4
"""Steps for a call of something written in Jinja or Python."""
SHORT_CONSTANT = 256
"""Characters of a constant that is compared for free."""

# The date that templates read: training and chatting must see the same one, every day.
PINNED_DATE = datetime(2026, 1, 1)
DATE_DIRECTIVES = re.compile(r"%-?[aAbBdfGHIjmMpSuUVwWyY%]")
"""The directives that `strftime_now` writes; others depend on the time zone or the platform."""

CONTAINERS = (dict, list, tuple, str, TracedText)
DICT_ATTRIBUTES = frozenset(dir(dict))
# Without the format methods, which can reach into objects: the sandbox guards those.
PLAIN_ATTRIBUTES: dict[type, frozenset[str]] = {
    kind: frozenset(name for name in dir(plain) if not name.startswith(("_", "format")))
    for kind, plain in ((str, str), (TracedText, str), (LoopContext, LoopContext))}
CLASSES = (dict, Namespace, Cycler, Joiner)
"""Classes that templates may call."""
CALLABLE = (Macro, LoopContext, BlockReference, FunctionType, Joiner, partial, jinja2.Undefined)
"""Types of what they may call, besides methods."""


Environment = TypeVar("Environment", bound="TemplateEnvironment")


class GenerationTag(Extension):
    """Renders `{% generation %}...{% endgeneration %}`, which marks answers in some templates, as its content."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja's Extension prescribes

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget and with a fast path for what templates read most."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.budget = Budget()
        self._operations = Operations(self.budget)
        filters = Filters(self, self.budget, self._operations)
        self.filters.clear()
        self.filters.update({**filters.filters, **self._operations.operators})
        self.tests.update(filters.tests)
        del self.globals["lipsum"]  # text by chance
        self.globals["raise_exception"] = partial(_raise_exception, self.budget)
        self.globals["strftime_now"] = _strftime_now

    def parse(self, source: str, name: str | None = None, filename: str | None = None) -> nodes.Template:
        """Parses a template.

        Raises:
            TemplateError: whatever is wrong with it.
        """
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateError(f"expected at most {MAX_SOURCE:,} characters, found {len(source):,}")
        try:
            return super().parse(source, name, filename)
        except Exception as error:  # numbers of too many digits, for example
            raise _template_error(error) from error

    def compile(self, source: Any, *arguments: Any, **options: Any) -> Any:
        """Compiles a template, rewritten so that it pays for its work.

        Raises:
            TemplateError: whatever is wrong with it.
        """
        tree = self.parse(source) if isinstance(source, str) else source
        _require_size(tree)
        self.budget.start(None, None)  # Jinja computes constants while it compiles
        try:
            return super().compile(PayingTree().visit(tree), *arguments, **options)
        except Exception as error:  # Python's compiler has limits of its own
            raise _template_error(error) from error
        finally:
            self.budget.end()

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Returns what the sandbox returns, without its exceptions and checks on the way."""
        kind = type(obj)
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else _undefined(attribute)
        if attribute in PLAIN_ATTRIBUTES.get(kind, ()):
            return getattr(obj, attribute)
        if kind is Namespace and not attribute.startswith("_") and hasattr(obj, attribute):
            return getattr(obj, attribute)
        self.budget.spend(GUARDED_STEPS)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Returns what the sandbox returns; it looks at items that are not in a list, an object or a text."""
        if type(obj) not in CONTAINERS:
            self.budget.spend(GUARDED_STEPS)
        return super().getitem(obj, argument)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a method, a macro, a block, a loop or a global function.

        Raises:
            SecurityError: if it is anything else.
        """
        kind = type(function)
        self.budget.spend(1 + len(args) + len(kwargs))
        if kind is BuiltinMethodType or (kind is MethodType and isinstance(function.__self__, str)):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return self._operations.call_method(function, args, kwargs)
        if kind is MethodType:
            self.budget.weigh(args)  # loop.changed compares them
        elif callable(function) and kind not in CALLABLE and not (kind is type and function in CLASSES):
            raise SecurityError(f"chat templates cannot call a {kind.__name__}")
        return self._call(context, function, args, kwargs)

    def concat(self, texts: Any) -> str:
        """Joins the texts that a macro or a block writes."""
        return self.budget.joined(list(texts))

    def wrap_str_format(self, value: Any) -> Any:
        """Returns `str.format` or `str.format_map` within the budget; None for anything else."""
        if super().wrap_str_format(value) is None:
            return None
        text, takes_mapping = str(value.__self__), value.__name__ == "format_map"

        def format_text(*args: Any, **kwargs: Any) -> str:
            named = args[0] if takes_mapping else kwargs
            self.budget.spend(1 + text.count("{"))
            self.budget.cut(text, text.count("{"))
            return LimitedFormatter(self, self.budget).vformat(text, () if takes_mapping else args, named)
        return format_text

    def _call(self, context: Context, function: Any, args: tuple, kwargs: dict) -> Any:
        """Calls something that may call something else."""
        if self.budget.call_depth >= MAX_CALL_DEPTH:
            raise jinja2.TemplateRuntimeError(f"it makes more than {MAX_CALL_DEPTH} calls inside each other")
        self.budget.call_depth += 1
        self.budget.spend(CALL_STEPS)
        try:
            return context.call(function, *args, **kwargs)
        finally:
            self.budget.call_depth -= 1


class PayingTree(NodeTransformer):
    """Rewrites a syntax tree so that its operators, comparisons, loops and macros pay for their work."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Each item costs as many steps as the body has parts; so does each item that a condition rejects."""
        steps = _steps(node.body)
        self.generic_visit(node)
        node.body.insert(0, _payment(node, steps))
        if node.test is not None:
            node.test = _operation("step", node.test, nodes.Const(_steps([node.test])))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        steps = _steps(node.body)
        self.generic_visit(node)
        node.body.insert(0, _payment(node, steps))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [child if isinstance(child, nodes.TemplateData) or _is_text(child) else _operation("text", child)
                      for child in node.nodes]
        return node

    def visit_BinExpr(self, node: nodes.BinExpr) -> nodes.Node:
        self.generic_visit(node)
        return _operation(type(node).__name__.lower(), node.left, node.right)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        """A sum of many parts makes no intermediate texts."""
        first: nodes.Node = node
        others = []
        while isinstance(first, nodes.Add):
            others.append(self.visit(first.right))
            first = first.left
        return _operation("add", self.visit(first), *reversed(others))

    visit_Sub = visit_Mul = visit_Div = visit_FloorDiv = visit_Mod = visit_Pow = visit_BinExpr

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _operation("concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        first = node.ops[0]
        if len(node.ops) > 1:
            node.expr = _operation("compared", node.expr)
            for operand in node.ops:
                operand.expr = _operation("compared", operand.expr)
        elif not (_is_short(first.expr) or (_is_short(node.expr) and first.op not in ("in", "notin"))):
            return _operation(first.op, node.expr, first.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            return _operation("slice", node.node, *(bound or nodes.Const(None) for bound in bounds))
        if not isinstance(node.arg, nodes.Const):
            node.arg = _operation("compared", node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _operation("compared", node.key)
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> NoReturn:
        raise jinja2.TemplateSyntaxError("autoescape is for web pages; chat templates do without", node.lineno)


def make_environment(kind: type[Environment]) -> Environment:
    """Sets up Jinja as Hugging Face's `apply_chat_template` does, except for limits and the pinned date."""
    return kind(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], optimized=False)


def render_parts(template: jinja2.Template, **variables: Any) -> list[str]:
    """Renders a template into parts. Together they are the text.

    Raises:
        TEMPLATE_ERRORS: whatever the template raises.
        TooMuchWork: if it takes too many steps.
    """
    assert isinstance(template.environment, TemplateEnvironment), "make_environment made it"
    budget = template.environment.budget
    budget.start(variables.get("messages"), variables.get("tools"))
    try:
        parts = list(template.root_render_func(template.new_context(variables)))
        budget.write(sum(map(len, parts)))
        text = "".join(parts)
        text.isascii() or text.encode("utf-16-le")  # of encodings the fastest that refuses lone surrogates
    except TooMuchWork as error:
        raise TooMuchWork(f"chat template:{_line(error, template)} {error}") from error
    except Exception as error:  # an expression can raise anything
        raise _template_error(error) from error
    finally:
        budget.end()
    return parts


def makes_text(node: nodes.Node) -> bool:
    """Tells whether a node of a rewritten tree is certain to return a string."""
    return isinstance(node, nodes.Filter) and node.name == "text "


def _require_size(tree: nodes.Template) -> None:
    """
    Raises:
        TemplateSyntaxError: if a tree is too large or too deep for the compiler.
    """
    count = 0
    waiting: list[tuple[nodes.Node, int]] = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > MAX_NESTING:
            raise jinja2.TemplateSyntaxError(f"it nests deeper than {MAX_NESTING} levels", node.lineno)
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())
    if count > MAX_NODES:
        raise jinja2.TemplateError(f"expected at most {MAX_NODES:,} expressions and tags, found {count:,}")


def _operation(name: str, value: nodes.Node, *arguments: nodes.Node) -> nodes.Filter:
    """Returns a call of `Operations`, which the environment has as filters."""
    return nodes.Filter(value, f"{name} ", list(arguments), [], None, None, lineno=value.lineno)


def _payment(node: nodes.Node, steps: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_operation("step", nodes.Const(None), nodes.Const(steps)), lineno=node.lineno)


def _steps(body: list[nodes.Node]) -> int:
    """Returns the steps that evaluating nodes once takes at most, apart from loops and calls."""
    return 1 + sum(1 for node in body for _ in node.find_all(nodes.Node)) // NODES_PER_STEP


def _is_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _is_short(node: nodes.Node) -> bool:
    """Tells whether a node is a constant, or a list of some, that costs nothing to compare with."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(map(_is_short, node.items))
    return isinstance(node, nodes.Const) and (not isinstance(node.value, str) or len(node.value) <= SHORT_CONSTANT)


def _template_error(error: Exception) -> jinja2.TemplateError:
    """Returns an error of bounded length in Jinja's own class."""
    if isinstance(error, jinja2.TemplateError) and len(str(error)) <= MAX_SHOWN:
        return error
    if isinstance(error, SyntaxError):  # of the Python code that Jinja wrote, whose lines mean nothing
        return jinja2.TemplateRuntimeError(error.msg)
    if isinstance(error, RecursionError | MemoryError):  # of a parser, Jinja's or Python's
        return jinja2.TemplateRuntimeError("it nests too deeply")
    if isinstance(error, UnicodeEncodeError):
        return jinja2.TemplateRuntimeError("it writes a lone surrogate, which is no character")
    return jinja2.TemplateRuntimeError(one_line(error)[:MAX_SHOWN])


def _line(error: BaseException, template: jinja2.Template) -> str:
    """Returns the place in the template where an error was raised."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return f" line {line}:" if line else ""


def _strftime_now(directives: str) -> str:
    """Writes the pinned date.

    Raises:
        TemplateError: for a directive whose text depends on the time zone or the platform.
    """
    rest = DATE_DIRECTIVES.sub("", directives)
    if "%" in rest or len(directives) > MAX_SHOWN:
        raise jinja2.TemplateRuntimeError(f"strftime_now({directives[:20]!r}): expected only %a, %B, %d and other "
                                          "parts of a date that are the same everywhere")
    return _pinned_date(directives)


@lru_cache(maxsize=1000)
def _undefined(name: str) -> jinja2.Undefined:
    """Returns what stands for a field that an object does not have."""
    return jinja2.Undefined(obj={}, name=name)


@lru_cache(maxsize=100)
def _pinned_date(directives: str) -> str:
    return PINNED_DATE.strftime(directives)


def _raise_exception(budget: Budget, message: Any) -> NoReturn:
    raise jinja2.TemplateError(budget.text(message)[:MAX_SHOWN])
