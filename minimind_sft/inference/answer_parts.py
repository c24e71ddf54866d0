"""Tells the parts of an answer apart while it is generated: reasoning, tool calls, and the rest."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from minimind_sft.errors import UserError
from minimind_sft.strict_json import parse_json

Kind = Literal["text", "thinking", "call"]

TAGS: dict[str, tuple[Kind, Kind]] = {
    "<think>": ("text", "thinking"), "</think>": ("thinking", "text"),
    "<tool_call>": ("text", "call"), "</tool_call>": ("call", "text"),
}
"""The kinds of text before and after a tag."""
TAG = re.compile("|".join(map(re.escape, TAGS)))
CALL = re.compile("<tool_call>(.*?)</tool_call>", re.DOTALL)
NO_CALL = "not a call: expected JSON with name and arguments"


class Part(NamedTuple):
    """A piece of an answer."""

    kind: Kind
    text: str
    is_tag: bool = False


def answer_parts(pieces: Iterator[str], starts_thinking: Callable[[], bool]) -> Iterator[Part]:
    """Yields the parts of an answer. Text that may be the beginning of a tag waits for the next piece.

    Args:
        starts_thinking: called after the first piece; says whether the prompt opened the reasoning. The tag is then
            the first part.
    """
    kind: Kind = "text"
    waiting, begun = "", False
    for piece in pieces:
        if not begun and starts_thinking():
            kind = "thinking"
            yield Part(kind, "<think>\n", is_tag=True)
        begun = True
        waiting += piece
        position = 0
        for found in TAG.finditer(waiting):
            before, after = TAGS[found[0]]
            if kind != before:  # not a tag where it stands
                continue
            if text := waiting[position:found.start()]:
                yield Part(kind, text)
            yield Part("thinking" if "thinking" in (before, after) else "call", found[0], is_tag=True)
            kind, position = after, found.end()
        end = len(waiting) - unfinished(waiting, TAGS)
        if text := waiting[position:max(end, position)]:
            yield Part(kind, text)
        waiting = waiting[max(end, position):]
    if waiting:
        yield Part(kind, waiting)


def described_calls(text: str) -> list[str]:
    """Describes each tool call, tags included: `weather(city="Rome")`, or what is wrong with it."""
    return [described for found in CALL.findall(text) for described in _described_list(found)]


def _described_list(text: str) -> list[str]:
    try:
        found = parse_json(text, "")
    except UserError:
        return [NO_CALL]
    return [_described(call) for call in found] if isinstance(found, list) and found else [_described(found)]


def _described(call: object) -> str:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return NO_CALL
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return f"{call['name']}: not a call: its arguments are not a JSON object"
    given = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return f"{call['name']}({', '.join(given)})"


def unfinished(text: str, marks: Iterable[str]) -> int:
    """Returns how many characters at the end of `text` may be the beginning of one of the marks."""
    longest = 0
    for mark in marks:
        start = max(len(text) - len(mark) + 1, 0)
        while (start := text.find(mark[0], start)) >= 0 and not mark.startswith(text[start:]):
            start += 1
        longest = max(longest, len(text) - start if start >= 0 else 0)
    return longest
