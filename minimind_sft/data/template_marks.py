"""Renders chat templates and tells their control tokens from the same text in the data.

The text of a control token must stay text if it comes from the data, and become the token if the template wrote it.
Marked text has private-use characters (`tokenizer.Marks`) where the template wrote control tokens; later only marks
become control tokens. There are two ways to mark: mark the constants in the template's syntax tree, or shield every
place in the data where a control token could begin. The result counts only if it equals the plain rendering once the
marks are replaced by their tokens.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from minimind_sft.data.template_fields import RenderedFields
from minimind_sft.data.template_sandbox import TEMPLATE_ERRORS, compile_tree, make_environment
from minimind_sft.data.tokenizer import MARKS_END, MARKS_START, Marks, Tokenizer
from minimind_sft.errors import UserError, one_line

THINKING_FLAGS = ("enable_thinking", "open_thinking", "thinking")
"""The variables in which templates read whether the model should think."""

ASSISTANT_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Control tokens inside an assistant message; anywhere else in the data they are text."""

PROBE = ({"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"})
"""A conversation to test templates with."""

SYSTEM_PROBE = {"role": "system", "content": "SYSTEM"}
HEADER_PROBES = (
    PROBE,
    (SYSTEM_PROBE, *PROBE),
    (*PROBE, {"role": "user", "content": "LATER"}, {"role": "assistant", "content": "OTHER"}),
    ({"role": "user", "content": "A QUESTION\nOF TWO LINES"}, {"role": "assistant", "content": "1, 2"}),
)
"""A constant header is the same before the last answer of each of these."""

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


class Request(NamedTuple):
    """One rendering of a conversation: `messages` messages from the start, with or without the generation prompt.

    thinking: None lets the template decide.
    """

    messages: int
    add_generation_prompt: bool
    thinking: bool | None


class MarkedTemplate:
    """A compiled template that renders plain or marked text.

    Attributes:
        header: for a template without a generation prompt, the constant text that it writes between history and
            answer, which then serves as generation prompt; otherwise "".
        content_in_parts: whether content must be passed as a list of parts.
        fields: which fields of a turn the template renders.

    Raises:
        UserError: if the source is not a Jinja template, or has neither a generation prompt nor a constant header.
    """

    def __init__(self, tokenizer: Tokenizer, source: str):
        if re.search(f"[{chr(MARKS_START)}-{chr(MARKS_END)}]", source):
            raise UserError("chat template: contains private-use characters above U+F0000, which mark control tokens")
        self._tokenizer, self._source = tokenizer, source
        # In assistant messages the tags are control tokens whether or not the template writes them.
        control = tokenizer.control_tokens("\n".join([source, *ASSISTANT_TAGS]))
        self._control_pattern = _any_of(control)
        # Text without the first character of any control token contains no control token and no beginning of one.
        self._opening_pattern = _any_of({token[0] for token in control})
        self._tag_pattern = _any_of(set(ASSISTANT_TAGS) & set(control))
        self._environment = make_environment()
        self._marked_templates: dict[str, jinja2.Template] = {}
        try:
            tree = self._environment.parse(source)
            self._continuations = continuations(tree, control)
            self._template = compile_tree(self._environment, tree)
            self._ways = ((self._with_shielded_data,) if self._continuations else
                          (self._with_marked_template, self._with_shielded_data))
        except jinja2.TemplateError as error:
            raise UserError(f"chat template: {one_line(error)}") from error
        self.header = ""
        self.content_in_parts = False
        self.content_in_parts = not self._writes_content()
        self.header = self._find_header()
        self.fields = RenderedFields(self.probe_text)

    def plain_texts(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                    place: str) -> list[str]:
        """Renders the requests as plain text.

        Raises:
            UserError: at `place`, if the template refuses the conversation.
        """
        try:
            return self._texts(self._template, self._tokenizer.special, messages, tools, requests, self.header)
        except TEMPLATE_ERRORS as error:
            raise UserError(f"{place}: the chat template refuses the conversation: {one_line(error)}") from error

    def probe_text(self, messages: Sequence[dict], tools: list[dict] | None, ask: bool,
                   thinking: bool | None) -> str | None:
        """Renders a conversation with or without the generation prompt; returns None if the template refuses it."""
        request = Request(len(messages), ask, thinking)
        try:
            return self._texts(self._template, self._tokenizer.special, messages, tools, [request], self.header)[0]
        except TEMPLATE_ERRORS:
            return None

    def marked_texts(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                     place: str) -> tuple[list[str], Marks]:
        """Renders the requests as marked text.

        Raises:
            UserError: at `place`, if the template refuses the conversation, or if its control tokens cannot be told
                from the data.
        """
        plain = self.plain_texts(messages, tools, requests, place)
        strings = _data_strings(messages, tools)
        data = "\n".join(strings)
        try:
            marks = self._tokenizer.marks(data)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        completed = self._continuations and any(map(self._completes_token, strings))
        if not completed and not self._opening_pattern.search(data):
            return [self._mark(text, marks) for text in plain], marks
        for way in self._ways:
            try:
                texts = way(messages, tools, requests, marks)
            except TEMPLATE_ERRORS:
                continue
            if list(map(marks.spelled, texts)) == plain:
                return texts, marks
        raise UserError(f"{place}: the text spells control tokens, and the chat template treats it so that they "
                        "cannot be told from its own")

    def _with_marked_template(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                              marks: Marks) -> list[str]:
        """Renders with marks in the template's constants and for the tags of assistant messages."""
        if marks.shield not in self._marked_templates:
            tree = self._environment.parse(self._source)
            for constant in written_constants(tree):
                _set_text(constant, self._mark(_text(constant), marks))
            self._marked_templates[marks.shield] = compile_tree(self._environment, tree)
        special = {name: marks.of_token.get(token, token) for name, token in self._tokenizer.special.items()}
        messages = _change_messages(messages, partial(self._tag_pattern.sub, lambda tag: marks.of_token[tag[0]]), str)
        header = self._mark(self.header, marks)
        return self._texts(self._marked_templates[marks.shield], special, messages, tools, requests, header)

    def _with_shielded_data(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                            marks: Marks) -> list[str]:
        """Renders with shields in the data, so that every control token in the text is the template's own.

        A shield follows each character that could begin a control token and precedes text that could complete one; the
        tags of assistant messages get none.
        """
        def shield(text: str) -> str:
            shielded = self._opening_pattern.sub(lambda opening: opening[0] + marks.shield, text)
            if not self._completes_token(text):
                return shielded
            blank = len(text) - len(text.lstrip())
            return shielded[:blank] + marks.shield + shielded[blank:]

        def shield_all_but_tags(text: str) -> str:
            parts = self._tag_pattern.split(text)
            parts[0::2] = map(shield, parts[0::2])
            return "".join(parts)

        messages = _change_messages(messages, shield_all_but_tags, shield)
        texts = self._texts(self._template, self._tokenizer.special, messages, map_strings(tools, shield), requests,
                            self.header)
        return [self._mark(text, marks).replace(marks.shield, "") for text in texts]

    def _completes_token(self, text: str) -> bool:
        """Tells whether text, even if trimmed, could continue a constant that ends inside a control token."""
        text = text.strip()
        return bool(text) and any(text.startswith(rest) or rest.startswith(text) for rest in self._continuations)

    def _writes_content(self) -> bool:
        """Tells whether the template renders content passed as a string; those for images expect a list of parts."""
        text = self.probe_text(PROBE, None, ask=False, thinking=None)
        return text is not None and all(message["content"] in text for message in PROBE)

    def _find_header(self) -> str:
        """Returns the text between history and answer of a template without a generation prompt; "" if it has one.

        Blanks alone are not a header: as in `[/INST] answer`, they belong to the answer's first word.

        Raises:
            UserError: if the text differs from answer to answer.
        """
        headers = []
        for messages in HEADER_PROBES:
            history, asked, full = (self.probe_text(some, None, ask, False) for some, ask in
                                    ((messages[:-1], False), (messages[:-1], True), (messages, False)))
            if history is None or asked is None or full is None:
                continue
            if asked != history or not full.startswith(history):
                return ""
            header, answer, _ = full[len(history):].partition(messages[-1]["content"])
            headers += [header if header.strip() else ""] if answer else []
        other = next((header for header in headers if header != headers[0]), None)
        if other is not None:
            raise UserError("chat template: it has no generation prompt, and what it writes before an answer is not "
                            f"constant: {headers[0]!r} and {other!r}")
        return headers[0] if headers else ""

    def _mark(self, text: str, marks: Marks) -> str:
        """Replaces control tokens by their marks."""
        parts = self._control_pattern.split(text)
        parts[1::2] = map(marks.of_token.__getitem__, parts[1::2])
        return "".join(parts)

    def _texts(self, template: jinja2.Template, special: dict[str, str], messages: Sequence[dict],
               tools: list[dict] | None, requests: list[Request], header: str) -> list[str]:
        shown = []
        for message in messages:
            # Whether a turn is learned must not change what the model sees.
            message = {name: value for name, value in message.items() if name != "train"}
            if message.get("reasoning_content"):  # gpt-oss templates read it as `thinking`, as Hugging Face offers it
                message = {"thinking": message["reasoning_content"], **message}
            if self.content_in_parts:
                message["content"] = [{"type": "text", "text": message["content"]}]
            shown.append(message)
        texts = []
        for count, add_generation_prompt, thinking in requests:
            flags = {} if thinking is None else dict.fromkeys(THINKING_FLAGS, thinking)
            text = template.render(messages=shown[:count], tools=tools, documents=None,
                                   add_generation_prompt=add_generation_prompt, **special, **flags)
            texts.append(text + header if add_generation_prompt else text)
        return texts


def _change_messages(messages: Sequence[dict], change_assistant: Callable[[str], str],
                     change_other: Callable[[str], str]) -> list[dict]:
    """Changes every string of the messages except their roles."""
    changed = []
    for message in messages:
        change = change_assistant if message["role"] == "assistant" else change_other
        changed.append({name: value if name == "role" else map_strings(value, change)
                        for name, value in message.items()})
    return changed


def _any_of(texts: Iterable[str]) -> re.Pattern:
    """Returns a pattern for the longest of `texts`, as a group for `split`; it matches nothing if there are none."""
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(f"({alternatives or '(?!)'})")


def written_constants(tree: nodes.Node) -> Iterator[nodes.Const | nodes.TemplateData]:
    """Yields the string constants that a template writes, rather than compares or passes to a method."""
    if isinstance(tree, nodes.TemplateData) or (isinstance(tree, nodes.Const) and isinstance(tree.value, str)):
        yield tree
    elif not isinstance(tree, nodes.Compare | nodes.Test):
        for child in tree.iter_child_nodes(exclude=_unwritten_fields(tree)):
            yield from written_constants(child)


def continuations(tree: nodes.Node, tokens: Iterable[str]) -> tuple[str, ...]:
    """Returns the rests of control tokens inside which a constant ends, as in `'<|' + message.role + '|>'`.

    No constant holds such a token, so marking constants misses it, and data that begins with the rest completes it.
    """
    ends = {_text(constant) for constant in written_constants(tree)}
    return tuple({token[length:] for token in tokens for length in range(1, len(token))
                  if any(end.endswith(token[:length]) for end in ends)})


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Applies `change` to every string in a JSON value, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_strings(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [map_strings(part, change) for part in value]
    return value


def _data_strings(messages: Sequence[dict], tools: list[dict] | None) -> list[str]:
    """Returns every string of a conversation except roles and the names of message fields, which are not data."""
    strings: list[str] = []
    for message in messages:
        for name, value in message.items():
            if name != "role":
                strings += [value] if isinstance(value, str) else iter_strings(value)
    return [*strings, *iter_strings(tools)] if tools else strings


def iter_strings(value: Any) -> Iterator[str]:
    """Yields every string in a JSON value, keys included."""
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
    # Methods receive constants to compare with or to cut at; macros receive them to be written.
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
