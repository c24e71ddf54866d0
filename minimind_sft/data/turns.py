"""Reads a list of messages under OpenAI's names, whatever the row calls them.

Each turn remembers the row's own names, so that an error names what the user wrote.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from minimind_sft.data.lines import MAX_ROW_VALUES
from minimind_sft.errors import UserError, describe
from minimind_sft.strict_json import parse_json

ROLES = ("system", "user", "assistant", "tool")
CALL_ROLES = ("function_call", "tool_call")
"""Roles of an assistant turn whose content is one call or a list of calls in JSON: LLaMA-Factory's and ms-swift's."""
ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "ai": "assistant",
    "bot": "assistant", "chatbot": "assistant",
    **dict.fromkeys(CALL_ROLES, "assistant"),
    "tool": "tool", "function": "tool", "ipython": "tool", "environment": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool",
}
"""The names of the four roles in `role` and in ShareGPT's `from`, in lower case; the case of a row does not matter."""
CALL = 'a call {"name", "arguments"} or a list of them, in JSON'
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


class SourceTurn(NamedTuple):
    """A turn of a row under OpenAI's names. Only its role has been checked.

    values: role (one of ROLES), content, and whatever else the turn has.
    where: the turn in its row, such as `messages[2]`.
    names: the row's own name of a value if it is not `<where>.<key>`.
    """

    values: dict
    where: str
    names: Mapping[str, str] = MappingProxyType({})

    def name(self, key: str) -> str:
        """Returns the row's own name of a value: `messages[2].value`."""
        return self.names.get(key) or f"{self.where}.{key}"

    @property
    def is_object(self) -> bool:
        """Whether the turn is an object in its row, with room for fields beside its text."""
        return self.name("content").startswith(f"{self.where}.")

    @property
    def is_call(self) -> bool:
        """Whether the turn's content was nothing but calls."""
        return self.names.get("tool_calls", "") == self.name("content")

    def refuse(self, key: str, expected: str, found: Any) -> NoReturn:
        refuse(self.name(key), expected, found)


def refuse(name: str, expected: str, found: Any) -> NoReturn:
    raise UserError(f"{name}: expected {expected}, found {'nothing' if found is None else describe(found)}")


def read_turns(value: Any, where: str) -> list[SourceTurn]:
    """Reads a list of turns, or the JSON of one. A turn has role and content, or ShareGPT's from and value.

    Raises:
        UserError: `messages[2].role: expected ..., found ...`
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, where, "a list of turns or the JSON of one", MAX_ROW_VALUES)
    if not isinstance(value, list) or not value:
        refuse(where, "a list of turns", value)
    return [_read_turn(turn, f"{where}[{index}]") for index, turn in enumerate(value)]


def _read_turn(turn: Any, where: str) -> SourceTurn:
    if not isinstance(turn, dict):
        refuse(where, "an object with role and content", turn)
    is_plain = turn.get("role") is not None and turn.get("content") is not None
    role_key, content_key = ("role", "content") if is_plain else turn_keys(turn)
    role = turn.get(role_key)
    role = role.lower() if isinstance(role, str) else None
    if role not in ROLE_NAMES:
        refuse(f"{where}.{role_key}", "system, user, assistant or tool" if role_key == "role"
               else "system, human, gpt, function_call or observation", turn.get(role_key))
    names = {} if is_plain else {name: f"{where}.{key}" for name, key in (("role", role_key), ("content", content_key))
                                 if key != name}
    source = SourceTurn({**turn, "role": ROLE_NAMES[role], "content": turn.get(content_key)}, where, names)
    if "reasoning" in turn or "thinking" in turn:
        _rename_reasoning(source, names)
    if role in CALL_ROLES or turn.get("function_call"):
        _rename_calls(source, names, in_content=role in CALL_ROLES)
    return source


def turn_keys(turn: dict) -> tuple[str, str]:
    """Returns the keys of a turn's role and content: OpenAI's, ShareGPT's `from` and `value`, or one of each."""
    is_sharegpt = "from" in turn and turn.get("role") is None
    key, other = ("value", "content") if is_sharegpt else ("content", "value")
    if turn.get(key) is None and isinstance(turn.get(other), str | list):
        key = other
    return "from" if is_sharegpt else "role", key


def _rename_reasoning(turn: SourceTurn, names: dict[str, str]) -> None:
    """Stores the reasoning as `reasoning_content`, whatever the turn calls it."""
    given = [name for name in REASONING_FIELDS if turn.values.get(name)]
    for name in given[1:]:
        if turn.values[name] != turn.values[given[0]]:
            raise UserError(f"{turn.where}.{name}: expected the same text as {turn.where}.{given[0]}, found another")
    if given and given[0] != "reasoning_content":
        turn.values["reasoning_content"] = turn.values[given[0]]
        names["reasoning_content"] = f"{turn.where}.{given[0]}"


def _rename_calls(turn: SourceTurn, names: dict[str, str], in_content: bool) -> None:
    """Stores as `tool_calls` what OpenAI's older `function_call`, or a ShareGPT turn of calls, has."""
    given = [name for name in ("tool_calls", "function_call") if turn.values.get(name)] + ["content"] * in_content
    if len(given) > 1:
        raise UserError(f"{turn.name(given[1])}: expected the calls once, found them in {given[0]} too")
    names["tool_calls"] = turn.name(given[0])
    turn.values["tool_calls"] = _calls(turn.values[given[0]], names["tool_calls"])
    if in_content:
        turn.values["content"] = ""


def _calls(value: Any, name: str) -> list:
    """Returns a list of calls, given one call, a list of them, or the JSON of either."""
    if isinstance(value, str):
        value = parse_json(value, name, CALL, MAX_ROW_VALUES)
    if not value:
        refuse(name, CALL, value)
    return value if isinstance(value, list) else [value]
