"""Reads the calls of an answer while it arrives, as its chat template writes them.

A call is given out piece by piece: its name as soon as its arguments begin, then their JSON as it arrives. What turns
out to be no call is content. If a call breaks in the middle of its arguments, what came of them is not JSON, and the
rest is content. So no text is lost, except what a template itself writes around calls.
"""

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_sft.inference.answer_parts import unfinished
from minimind_sft.serving.argument_values import argument_json
from minimind_sft.serving.arriving_text import MAX_NAME, ArrivingText, Broken, Steps
from minimind_sft.serving.tool_formats import Slot, ToolFormat, to_json

ARGUMENT_KEYS = ("arguments", "parameters")
LLAMA_OPENING, LLAMA_BETWEEN = "<|python_tag|>", ";"
"""Text that Llama 3's models write before and between calls, although their template does not."""


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool call. The first of a call has its id and name; arguments are JSON, in any number of pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


def new_call_id() -> str:
    """Returns nine random letters and digits, which Mistral's templates require."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class CallReader(ArrivingText):
    """Tells calls from the content around them.

    Blanks between the parts of a call do not matter. Where nothing marks a call, as in Llama 3's format, only an answer
    that begins with a call to one of the tools is one.

    Attributes:
        complete: the number of calls whose arguments are complete.

    Args:
        tools: the functions on offer, in OpenAI's format. Their schemas decide whether an argument that is written
            without quotes is a string.
        one_call: whether the answer ends with its first call.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]] = (), one_call: bool = False):
        super().__init__()
        self.complete = 0
        self._one_call = one_call
        self._format, self._object = tool_format, tool_format.call_object
        functions = [tool.get("function") or {} for tool in tools]
        self._parameters = {function.get("name"): function.get("parameters") or {} for function in functions}
        first = tool_format.call[0]
        assert isinstance(first, str)
        self._head = self._object.before + "{" if self._object else first
        self._mark = tool_format.mark
        self._streams = self._called = self._is_call = False
        """`_streams`: what is read belongs to the arguments, and is given out whenever the text ends. `_called`: the
        name of the call has been given out. `_is_call`: something was given out since the mark."""
        self._begun = 0
        self._name: str | None = None
        self._early: str | None = None
        """Arguments that came before the name."""
        self._found: list[str | CallPiece] = []
        self._steps = self._read()
        next(self._steps, None)

    @property
    def is_over(self) -> bool:
        """Whether nothing that follows belongs to the answer."""
        return self._one_call and self.complete > 0

    def push(self, text: str) -> list[str | CallPiece]:
        """Returns the content and the pieces of calls that are certain by now, in their order."""
        self._arrive(text)
        next(self._steps, None)
        found, self._found = self._found, []
        while self.is_over and found and (isinstance(found[-1], str) or found[-1].index > 0):
            found.pop()
        return found

    def end(self) -> list[str | CallPiece]:
        """Returns the rest."""
        self._ended = True
        return self.push("")

    def _read(self) -> Steps[None]:
        if not self._mark:
            yield from self._attempt()
        while (yield from self._content()):
            yield from self._attempt()

    def _content(self) -> Steps[bool]:
        """Reads content up to a mark; False: there is none, and the answer ended."""
        while True:
            place = self._text.find(self._mark, self._at) if self._mark else -1
            if place < 0 and self._ended:
                self._give_content(len(self._text), keeps_blanks=not self._begun)
                return False
            self._at = place if place >= 0 else len(self._text) - unfinished(self._text, filter(None, [self._mark]))
            self._give_content(self._at)
            if place >= 0:
                return True
            yield

    def _attempt(self) -> Steps[None]:
        """Reads calls, up to where they end or the text is something else, which then is content."""
        mark, self._is_call = self._at - self._start, False
        try:
            yield from self._calls()
        except Broken:
            self._give_arguments()
            self._at = self._start
            if not self._is_call:  # this mark was none; another may follow
                self._at += mark + 1
        self._streams = False

    def _calls(self) -> Steps[None]:
        opening, between, closing = self._format.opening, self._format.between, self._format.closing
        if not self._mark and between is None:
            between = LLAMA_BETWEEN
        yield from self._literal(opening + self._head, *[LLAMA_OPENING + self._head] * (not self._mark))
        while True:
            yield from self._call()
            self._take()
            following = [] if between is None else [between + self._head]
            if not closing.strip():
                if not following or (self._mark and not opening.strip()):
                    return  # further calls have marks of their own
                yield from self._literal(*following)
            elif (yield from self._literal(closing, *following)) == 0:
                self._take()
                return

    def _call(self) -> Steps[None]:
        """Reads a call from behind its head."""
        self._name, self._early, self._called = None, None, False
        if self._object:
            yield from self._call_object(())
            if not self._called:  # without arguments
                self._begin()
                self._complete("{}")
            yield from self._literal(self._object.after)
            return
        parts = iter(self._format.call[1:])
        for part in parts:
            if isinstance(part, str):
                yield from self._literal(part)
            elif part is not Slot.ARGUMENTS:
                word = yield from self._word()
                self._name = word if part is Slot.NAME else self._name
            elif self._format.pairs:
                following = next(parts)
                assert isinstance(following, str)
                yield from self._pairs(following)
            else:
                yield from self._arguments()

    # Calls that are JSON objects

    def _call_object(self, path: tuple[str, ...]) -> Steps[None]:
        """Reads the members of a call, or of an object in it, from behind the opening brace."""
        character = yield from self._after_blanks()
        while character != "}":
            key = self._string((yield from self._json()))
            yield from self._literal(":")
            yield from self._member((*path, key), (yield from self._after_blanks()))
            character = yield from self._after_blanks()
            if character == ",":
                self._at += 1
                character = yield from self._after_blanks()
                self._require(character == '"')
            else:
                self._require(character == "}")
        self._at += 1

    def _member(self, path: tuple[str, ...], first: str) -> Steps[None]:
        form = self._object
        assert form
        if path == form.name and not self._called:
            self._name = self._string((yield from self._json()))
            self._require(bool(self._name))
            if self._early is not None:
                self._begin()
                self._complete(self._early)
        elif path[:-1] == form.arguments[:-1] and path[-1] in (*ARGUMENT_KEYS, form.arguments[-1]) and not self._called:
            yield from self._arguments()
        elif first == "{" and path in (form.name[:len(path)], form.arguments[:len(path)]):
            self._at += 1
            yield from self._call_object(path)
        else:
            self._require(bool(self._mark) or path in form.paths)  # any JSON could have other members
            yield from self._json()

    def _arguments(self) -> Steps[None]:
        """Reads arguments that are a JSON object, or a string that holds one."""
        first = yield from self._after_blanks()
        self._require(first in '{"')
        if first == "{" and self._name is not None:
            self._begin()
            self._streams = True
            yield from self._scan()
            self._give_arguments()
            self._streams = False
            self.complete += 1
            return
        text = yield from self._json()
        self._early = text if first == "{" else self._object_in(text)
        if self._name is not None:
            self._begin()
            self._complete(self._early)

    def _object_in(self, text: str) -> str:
        """Returns the JSON of an object, given a JSON string that holds it."""
        inner = self._string(text)
        self._require(isinstance(self._parsed(inner), dict))
        return inner

    # Arguments that are written one by one

    def _pairs(self, following: str) -> Steps[None]:
        """Reads arguments and the text that follows them."""
        pairs, name = self._format.pairs, self._name
        assert pairs and name is not None
        pieces = 0
        while True:
            before = self._at - self._start
            choice = yield from self._literal(pairs.before_name, following)
            if not pieces:
                start = self._start + before
                self._begin()
                self._start = start
            if choice == 1:
                return self._complete("}" if pieces else "{}")
            key = yield from self._until(pairs.before_value)
            self._require(0 < len(key) <= MAX_NAME and "\n" not in key and "<" not in key)
            value = yield from self._until(pairs.after_value)
            text = argument_json(value, self._parameters.get(name, {}), key, pairs.constants)
            self._give(f"{', ' if pieces else '{'}{to_json(key)}: {text}")
            pieces += 1

    # What is given out

    def _give_content(self, end: int, keeps_blanks: bool = False) -> None:
        """Gives out content; blanks at its end wait, as they are the template's if a call follows."""
        content = self._text[self._start:end]
        content = content if keeps_blanks else content.rstrip()
        if content:
            self._found.append(content)
        self._start += len(content)

    def _begin(self) -> None:
        """Gives out the name of a call."""
        self._require(self._name is not None and (bool(self._mark) or self._name in self._parameters))
        self._found.append(CallPiece(self._begun, new_call_id(), self._name))
        self._begun += 1
        self._called = True
        self._take()

    def _give(self, arguments: str) -> None:
        self._found.append(CallPiece(self._begun - 1, arguments=arguments))
        self._take()

    def _take(self) -> None:
        """Takes note that the text so far has been given out."""
        self._start, self._is_call = self._at, True

    def _complete(self, arguments: str) -> None:
        self._give(arguments)
        self.complete += 1

    def _pause(self) -> None:
        self._give_arguments()

    def _give_arguments(self) -> None:
        if self._streams and self._at > self._start:
            self._give(self._text[self._start:self._at])
