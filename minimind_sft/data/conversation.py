"""Turns any supported row into a Conversation; every error names file, line and field."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minimind_sft.data.fields import MEDIA, SUSPECT_FIELDS, refuse_media, refuse_unsupported
from minimind_sft.data.formats import ANSWERS, EMPTY, SYSTEM_FIELDS, field_names, find_form, source_turns
from minimind_sft.data.lines import MAX_ROW_VALUES
from minimind_sft.data.preferences import REJECTED, refuse_preference
from minimind_sft.data.row_size import json_characters
from minimind_sft.data.turn_flags import PLAIN_FIELDS, is_learned
from minimind_sft.data.turns import SourceTurn, refuse
from minimind_sft.errors import UserError, describe
from minimind_sft.files import read_text
from minimind_sft.strict_json import parse_json

MAX_CHARACTERS = 2_000_000
"""In everything that a template renders: messages, reasoning, calls and tools."""
MAX_RENDERED = 50_000_000
"""Answers times characters: a template renders the conversation up to each answer."""
MAX_MESSAGES, MAX_MESSAGES_RENDERED = 20_000, 1_000_000
"""Messages, and answers times messages: rendering a message for one answer takes some microseconds."""
CALL_FIELDS = ("id", "type", "index", "function", "name", "arguments")
"""Fields of a call besides its arguments; any other may be the arguments under another name."""


@dataclass(frozen=True)
class Conversation:
    """One conversation as chat templates expect it.

    messages: dicts with `role` and `content` (a string). An assistant's may have `reasoning_content`, `tool_calls` (a
        list of `{"type": "function", "function": {"name": str, "arguments": dict}}`, with `id` if the data has one) and
        `train`: False if it is not learned. A tool's may have `name` and `tool_call_id`.
    tools: JSON descriptions of the functions on offer, or None.
    place: "file:line" of the row, for messages about it.
    names: the row's name of each message, such as `messages[2]`; empty for a conversation without a row.
    """

    messages: tuple[dict, ...]
    tools: list[dict] | None
    place: str
    names: tuple[str, ...] = field(default=(), compare=False)

    def turn_name(self, index: int) -> str:
        """Returns the row's name of a message: `messages[2]`."""
        return self.names[index] if self.names else f"conversations[{index}]"

    def name(self, index: int, field_name: str) -> str:
        """Returns the row's name of a field of a message: `messages[2].tool_calls`."""
        name = self.turn_name(index)
        return name if field_name == "content" and not name.endswith("]") else f"{name}.{field_name}"


def parse_row(row: dict, place: str) -> Conversation | str:
    """Parses a row of any form (`formats.FORMS`): returns a Conversation, or the running text of `{"text": ...}`.

    Raises:
        UserError: `file:line: messages[2].role: expected ..., found ...`
    """
    try:
        if not row.keys().isdisjoint(REJECTED):
            refuse_preference(row)
        form = find_form(row)
        if form is None:
            if not isinstance(row["text"], str):
                refuse("text", "a string", row["text"])
            return row["text"]
        if not row.keys().isdisjoint(SUSPECT_FIELDS):
            refuse_unsupported(row, form)
        return _conversation(row, source_turns(row, form), place)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def parse_conversation(row: dict, place: str) -> Conversation:
    """Parses a row that must be a conversation.

    Raises:
        UserError: as `parse_row`, and for a row of running text.
    """
    parsed = parse_row(row, place)
    if isinstance(parsed, str):
        raise UserError(f"{place}: conversations: expected a conversation, found a row of running text")
    return parsed


def parse_question(row: dict, place: str) -> Conversation:
    """Parses a row as a conversation that waits for an answer.

    A conversation that ends in an assistant turn is cut before it. A question alone will do, as in
    `{"question": ...}`.

    Raises:
        UserError: as `parse_row`, and if nothing is left to answer.
    """
    has_turns = any(row.get(name) is not None for name in ("conversations", "messages", "conversation"))
    if not has_turns and all(row.get(name) in EMPTY for name in ANSWERS):
        asked = row.get("instruction") is not None
        row = {**row, "output" if asked else "answer": "ANSWER"}
    conversation = _answered(row, place)
    messages = conversation.messages
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] == "system":
        raise UserError(f"{place}: expected a question, found none")
    return replace(conversation, messages=messages, place=place, names=conversation.names[:len(messages)])


def _answered(row: dict, place: str) -> Conversation:
    """Parses a conversation; one without an assistant turn gets one."""
    try:
        form = find_form(row)
        turns = source_turns(row, form) if form else []
        if not turns or any(turn.values["role"] == "assistant" for turn in turns):
            return parse_conversation(row, "")
        return _conversation(row, [*turns, SourceTurn({"role": "assistant", "content": "ANSWER"}, "answer")], place)
    except UserError as error:
        raise UserError(f"{place}: {str(error).removeprefix(': ')}") from error


def parse_text(row: dict, place: str) -> str:
    """Returns the text of a pretraining row, `{"text": ...}`.

    Raises:
        UserError: if `text` is missing or not a string.
    """
    if row.get("text") is None:
        raise UserError(f"{place}: text: expected a string, found a row with {field_names(row)}")
    if not isinstance(row["text"], str):
        refuse(f"{place}: text", "a string", row["text"])
    return row["text"]


def read_tools(path: str | Path) -> list[dict]:
    """Reads the file of --tools: a JSON list of function descriptions, as in a row's `tools`.

    Raises:
        UserError: naming the flag, the file and the faulty description.
    """
    try:
        text = read_text(Path(path))
    except UserError as error:
        raise UserError(f"--tools {error}") from error
    try:
        tools = _tools(parse_json(text, "tools", "a list of functions"), "tools")
    except UserError as error:
        raise UserError(f"--tools {path}: {error}") from error
    if not tools:
        raise UserError(f"--tools {path}: expected a list of functions, found an empty one")
    return tools


def canonical_row(conversation: Conversation) -> dict:
    """Returns a row that `parse_row` reads back as the same conversation."""
    tools = {"tools": conversation.tools} if conversation.tools else {}
    return {"conversations": list(conversation.messages), **tools}


def _conversation(row: dict, turns: list[SourceTurn], place: str) -> Conversation:
    if len(turns) > MAX_MESSAGES:
        raise UserError(f"{turns[-1].where.partition('[')[0]}: expected at most {MAX_MESSAGES:,} turns, found "
                        f"{len(turns):,}")
    if turns[0].where in SYSTEM_FIELDS:
        turns = _with_one_system_turn(turns)
    tools = _offered_tools(row, lambda key: key) if "tools" in row or "functions" in row else None
    messages: list[dict] = []
    names: list[str] = []
    roles: list[str] = []
    for turn in turns:
        message = _message(turn, roles)
        if "tool_calls" in message and turn.is_call and _joins(messages[-1], message):
            messages[-1] = {**messages[-1], "tool_calls": [*messages[-1].get("tool_calls", []), *message["tool_calls"]]}
        else:
            messages.append(message)
            names.append(turn.where)
            roles.append(message["role"])
        if ("tools" in turn.values or "functions" in turn.values) and (
                offered := _offered_tools(turn.values, turn.name)):
            if roles[-1] != "system" or tools:
                key = "tools" if turn.values.get("tools") else "functions"
                raise UserError(f"{turn.name(key)}: expected tools once, in the row or in its system turn")
            tools = offered
    name = turns[-1].where.partition("[")[0]
    if "assistant" not in roles:
        raise UserError(f"{name}: expected at least one assistant turn, found none")
    _refuse_too_long(name, messages, tools, roles.count("assistant"))
    return Conversation(tuple(messages), tools, place, tuple(names))


def _refuse_too_long(name: str, messages: list[dict], tools: list[dict] | None, answers: int) -> None:
    """
    Raises:
        UserError: if a conversation is too long to be rendered up to each of its answers.
    """
    characters = sum(len(message["content"]) for message in messages)
    if tools:
        characters += json_characters(tools)
    for message in messages:
        if len(message) > len(("role", "content")):
            characters += sum(json_characters(value) for key, value in message.items()
                              if key not in ("role", "content", "train"))
    if characters > MAX_CHARACTERS:
        raise UserError(f"{name}: expected at most {MAX_CHARACTERS:,} characters, found {characters:,}")
    for number, what, most in ((characters, "characters", MAX_RENDERED),
                               (len(messages), "messages", MAX_MESSAGES_RENDERED)):
        if answers * number > most:
            raise UserError(f"{name}: expected a shorter conversation: answers x {what} may be {most:,}, found "
                            f"{answers:,} x {number:,}")


def _with_one_system_turn(turns: list[SourceTurn]) -> list[SourceTurn]:
    """Drops the turn of the row's system field if the first of the other turns is a system turn with the same text."""
    first, second = turns[:2]
    if second.values["role"] != "system":
        return turns
    if _content(first, False) != _content(second, False):
        raise UserError(f"{first.where}: expected the same text as {second.name('content')}, as a conversation has one "
                        f"system turn, found {describe(first.values['content'])}")
    return turns[1:]


def _joins(before: dict, call: dict) -> bool:
    """Tells whether a message of calls alone belongs to the message before it: a question has one answer."""
    return (before["role"] == "assistant" and "reasoning_content" not in call
            and before.get("train", True) == call.get("train", True))


def _check_role(turn: SourceTurn, before: list[str]) -> None:
    role, problem = turn.values["role"], ""
    if role == "system" and before:
        problem = "a system turn only as the first, found one elsewhere"
    if role == "assistant" and "user" not in before:
        problem = "a user turn before the first assistant turn, found an assistant turn"
    if role == "tool" and (not before or before[-1] not in ("assistant", "tool")):
        problem = "a tool turn only after an assistant or a tool turn, found one elsewhere"
    if problem:  # without the role itself, as the row may have another word for it
        raise UserError(f"{turn.name('role')}: expected {problem}")


def _message(turn: SourceTurn, roles: list[str]) -> dict:
    """Checks a turn and returns it as a message; `roles` are those of the messages before it."""
    values = turn.values
    role = values["role"]
    if role not in ("user", "assistant") or (role == "assistant" and roles[-1:] != ["user"]):
        _check_role(turn, roles)
    if not MEDIA.isdisjoint(values):
        refuse_media(values, turn.name)
    given = values.get("tool_calls")
    calls = [] if given is None else _tool_calls(given, turn.name("tool_calls"))
    reasoning = values.get("reasoning_content")
    content = values["content"]
    if not isinstance(content, str):
        content = _content(turn, may_be_missing=bool(calls or (reasoning and role == "assistant")))
    if reasoning is not None and not isinstance(reasoning, str):
        turn.refuse("reasoning_content", "a string", reasoning)
    if role != "assistant" and (calls or reasoning):
        name = "tool_calls" if calls else "reasoning_content"
        raise UserError(f"{turn.name(name)}: expected only in an assistant turn, found in a {role} turn")

    message: dict[str, Any] = {"role": role, "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message |= {name: values[name] for name in ("name", "tool_call_id")
                    if isinstance(values.get(name), str) and values[name]}
    if not (values.keys() <= PLAIN_FIELDS or is_learned(turn)):
        message["train"] = False
    elif role == "assistant" and not (content.strip() or calls or reasoning):
        advice = ' ("train": false for one that should not be learned)' if turn.is_object else ""
        turn.refuse("content", f"an answer{advice}", content)
    return message


def _content(turn: SourceTurn, may_be_missing: bool) -> str:
    """Returns content that is a string, or the joined text of OpenAI's parts, `[{"type": "text", "text": ...}]`."""
    content = turn.values.get("content")
    if content is None and may_be_missing:
        return ""
    if isinstance(content, list):
        texts = []
        for index, part in enumerate(content):
            where = f"{turn.name('content')}[{index}]"
            kind = part.get("type") if isinstance(part, dict) else part
            if not isinstance(part, dict) or kind != "text":
                refuse(where, 'a part {"type": "text", "text": ...}', kind)
            if not isinstance(part.get("text"), str):
                refuse(f"{where}.text", "a string", part.get("text"))
            texts.append(part["text"])
        return "".join(texts)
    if not isinstance(content, str):
        turn.refuse("content", "a string", content)
    return content


def _offered_tools(values: dict, name: Callable[[str], str]) -> list[dict] | None:
    """Reads the tools of a row or a turn, or OpenAI's older `functions`, which are bare descriptions.

    Args:
        name: returns the full name of a key.
    """
    if values.get("tools") is None and values.get("functions") is None:
        return None
    tools, functions = (_tools(values.get(key), name(key)) for key in ("tools", "functions"))
    wrapped = [_as_tool(one, f"{name('functions')}[{index}]") for index, one in enumerate(functions or [])]
    if tools and wrapped and tools != wrapped:
        raise UserError(f"{name('functions')}: expected the same as {name('tools')}, found others")
    return tools or wrapped or None


def _as_tool(function: dict, name: str) -> dict:
    if isinstance(function.get("function"), dict):
        return function
    if not isinstance(function.get("name"), str):
        refuse(f"{name}.name", "the name of a function", function.get("name"))
    return {"type": "function", "function": function}


def _tools(value: Any, name: str) -> list[dict] | None:
    tools = _list_or_json(value, name)
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            refuse(f"{name}[{index}]", "an object that describes a function", tool)
        _check_json(tool, f"{name}[{index}]")
    return tools or None


def _tool_calls(value: Any, name: str) -> list[dict]:
    """Reads calls, `{"function": {"name", "arguments"}}` or bare `{"name", "arguments"}`; returns the first form."""
    calls = []
    for index, call in enumerate(_list_or_json(value, name)):
        where = f"{name}[{index}]"
        if not isinstance(call, dict):
            refuse(where, "an object with name and arguments", call)
        function = call.get("function", call)
        if not isinstance(function, dict):
            refuse(f"{where}.function", "an object with name and arguments", function)
        where += ".function" * (function is not call)
        called, arguments = function.get("name"), _arguments({**call, **function}, f"{where}.arguments")
        if not isinstance(called, str) or not called:
            refuse(f"{where}.name", "the name of a function", called)
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
        _check_json(arguments, f"{where}.arguments")
        calls.append({**identity, "type": "function", "function": {"name": called, "arguments": arguments}})
    return calls


def _arguments(call: dict, name: str) -> dict:
    """Reads the arguments of a call, an object or the JSON of one; {} if they are empty or missing."""
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, name, "a JSON object", MAX_ROW_VALUES) if arguments.strip() else None
    if arguments is None:
        others = [key for key in call if key not in CALL_FIELDS and call[key] not in (None, "")]
        if others:  # `parameters`, `input`: probably the arguments
            raise UserError(f"{name}: expected a JSON object, found nothing, but a field {describe(others[0])}")
        return {}
    if not isinstance(arguments, dict):
        refuse(name, "a JSON object", arguments)
    return arguments


def _check_json(value: Any, name: str) -> None:
    """Refuses values that Parquet has and JSON has not: templates write them as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: expected only what JSON can hold: {error}") from error


def _list_or_json(value: Any, name: str) -> list:
    """Returns a list, given a list or the JSON of one; None and "" count as empty."""
    if isinstance(value, str) and value:
        value = parse_json(value, name, "a list or the JSON of one", MAX_ROW_VALUES)
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        refuse(name, "a list or the JSON of one", value)
    return value
