"""Reads the turns of a list of messages, under OpenAI's names whatever the row calls them.

A turn remembers the row's own names, so that an error about it names what the person wrote.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from minimind_sft.data.reading import parse_json
from minimind_sft.errors import UserError, describe

ROLES = ("system", "user", "assistant", "tool")
CALL_ROLES = ("function_call", "tool_call")
"""Of an assistant's turn whose content is a call, or a list of them, in JSON: LLaMA-Factory's name and ms-swift's."""
ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "ai": "assistant",
    "bot": "assistant", "chatbot": "assistant",
    **dict.fromkeys(CALL_ROLES, "assistant"),
    "tool": "tool", "function": "tool", "ipython": "tool", "environment": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool",
}
"""The names of the four roles in `role` and in ShareGPT's `from`, in lower case; capitals are read too."""
CALL = 'a call {"name", "arguments"} or a list of them, in JSON'
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


class SourceTurn(NamedTuple):
    """A turn as its row has it, under OpenAI's names, unchecked but for its role.

    values: role (one of ROLES), content and what else there is.
    where: the turn in its row, `messages[2]`.
    names: the row's own name of a value, where it is not `<where>.<key>`.
    """

    values: dict
    where: str
    names: Mapping[str, str] = MappingProxyType({})

    def name(self, key: str) -> str:
        return self.names.get(key) or f"{self.where}.{key}"

    @property
    def is_object(self) -> bool:
        """Whether it is an object in its row, with a place for more than its words."""
        return self.name("content").startswith(f"{self.where}.")

    @property
    def is_call(self) -> bool:
        """Whether its content was nothing but calls."""
        return self.names.get("tool_calls", "") == self.name("content")

    def refuse(self, key: str, expected: str, found: Any) -> NoReturn:
        refuse(self.name(key), expected, found)


def refuse(name: str, expected: str, found: Any) -> NoReturn:
    raise UserError(f"{name}: expected {expected}, found {'nothing' if found is None else describe(found)}")


def read_turns(value: Any, where: str) -> list[SourceTurn]:
    """Reads a list of turns, or the JSON of one; each has role and content, or ShareGPT's from and value.

    Raises:
        UserError: `messages[2].role: expected ..., found ...`
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, where, "a list of turns or the JSON of one")
    if not isinstance(value, list) or not value:
        refuse(where, "a list of turns", value)
    return [_turn(turn, f"{where}[{index}]") for index, turn in enumerate(value)]


def turn_keys(turn: dict) -> tuple[str, str]:
    """Finds the keys of a turn's role and its words: OpenAI's, ShareGPT's `from` and `value`, or one of each."""
    is_sharegpt = "from" in turn and turn.get("role") is None
    key, other = ("value", "content") if is_sharegpt else ("content", "value")
    if turn.get(key) is None and isinstance(turn.get(other), str | list):
        key = other
    return "from" if is_sharegpt else "role", key


def _turn(turn: Any, where: str) -> SourceTurn:
    if not isinstance(turn, dict):
        refuse(where, "an object with role and content", turn)
    keys = turn_keys(turn)
    names = {name: f"{where}.{key}" for name, key in zip(("role", "content"), keys, strict=True) if key != name}
    source = SourceTurn(dict(turn), where, names)
    said, content = map(turn.get, keys)
    role = said.lower() if isinstance(said, str) else None
    if role not in ROLE_NAMES:
        source.refuse("role", "system, human, gpt, function_call or observation" if "role" in names
                      else "system, user, assistant or tool", said)
    source.values.update(role=ROLE_NAMES[role], content=content)
    _take_reasoning(source, names)
    _take_calls(source, names, in_content=role in CALL_ROLES)
    return source


def _take_reasoning(turn: SourceTurn, names: dict[str, str]) -> None:
    """Puts the reasoning under its name, whatever the turn calls it."""
    given = [name for name in REASONING_FIELDS if turn.values.get(name)]
    for name in given[1:]:
        if turn.values[name] != turn.values[given[0]]:
            raise UserError(f"{turn.where}.{name}: expected the same text as {turn.where}.{given[0]}, found another")
    if given and given[0] != "reasoning_content":
        turn.values["reasoning_content"] = turn.values[given[0]]
        names["reasoning_content"] = f"{turn.where}.{given[0]}"


def _take_calls(turn: SourceTurn, names: dict[str, str], in_content: bool) -> None:
    """Puts the calls under `tool_calls`: those of OpenAI's older `function_call`, or of a ShareGPT turn's value."""
    given = [name for name in ("tool_calls", "function_call") if turn.values.get(name)] + ["content"] * in_content
    if len(given) > 1:
        raise UserError(f"{turn.name(given[1])}: expected the calls once, found them in {given[0]} too")
    if given and given[0] != "tool_calls":
        names["tool_calls"] = turn.name(given[0])
        turn.values["tool_calls"] = _calls(turn.values[given[0]], names["tool_calls"])
    if in_content:
        turn.values["content"] = ""


def _calls(value: Any, name: str) -> list:
    """Returns a list of calls, given one call, a list of them, or the JSON of either."""
    if isinstance(value, str):
        value = parse_json(value, name, CALL)
    if not value:
        refuse(name, CALL, value)
    return value if isinstance(value, list) else [value]
