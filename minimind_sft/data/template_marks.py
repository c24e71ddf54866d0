"""Renders chat templates and tells their control tokens from the same text in the data.

The text of a control token must stay text if it comes from the data, and become the token if the template wrote it.
Marked text has private-use characters (`tokenizer.Marks`) where the template wrote control tokens; later only marks
become control tokens.

Why data cannot become a control token, whatever the template does with it:

1. A template is rendered once, with text that knows the origin of each character (`traced_text`). Of the template are
   string constants of its source, the names of roles, bos/eos/pad, and the header that stands for a missing generation
   prompt: all that is fixed before the data is known. Everything else is data.
2. Concatenating, slicing, stripping, splitting, replacing and filling in keep the origin of each character that they
   copy. Everything else loses it: what `striptags`, `'%c'`, `unicode_escape` or a method called on the data returns is
   data. No operation gives an origin to a character that had none.
3. Only a control token whose characters are all the template's becomes a mark. `'<|%s|>' % role` does;
   `'<|%s|>' % content` does not, as its middle is the data's.
4. None of the marks occurs in the data, and a template that makes private-use characters itself is refused. So no text
   can spell one. All renderings of a conversation have the same marks.

A template that looks into the data decides for itself what it writes then, as in `'/no_think' in content`: what it
writes is its own. Tags in an assistant's message have an origin of their own, and only a whole tag becomes a mark.

That a template's own control tokens do not become text, because an operation lost their origin, is checked on probes
without control tokens: there, all of them are the template's.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from minimind_sft.data.template_budget import TooMuchWork
from minimind_sft.data.template_fields import RenderedFields
from minimind_sft.data.template_sandbox import TEMPLATE_ERRORS, make_environment, render_parts
from minimind_sft.data.template_tracing import TracingEnvironment
from minimind_sft.data.tokenizer import MARKS_END, MARKS_START, Marks, Tokenizer
from minimind_sft.data.traced_text import (
    DATA,
    TAG,
    TEMPLATE_RUN,
    TracedText,
    of_template,
    origins_of,
    with_tags,
)
from minimind_sft.data.turns import ROLES
from minimind_sft.errors import UserError, one_line

THINKING_FLAGS = ("enable_thinking", "open_thinking", "thinking")
"""The variables in which templates read whether the model should think."""

VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token",
             "unk_token")
"""Variables of every rendering; some tokenizers lack some of the tokens."""

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

TEMPLATE_ROLES = {role: of_template(role) for role in ROLES}
PRIVATE_USE = re.compile(f"[{chr(MARKS_START)}-{chr(MARKS_END)}]")
MAX_MARKED_TEXTS = 1000
"""Texts of the template alone, such as what it writes between two turns, that are remembered with their marks."""
OWN_RUNS = re.compile(TEMPLATE_RUN + b"|%c+" % TAG)


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
        UserError: if the source is not a Jinja template, has neither a generation prompt nor a constant header, or
            makes control tokens in a way that cannot be traced.
    """

    def __init__(self, tokenizer: Tokenizer, source: str):
        if PRIVATE_USE.search(source):
            raise UserError("chat template: contains private-use characters above U+F0000, which mark control tokens")
        self._tokenizer, self._source = tokenizer, source
        # In assistant messages the tags are control tokens whether or not the template writes them.
        control = tokenizer.control_tokens("\n".join([source, *ASSISTANT_TAGS]))
        self._control_pattern = _any_of(control)
        self._tag_pattern = _any_of(set(ASSISTANT_TAGS) & set(control))
        self._marked_texts: dict[tuple[str, bytes, str], str] = {}
        self._marked_parts: dict[tuple, tuple[list[TracedText], str]] = {}
        """By shield and the identities of parts; with the parts, so that no other object gets their identity."""
        self._special = {name: of_template(token) for name, token in tokenizer.special.items()}
        try:
            self._template = make_environment(TracingEnvironment).template(source)
        except jinja2.TemplateError as error:
            raise UserError(f"chat template: {one_line(error)}") from error
        self.header = ""
        self.content_in_parts = False
        self.content_in_parts = not self._writes_content()
        self.header = self._find_header()
        self.fields = RenderedFields(self.probe_text)

    @property
    def variables(self) -> frozenset[str]:
        """The variables that the template reads besides those that every rendering has.

        One that it also assigns is among them only if it asks whether the variable is defined.
        """
        tree = self._template.environment.parse(self._source)
        assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
        asked = {test.node.name for test in tree.find_all(nodes.Test)
                 if test.name == "defined" and isinstance(test.node, nodes.Name)}
        own = {*self._template.environment.globals, *self._special, *VARIABLES, *THINKING_FLAGS}
        return frozenset(find_undeclared_variables(tree) - (assigned - asked) - own)

    def with_variables(self, values: Mapping[str, Any]) -> "MarkedTemplate":
        """Returns the template with values for its variables; text in them is data."""
        changed = copy(self)
        changed._special = {**self._special, **values}
        return changed

    def plain_texts(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                    place: str) -> list[str]:
        """Renders the requests as plain text.

        Raises:
            UserError: at `place`, if the template refuses the conversation.
        """
        return ["".join(parts) for parts in self._renderings(messages, tools, requests, place)]

    def probe_text(self, messages: Sequence[dict], tools: list[dict] | None, ask: bool,
                   thinking: bool | None) -> str | None:
        """Renders a conversation without control tokens, with or without the generation prompt.

        Returns None if the template refuses it.

        Raises:
            UserError: if the template writes a control token that cannot be traced to it.
        """
        request = Request(len(messages), ask, thinking)
        try:
            ((*parts,),) = self._render(messages, tools, [request])
        except TEMPLATE_ERRORS:
            return None
        text, origins = "".join(parts), b"".join(map(origins_of, parts))
        own = {run.start() + token.start() for run in OWN_RUNS.finditer(origins)
               for token in self._control_pattern.finditer(text[run.start():run.end()])}
        for token in self._control_pattern.finditer(text):
            if token.start() not in own:
                raise UserError(f"chat template: it makes {token[0]} in a way that cannot be told from text of the "
                                "data; it should write control tokens as they are")
        return text

    def marked_texts(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                     place: str) -> tuple[list[str], Marks]:
        """Renders the requests as marked text.

        Raises:
            UserError: at `place`, if the template refuses the conversation, or if it leaves no characters to mark
                control tokens with.
        """
        renderings = self._renderings(messages, tools, requests, place)
        texts = list(map("".join, renderings))
        strings = list(filter(_is_beyond_16_bits, _data_strings(messages, tools)))
        private = {character for text in texts if _is_beyond_16_bits(text) for character in PRIVATE_USE.findall(text)}
        if private and (made := private.difference(*strings)):
            raise UserError(f"{place}: the chat template makes the private-use character U+{ord(min(made)):X}, which "
                            "the text does not contain")
        try:  # the same marks for all renderings of a conversation, whatever each of them leaves out
            marks = self._tokenizer.marks(*filter(PRIVATE_USE.search, strings))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        return [self._mark(parts, marks) for parts in renderings], marks

    def _mark(self, parts: list[str], marks: Marks) -> str:
        """Returns the text with marks for the template's own control tokens and for the tags of assistant messages."""
        marked: list[str] = []
        own: list[TracedText] = []
        for part in parts:
            if type(part) is TracedText:
                own.append(part)
                continue
            if own:
                marked.append(self._marked(own, marks))
                own = []
            marked.append(part)
        if own:
            marked.append(self._marked(own, marks))
        return "".join(marked)

    def _marked(self, parts: list[TracedText], marks: Marks) -> str:
        """Returns what `_mark` returns for parts that all have origins."""
        identities = marks.shield, *map(id, parts)  # constants are the same objects in each rendering
        if identities in self._marked_parts:
            return self._marked_parts[identities][1]
        text, origins = "".join(parts), b"".join(map(origins_of, parts))
        if DATA in origins:
            return self._mark_runs(text, origins, marks)
        if len(self._marked_parts) == MAX_MARKED_TEXTS:
            self._marked_parts.clear()
        marked = self._marked_text(text, origins, marks)
        self._marked_parts[identities] = parts, marked
        return marked

    def _marked_text(self, text: str, origins: bytes, marks: Marks) -> str:
        key = text, origins, marks.shield
        found = self._marked_texts.get(key)
        if found is None:
            if len(self._marked_texts) == MAX_MARKED_TEXTS:
                self._marked_texts.clear()
            found = self._marked_texts[key] = self._mark_runs(text, origins, marks)
        return found

    def _mark_runs(self, text: str, origins: bytes, marks: Marks) -> str:
        parts, position = [], 0
        for run in OWN_RUNS.finditer(origins):
            pattern = self._tag_pattern if origins[run.start()] == TAG else self._control_pattern
            own = pattern.split(text[run.start():run.end()])
            own[1::2] = map(marks.of_token.__getitem__, own[1::2])
            parts += [text[position:run.start()], *own]
            position = run.end()
        return "".join([*parts, text[position:]])

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

    def _renderings(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                    place: str) -> list[list[str]]:
        try:
            return self._render(messages, tools, requests)
        except TooMuchWork as error:
            raise TooMuchWork(f"{place}: {error}") from error
        except TEMPLATE_ERRORS as error:
            raise UserError(f"{place}: the chat template refuses the conversation: {one_line(error)}") from error

    def _render(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request]) -> list[list[str]]:
        """Renders each of the requests into parts whose characters have origins."""
        shown = list(map(self._shown, messages))
        renderings = []
        for count, add_generation_prompt, thinking in requests:
            flags = {} if thinking is None else dict.fromkeys(THINKING_FLAGS, thinking)
            parts = render_parts(self._template, messages=shown[:count], tools=tools, documents=None,
                                 add_generation_prompt=add_generation_prompt, **self._special, **flags)
            if add_generation_prompt and self.header:
                parts.append(of_template(self.header))
            renderings.append(parts)
        return renderings

    def _shown(self, message: dict) -> dict:
        """Returns a message as templates read it."""
        # Whether a turn is learned must not change what the model sees.
        shown = {name: value for name, value in message.items() if name != "train"}
        if message["role"] == "assistant":
            shown = {name: self._with_tags(value) if isinstance(value, str) else map_strings(value, self._with_tags)
                     for name, value in shown.items()}
        shown["role"] = TEMPLATE_ROLES.get(message["role"], message["role"])
        if shown.get("reasoning_content"):  # gpt-oss templates read it as `thinking`, as Hugging Face offers it
            shown = {"thinking": shown["reasoning_content"], **shown}
        if self.content_in_parts:
            shown["content"] = [{"type": "text", "text": shown["content"]}]
        return shown

    def _with_tags(self, text: str) -> str:
        return with_tags(text, self._tag_pattern) if "<" in text else text


def _any_of(texts: Iterable[str]) -> re.Pattern:
    """Returns a pattern for the longest of `texts`, as a group for `split`; it matches nothing if there are none."""
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(f"({alternatives or '(?!)'})")


def _is_beyond_16_bits(text: str) -> bool:
    """Tells whether text has characters above U+FFFF, faster than a search for them."""
    return not text.isascii() and len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text)


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
    """Yields every string in a JSON value, keys included, in any order."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            left.extend(part)
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
