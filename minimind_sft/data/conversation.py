"""Any supported row becomes a Conversation; every error names file, line and field."""

from dataclasses import dataclass
from typing import Any, NoReturn

from minimind_sft.data.reading import describe, parse_json
from minimind_sft.errors import UserError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """One conversation, in the form chat templates expect.

    messages: each a dict with `role` and `content` (a string); an assistant's may have `reasoning_content` and
        `tool_calls`, a list of `{"type": "function", "function": {"name": str, "arguments": dict}}`.
    tools: the functions on offer, as JSON descriptions, or None.
    place: "file:line" of the row, for messages about it.
    """

    messages: tuple[dict, ...]
    tools: list[dict] | None
    place: str


def parse_conversation(row: dict, place: str) -> Conversation:
    """Checks and normalises `{"conversations": [{"role", "content", ...}, ...]}`.

    A turn may have `reasoning_content` and `tool_calls` (assistant) or `tools` (system); the row may have `tools`.
    `tools` and `tool_calls` are lists or the JSON of one. Keys that are not known are ignored.

    Raises:
        UserError: `file:line: conversations[2].role: expected ..., found ...`
    """
    turns = row.get("conversations")
    field = f"{place}: conversations"
    if "conversations" not in row:
        keys = ", ".join(sorted(row)) or "no keys"
        raise UserError(f"{field}: expected a list of turns, found a row with {keys}")
    if not isinstance(turns, list) or not turns:
        _refuse(field, "a list of turns", turns)

    tools = _tools(row.get("tools"), f"{place}: tools")
    messages: list[dict] = []
    for index, turn in enumerate(turns):
        where = f"{field}[{index}]"
        if not isinstance(turn, dict):
            _refuse(where, "an object with role and content", turn)
        role = _role(turn, messages, where)
        messages.append(_message(role, turn, where))
        offered = _tools(turn.get("tools"), f"{where}.tools")
        if offered:
            if role != "system" or tools:
                raise UserError(f"{where}.tools: expected tools once, in the row or in its system turn")
            tools = offered
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{field}: expected at least one assistant turn, found none")
    return Conversation(tuple(messages), tools, place)


def parse_text(row: dict, place: str) -> str:
    """The text of a pretraining row, `{"text": ...}`.

    Raises:
        UserError: if `text` is missing or no string.
    """
    if "text" not in row:
        keys = ", ".join(sorted(row)) or "no keys"
        raise UserError(f"{place}: text: expected a string, found a row with {keys}")
    if not isinstance(row["text"], str):
        _refuse(f"{place}: text", "a string", row["text"])
    return row["text"]


def _role(turn: dict, before: list[dict], where: str) -> str:
    role = turn.get("role")
    if role not in ROLES:
        _refuse(f"{where}.role", "system, user, assistant or tool", role)
    earlier = [message["role"] for message in before]
    if role == "system" and earlier:
        _refuse(f"{where}.role", "a system turn only as the first", role)
    if role == "assistant" and "user" not in earlier:
        _refuse(f"{where}.role", "a user turn before the first assistant turn", role)
    if role == "tool" and (not earlier or earlier[-1] not in ("assistant", "tool")):
        _refuse(f"{where}.role", "a tool turn only after an assistant or a tool turn", role)
    return role


def _message(role: str, turn: dict, where: str) -> dict:
    calls = _tool_calls(turn.get("tool_calls"), f"{where}.tool_calls")
    reasoning = turn.get("reasoning_content")
    content = turn.get("content")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        _refuse(f"{where}.content", "a string", content)
    if not isinstance(reasoning, str | None):
        _refuse(f"{where}.reasoning_content", "a string", reasoning)
    for name, value in (("tool_calls", calls), ("reasoning_content", reasoning)):
        if value and role != "assistant":
            raise UserError(f"{where}.{name}: expected only in an assistant turn, found in a {role} turn")

    message: dict[str, Any] = {"role": role, "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _tools(value: Any, field: str) -> list[dict] | None:
    tools = _list_or_json(value, field)
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            _refuse(f"{field}[{index}]", "an object that describes a function", tool)
    return tools or None


def _tool_calls(value: Any, field: str) -> list[dict]:
    """Calls as `{"function": {"name", "arguments"}}` or bare `{"name", "arguments"}`, in the first form."""
    calls = []
    for index, call in enumerate(_list_or_json(value, field)):
        where = f"{field}[{index}]"
        if not isinstance(call, dict):
            _refuse(where, "an object with name and arguments", call)
        function = call.get("function", call)
        if not isinstance(function, dict):
            _refuse(f"{where}.function", "an object with name and arguments", function)
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            _refuse(f"{where}.name", "the name of a function", name)
        if isinstance(arguments, str):
            arguments = parse_json(arguments, f"{where}.arguments", "a JSON object")
        if not isinstance(arguments, dict):
            _refuse(f"{where}.arguments", "a JSON object", arguments)
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _list_or_json(value: Any, field: str) -> list:
    """None and an empty string count as an empty list."""
    if isinstance(value, str) and value:
        value = parse_json(value, field, "a list or the JSON of one")
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        _refuse(field, "a list or the JSON of one", value)
    return value


def _refuse(field: str, expected: str, found: Any) -> NoReturn:
    raise UserError(f"{field}: expected {expected}, found {'nothing' if found is None else describe(found)}")
