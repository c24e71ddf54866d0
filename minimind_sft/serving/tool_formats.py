"""How a chat template writes the calls of an answer, found by letting it write some."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeAlias

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError


class Slot(Enum):
    """A place in a call that differs from call to call.

    ID: nine letters and digits that name the call, as Mistral's templates write them.
    """

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"


Parts: TypeAlias = tuple[str | Slot, ...]


class Call(NamedTuple):
    """A call as data."""

    name: str
    arguments: Mapping[str, Any]
    id: str = "call00001"


@dataclass(frozen=True)
class Pairs:
    """Arguments that are written one by one instead of as a JSON object.

    Each is `before_name` NAME `before_value` VALUE `after_value`; nothing is between two. A string is written as it is,
    any other value as JSON.

    constants: true, false and null are written as in "json" or as in "python".
    """

    before_name: str
    before_value: str
    after_value: str
    constants: Literal["json", "python"] = "json"

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Returns the text of the arguments."""
        return "".join(f"{self.before_name}{name}{self.before_value}{self.value_text(value)}{self.after_value}"
                       for name, value in arguments.items())

    def value_text(self, value: Any) -> str:
        """Returns the text of one value."""
        if isinstance(value, str):
            return value
        if self.constants == "python" and (value is None or isinstance(value, bool)):
            return str(value)
        return to_json(value)


class CallObject(NamedTuple):
    """A call that is written as a JSON object.

    before, after: text around the object.
    name, arguments: the keys that lead to them.
    paths: the keys that lead to each of its members.
    """

    before: str
    name: tuple[str, ...]
    arguments: tuple[str, ...]
    paths: frozenset[tuple[str, ...]]
    after: str


@dataclass(frozen=True)
class ToolFormat:
    """The calls of an answer are: opening, call, between, call, ..., call, closing. Text may stand before and after.

    call: text and slots, in their order, as in ('<tool_call>\\n{"name": "', NAME, '", "arguments": ', ARGUMENTS,
        '}\\n</tool_call>').
    between: text between two calls; None if an answer has at most one.
    pairs: how the arguments are written; None: as a JSON object.
    """

    opening: str
    call: Parts
    between: str | None
    closing: str
    pairs: Pairs | None = None

    @classmethod
    def of(cls, template: ChatTemplate) -> "ToolFormat":
        """Finds out how a template writes calls, or, if it writes none, which format it describes to the model.

        Raises:
            UserError: if it does not write calls, or in a way that cannot be read back.
        """
        return _Probe(template).find()

    @property
    def beginning(self) -> str:
        """The text of an answer's first call up to the first part that differs from call to call."""
        first = self.call[0]
        return self.opening + (first if isinstance(first, str) else "")

    @property
    def mark(self) -> str:
        """The text that tells a call from other text, such as `<tool_call>`; "" if there is none, as in Llama 3's."""
        mark = MARK.match(self.beginning.lstrip())
        return mark[0] if mark and len(mark[0]) >= MIN_MARK else ""

    def write(self, calls: Sequence[Call]) -> str:
        """Returns the text of calls, as the template writes it."""
        return self.opening + (self.between or "").join(map(self._write_call, calls)) + self.closing

    @property
    def call_object(self) -> CallObject | None:
        """How a call is written as a JSON object; None if it is not one."""
        call = self._write_call(NONE)
        start = call.find("{")
        while start >= 0 and not self.pairs:
            try:
                value, end = json.JSONDecoder().raw_decode(call, start)
            except json.JSONDecodeError:
                value, end = None, start
            members = dict(_members(value))
            name = next((path for path, inner in members.items() if inner == NONE.name), None)
            arguments = next((path for path, inner in members.items() if inner == {}), None)
            if name and arguments:
                return CallObject(call[:start], name, arguments, frozenset(members), call[end:])
            start = call.find("{", start + 1)
        return None

    def _write_call(self, call: Call) -> str:
        arguments = self.pairs.write(call.arguments) if self.pairs else to_json(call.arguments)
        texts = {Slot.NAME: call.name, Slot.ARGUMENTS: arguments, Slot.ID: call.id}
        return "".join(part if isinstance(part, str) else texts[part] for part in self.call)


def _members(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the members of an object and those of objects in it, each with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), inner
            yield from _members(inner, (*path, key))


def to_json(value: Any) -> str:
    """Returns JSON as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)


MARK = re.compile(r"\[?[^\s{(\[]*")
MIN_MARK = 3
"""Characters: a shorter mark, such as a bracket, is no sign of a call unless the answer begins with it."""
NO_CALLS = "the chat template does not write tool calls"
UNREADABLE = "the chat template writes tool calls in a way that cannot be read back"
QUESTION = {"role": "user", "content": "qxqzk"}
DESCRIPTION = re.compile(r'<tool_call>\s*\{\\?"name\\?": .*, \\?"arguments\\?": .*\}\s*</tool_call>|'
                         r"(?i:json) .*\barguments .*<tool_call></tool_call>")
"""An example of a call, or the words for it."""
TAGGED_JSON = ToolFormat("", ('<tool_call>\n{"name": "', Slot.NAME, '", "arguments": ', Slot.ARGUMENTS,
                              "}\n</tool_call>"), "\n", "")
ONE = Call("qxnazk", {"qxkazk": "qxvazk"})
TWO = Call("qxnbzk", {"qxkbzk": "qxvbzk"}, "call00002")
PAIR = Call(ONE.name, {**ONE.arguments, **TWO.arguments})
NONE = Call(ONE.name, {})
VALUES = {"text": "two words\n<b> \u4f60", "number": -1.5, "whole": 7, "yes": True, "no": False, "nothing": None,
          "list": ["a b", 1, None], "object": {"k": {"inner": [True, "x"]}}}
"""Arguments that show how each kind of value is written."""


class _Probe:
    """Lets a template write calls whose words occur nowhere else, and takes the text apart at these words."""

    def __init__(self, template: ChatTemplate):
        self._template = template
        self._tokens = template.tokenizer.added_tokens

    def find(self) -> ToolFormat:
        one = self._answer([ONE])
        if ONE.name not in one or "qxvazk" not in one:
            return self._described()
        arguments = _find_object(one, ONE.arguments)
        found = self._with_pairs(one) if arguments is None else self._with_object(one)
        examples = [[ONE], [NONE], [Call("f", {"a": "x", "b": "y"})], [Call("get_it-2", VALUES)]]
        if found.between is not None:
            examples += [[ONE, TWO], [Call("f", VALUES), Call("g", {}, "call00002"), Call("h", {}, "call00003")]]
        if any(self._answer(example).strip() != found.write(example).strip() for example in examples):
            raise UserError(UNREADABLE)
        first, last = found.call[0], found.call[-1]
        if not isinstance(first, str) or (found.pairs and not (isinstance(last, str) and last.strip())):
            raise UserError(UNREADABLE)
        if not found.call_object and found.call.index(Slot.NAME) > found.call.index(Slot.ARGUMENTS):
            raise UserError(UNREADABLE)
        return found

    def _described(self) -> ToolFormat:
        """Returns the format that the template describes to the model, as SmolLM3's does without ever writing a call.

        Raises:
            UserError: if it is not JSON between tags.
        """
        if DESCRIPTION.search(self._template.render([QUESTION], _tools([ONE]), True, False)):
            return TAGGED_JSON
        raise UserError(NO_CALLS)

    def _with_object(self, one: str) -> ToolFormat:
        start, call, end = _take_apart(one, {ONE.name: Slot.NAME, to_json(ONE.arguments): Slot.ARGUMENTS,
                                             ONE.id: Slot.ID})
        return self._around(start, call, end)

    def _with_pairs(self, one: str) -> ToolFormat:
        found = self._pairs(one)
        start, call, end = _take_apart(one, {ONE.name: Slot.NAME, found.write(ONE.arguments): Slot.ARGUMENTS,
                                             ONE.id: Slot.ID})
        constants: list[Literal["json", "python"]] = ["json", "python"]
        for constant in constants:
            pairs = Pairs(found.before_name, found.before_value, found.after_value, constant)
            around = self._around(start, call, end, pairs)
            if self._answer([Call("f", VALUES)]).strip() == around.write([Call("f", VALUES)]).strip():
                return around
        raise UserError(UNREADABLE)

    def _pairs(self, one: str) -> Pairs:
        """Returns how pairs are written, from answers with none, one and two of them."""
        (key, value), (other_key, other_value) = PAIR.arguments.items()
        none, two = self._answer([NONE]), self._answer([PAIR])
        try:
            head, before, between_names, rest = _cut(one, ONE.name, key, value)
            _, _, _, middle, _, _ = _cut(two, ONE.name, key, value, other_key, other_value)
            around = none.removeprefix(head + ONE.name)
        except ValueError:
            raise UserError(UNREADABLE) from None
        splits = [(around[:at], around[at:]) for at in range(1, len(around) + 1)]
        for start, end in sorted(splits, key=lambda split: (split[0][-1].isspace(), len(split[0])), reverse=True):
            if before.startswith(start) and rest.endswith(end):
                pairs = Pairs(before[len(start):], between_names, rest[:len(rest) - len(end)])
                if middle == pairs.after_value + pairs.before_name:
                    return pairs
        raise UserError(UNREADABLE)

    def _around(self, start: str, call: Parts, end: str, pairs: Pairs | None = None) -> ToolFormat:
        """Tells what belongs to each call from what stands around all of them."""
        whole = ToolFormat("", _without_empty(start, *call, end), None, "", pairs)
        try:
            both = self._answer([ONE, TWO])
        except UserError:
            return whole
        one = whole.write([ONE])
        if TWO.name not in both or not both.startswith(one[:len(one) - len(end)]):
            return whole
        inner = ToolFormat("", call, None, "", pairs)
        first, second = inner.write([ONE]), inner.write([TWO])
        middle = both.removeprefix(start + first).removesuffix(second + end)
        if start + first + middle + second + end != both:
            raise UserError(UNREADABLE)
        after = self._common(middle, end)
        before = self._common(middle[len(after):][::-1], start[::-1], backwards=True)[::-1]
        opening, closing = start[:len(start) - len(before)], end[len(after):]
        between = middle[len(after):len(middle) - len(before)]
        return ToolFormat(opening, _without_empty(before, *call, after), between, closing, pairs)

    def _common(self, one: str, other: str, backwards: bool = False) -> str:
        """Returns the beginning that both texts have, without a part of a control token."""
        length = next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                      min(len(one), len(other)))
        for text in (one, other):
            for token in self._tokens:
                token = token[::-1] if backwards else token
                start = text.find(token)
                while start >= 0:
                    if start < length < start + len(token):
                        length = start
                    start = text.find(token, start + 1)
        return one[:length]

    def _answer(self, calls: Sequence[Call]) -> str:
        """Returns what the template writes for an answer with these calls, up to the end of the turn."""
        made = [{"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in calls]
        answer = {"role": "assistant", "content": "", "tool_calls": made}
        tools = _tools(calls)
        try:
            prompt = self._template.render([QUESTION], tools, True, False)
            full = self._template.render([QUESTION, answer], tools, False, False)
        except UserError as error:
            raise UserError(f"{NO_CALLS}: {error}") from error
        if not full.startswith(prompt):
            raise UserError(UNREADABLE)
        return full[len(prompt):].partition(self._template.end_of_turn)[0]


def _tools(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Returns descriptions of the functions that are called."""
    return [{"type": "function", "function": {"name": call.name, "description": "does it", "parameters": {
        "type": "object", "properties": {name: {"type": "string", "description": "it"} for name in call.arguments},
        "required": []}}} for call in calls]


def _find_object(text: str, wanted: Mapping[str, Any]) -> str | None:
    """Returns the JSON of an object in a text; None if the text has no such object."""
    start = text.find("{")
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError:
            value = None
        if value == wanted:
            return text[start:end]
        start = text.find("{", start + 1)
    return None


def _take_apart(text: str, slots: Mapping[str, Slot]) -> tuple[str, Parts, str]:
    """Returns the text before the first slot, the slots with the text between them, and the text after the last.

    Raises:
        UserError: if the text does not have the name and the arguments once each, and at most one id.
    """
    if any(text.count(word) > 1 or (slot is not Slot.ID and word not in text) for word, slot in slots.items()):
        raise UserError(UNREADABLE)
    places = sorted((text.find(word), word) for word in slots if word in text)
    parts: list[str | Slot] = []
    position = places[0][0]
    for place, word in places:
        parts += [text[position:place]] * (place > position) + [slots[word]]
        position = place + len(word)
    return text[:places[0][0]], tuple(parts), text[position:]


def _without_empty(*parts: str | Slot) -> Parts:
    return tuple(part for part in parts if part)


def _cut(text: str, *words: str) -> list[str]:
    """Cuts a text at words that occur in this order.

    Raises:
        ValueError: if one does not.
    """
    parts = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            raise ValueError(word)
        parts.append(before)
    return [*parts, text]
