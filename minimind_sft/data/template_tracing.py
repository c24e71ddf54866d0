"""Compiles chat templates so that their own text is `TracedText`: rendered text tells it from text of the data.

Text of a template are the string constants in its source, and what Jinja computes of them while it compiles.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from minimind_sft.data.template_sandbox import TemplateEnvironment, makes_text
from minimind_sft.data.traced_text import TracedText, format_traced, of_template


class TracingCodeGenerator(CodeGenerator):
    """Writes Python in which string constants are text of the template."""

    environment: "TracingEnvironment"
    _comparing = False

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        # A comparison has no text as its result, and is faster with ordinary strings.
        outer, self._comparing = self._comparing, True
        super().visit_Compare(node, frame)
        self._comparing = outer

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        self.write(self._constant(node.as_const(frame.eval_ctx)))

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_TemplateData(node, frame)
        else:
            self.write(self._constant(node.data))

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if not makes_text(node):
            super()._output_child_pre(node, frame, finalize)

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if not makes_text(node):
            super()._output_child_post(node, frame, finalize)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._constant("".join(group))

    def _constant(self, value: Any) -> str:
        """Returns the expression of a constant."""
        if type(value) is str and not self._comparing:
            return self.environment.name_of(value)
        if type(value) is list:
            return f"[{', '.join(map(self._constant, value))}]"
        if type(value) is tuple:
            return f"({''.join(f'{self._constant(part)}, ' for part in value)})"
        if type(value) is dict:
            return f"{{{', '.join(f'{self._constant(key)}: {self._constant(part)}' for key, part in value.items())}}}"
        return str(value) if isinstance(value, float) else repr(value)


class TracingEnvironment(TemplateEnvironment):
    """The sandbox for templates whose text is traced."""

    code_generator_class = TracingCodeGenerator

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._constants: dict[str, TracedText] = {}

    def name_of(self, text: str) -> str:
        """Returns the name of a constant in the Python that is generated."""
        name = f"text_{len(self._constants)}"
        self._constants[name] = of_template(text)
        return name

    def template(self, source: str) -> jinja2.Template:
        """Compiles a template.

        Raises:
            TemplateSyntaxError: if it is not one.
        """
        self._constants = {}
        code = self.compile(source)
        namespace = {"environment": self, "__file__": code.co_filename, **self._constants}
        exec(code, namespace)
        # Each rendering copies the globals, and the ChainMap of `make_globals` is slow to copy.
        return self.template_class.from_module_dict(self, namespace, dict(self.globals))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Wraps `format` as the sandbox does, and keeps the origins of the template's text."""
        safe = super().wrap_str_format(value)
        text = getattr(value, "__self__", None)
        if safe is None or type(text) is not TracedText or value.__name__ != "format":
            return safe

        def traced(*values: Any, **names: Any) -> str:
            return format_traced(text, safe, *values, **names)

        return traced
