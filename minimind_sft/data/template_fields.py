"""Finds out which fields of a conversation a chat template renders, by rendering probes with unique words.

A template that does not know tool calls, reasoning or a role silently renders the rest of the conversation. A model
trained on that would learn an empty answer in place of a call.
"""

import json
from collections.abc import Callable, Sequence
from itertools import count, groupby, islice
from typing import Any, NamedTuple

from minimind_sft.errors import UserError

Render = Callable[[list[dict], list[dict] | None, bool, bool], str | None]
"""(messages, tools, with a generation prompt, thinking) -> text; None if the template refuses the conversation."""

Field = tuple[str, str]
"""A role and one of its fields."""

TOOLS: Field = ("", "tools")
"""The functions on offer belong to the row, not to a message."""

LABELS: dict[Field, str] = {
    TOOLS: "functions on offer",
    ("system", "content"): "a system turn",
    ("user", "content"): "this user turn",
    ("tool", "content"): "a tool's result",
    ("assistant", "reasoning_content"): "reasoning",
    ("assistant", "tool_calls"): "tool calls",
    ("assistant", "content"): "the words of this answer",
}
"""The fields that are probed, as they are called in messages."""

MAX_REPEATS = 2
"""Equal messages in a row, and calls of a message, that are told apart. A template may treat two differently from one;
three count as two."""


class Shape(NamedTuple):
    """Which fields a message has, whatever their text; `calls` counts up to `MAX_REPEATS`."""

    role: str
    content: bool
    calls: int
    reasoning: bool


class Lost(NamedTuple):
    """A field that the template does not render; `message` is the index of its message, None for the row's `tools`."""

    message: int | None
    name: str
    label: str


class NotRendered(UserError):
    """The template does not render a field of the conversation.

    name: the row's name of the field, such as `messages[2].tool_calls`.
    label: the field in words, such as "tool calls".
    """

    def __init__(self, message: str, name: str = "", label: str = ""):
        super().__init__(message)
        self.name, self.label = name, label


class RenderedFields:
    """Knows which fields of a turn a template renders, depending on the messages near it.

    Near a turn are the tools, the system turn, the answer before, the messages since then and the turn itself. Each
    combination of their shapes is probed once. A template that refuses the probe is trusted: it refuses such rows, too.
    """

    def __init__(self, render: Render):
        self._render = render
        self._lost: dict[tuple[tuple[Shape, ...], bool], frozenset[Field]] = {}

    def first_lost(self, messages: Sequence[dict], tools: list[dict] | None) -> Lost | None:
        """Returns a field that the template does not render, of the last turn or a message since the answer before it.

        The last turn is an answer, or messages that wait for one. Earlier answers were checked when they were the last
        turn: templates may drop their reasoning from the history.
        """
        last = len(messages) - 1
        start = next((index for index in reversed(range(last)) if messages[index]["role"] == "assistant"), 0)
        nearby = [*([0] if start and messages[0]["role"] == "system" else []), *range(start, last + 1)]
        shapes = [shape_of(messages[index]) for index in nearby]
        form = tuple(shape for _, group in groupby(shapes) for shape in islice(group, MAX_REPEATS)), bool(tools)
        if form not in self._lost:
            self._lost[form] = self.probe(*form)
        lost = self._lost[form]
        return _name_lost(lost, messages, nearby) if lost else None

    def probe(self, shapes: Sequence[Shape], with_tools: bool) -> frozenset[Field]:
        """Renders a conversation of these shapes; returns the fields whose words are missing from the text."""
        for result in (str, _as_json):  # some templates expect a tool's result to be JSON
            twin = _Twin(shapes, with_tools, result)
            text = self._render(twin.messages, twin.tools, shapes[-1].role != "assistant", shapes[-1].reasoning)
            if text is not None:
                text = text.lower()
                return frozenset(field for field, word in twin.words if word not in text)
        return frozenset()


def _name_lost(lost: frozenset[Field], messages: Sequence[dict], nearby: list[int]) -> Lost | None:
    """Returns the first of the lost fields that the messages use."""
    if TOOLS in lost:
        return Lost(None, "tools", LABELS[TOOLS])
    for index in nearby:
        message = messages[index]
        if message["role"] == "assistant" and index < len(messages) - 1:
            continue
        for (role, name), label in LABELS.items():
            if role == message["role"] and (role, name) in lost and message.get(name):
                beside = " beside its calls" if name == "content" and message.get("tool_calls") else ""
                return Lost(index, name, label + beside)
    return None


class _Twin:
    """A conversation of given shapes in which every field holds a unique word.

    words: (field, word) of every field that the template must render; the answer before the last turn has none.
    """

    def __init__(self, shapes: Sequence[Shape], with_tools: bool, result: Callable[[str], str]):
        self.words: list[tuple[Field, str]] = []
        self._numbers = count()
        self._result = result
        self.tools = [_function(self._word(TOOLS))] if with_tools else None
        self.messages: list[dict] = []
        for position, shape in enumerate(shapes):
            if shape.role == "assistant" and not any(one["role"] == "user" for one in self.messages):
                self.messages.append({"role": "user", "content": self._word(None)})
            is_last = position == len(shapes) - 1
            self.messages.append(self._message(shape, is_wanted=shape.role != "assistant" or is_last))

    def _message(self, shape: Shape, is_wanted: bool) -> dict[str, Any]:
        def word(name: str) -> str:
            return self._word((shape.role, name) if is_wanted else None)

        message: dict[str, Any] = {"role": shape.role, "content": word("content") if shape.content else ""}
        if shape.role == "tool":
            message |= {"content": self._result(message["content"]), "name": "lookup", "tool_call_id": "call00001"}
        if shape.reasoning:
            message["reasoning_content"] = word("reasoning_content")
        if shape.calls:
            message["tool_calls"] = [
                {"type": "function", "id": f"call0000{number + 1}",
                 "function": {"name": word("tool_calls"), "arguments": {"subject": word("tool_calls")}}}
                for number in range(shape.calls)]
        return message

    def _word(self, field: Field | None) -> str:
        word = f"qx{next(self._numbers)}zk"
        if field is not None:
            self.words.append((field, word))
        return word


def shape_of(message: dict) -> Shape:
    """Returns which fields a message has."""
    calls = min(len(message.get("tool_calls", ())), MAX_REPEATS)
    return Shape(message["role"], bool(message["content"].strip()), calls,
                 bool(message.get("reasoning_content", "").strip()))


def _function(name: str) -> dict[str, Any]:
    subject = {"type": "string", "description": "its subject"}
    return {"type": "function", "function": {"name": name, "description": "looks something up", "parameters": {
        "type": "object", "properties": {"subject": subject}, "required": ["subject"]}}}


def _as_json(word: str) -> str:
    return json.dumps({"found": word})
