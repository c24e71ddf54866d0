"""The dresses that conversation data come in, recognised by their fields: a row becomes turns of one form.

A turn keeps the names that its fields have in the row, so that an error about it names what the person wrote.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from minimind_sft.data.reading import describe, parse_json
from minimind_sft.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {"developer": "system", "function": "tool"}
"""OpenAI's newer name of the system turn, and the older one of a tool's."""

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


class SourceTurn(NamedTuple):
    """A turn as its row has it, under OpenAI's names, unchecked.

    values: role, content and what else there is.
    where: the turn in its row, `messages[2]`.
    names: the row's own name of a value, where it is not `<where>.<key>`.
    """

    values: dict
    where: str
    names: Mapping[str, str] = MappingProxyType({})

    def name(self, key: str) -> str:
        return self.names.get(key) or f"{self.where}.{key}"

    def refuse(self, key: str, expected: str, found: Any) -> NoReturn:
        refuse(self.name(key), expected, found)


def source_turns(row: dict) -> list[SourceTurn] | None:
    """The turns of a row in any of the forms; None for a row of running text, `{"text": ...}`.

    Raises:
        UserError: `field: expected ..., found ...`, if the row has none of the forms, or two of them.
    """
    found = [form for form in FORMS if all(row.get(name) is not None for name in form)]
    if len(found) > 1:
        raise UserError(f"{found[0][0]}: expected one form of conversation in a row, found "
                        f"{' and '.join(' with '.join(form) for form in found)}")
    if found:
        turns = FORMS[found[0]](row)
    elif row.get("text") is not None:
        return None
    else:
        _refuse_row(row)
    system = row.get("system")
    if system not in (None, ""):
        turns.insert(0, SourceTurn({"role": "system", "content": system}, "system", {"content": "system"}))
    return turns


def form_name(row: dict) -> str:
    """The form of a row that `source_turns` understands: `conversations (from, value)`, `instruction, output`."""
    form = next((form for form in FORMS if all(row.get(name) is not None for name in form)), ("text",))
    turns = row[form[0]]
    if not isinstance(turns, list):
        return ", ".join(form)
    return f"{', '.join(form)} ({'from, value' if 'from' in turns[0] and 'role' not in turns[0] else 'role, content'})"


def refuse(name: str, expected: str, found: Any) -> NoReturn:
    raise UserError(f"{name}: expected {expected}, found {'nothing' if found is None else describe(found)}")


def field_names(row: dict) -> str:
    """The first names, for an error message."""
    names = [json.dumps(name, ensure_ascii=False)[1:-1][:40] for name in sorted(row)[:10]]
    return ", ".join(names) + (", ..." if len(row) > 10 else "") or "no fields"


def _refuse_row(row: dict) -> NoReturn:
    """A row in none of the forms: what its form lacks, if it has a part of one."""
    for form in FORMS:
        missing = [name for name in form if row.get(name) is None]
        if len(missing) < len(form):
            refuse(missing[0], f"a value, as the row has {' and '.join(set(form) - set(missing))}", None)
    keys = field_names(row)
    raise UserError("conversations: expected conversations, messages, prompt with completion, instruction with "
                    f"output, or text, found a row with {keys}")


def _listed_turns(name: str) -> Callable[[dict], list[SourceTurn]]:
    return lambda row: _turns(row[name], name)


def _turns(value: Any, where: str) -> list[SourceTurn]:
    """A list of turns, each with role and content, or with ShareGPT's from and value."""
    if not isinstance(value, list) or not value:
        refuse(where, "a list of turns", value)
    turns = []
    for index, turn in enumerate(value):
        here = f"{where}[{index}]"
        if not isinstance(turn, dict):
            refuse(here, "an object with role and content", turn)
        is_sharegpt = "from" in turn and "role" not in turn
        turns.append(_sharegpt_turn(turn, here) if is_sharegpt else _openai_turn(turn, here))
    return turns


def _openai_turn(turn: dict, where: str) -> SourceTurn:
    values, names = dict(turn), {}
    role = turn.get("role")
    if isinstance(role, str):
        values["role"] = OTHER_ROLES.get(role, role)
    _take_reasoning(turn, where, values, names)
    if turn.get("function_call") and not turn.get("tool_calls"):  # OpenAI's form before there were several
        values["tool_calls"], names["tool_calls"] = [turn["function_call"]], f"{where}.function_call"
    return SourceTurn(values, where, names)


def _take_reasoning(turn: dict, where: str, values: dict, names: dict[str, str]) -> None:
    """Puts the reasoning under its name, whatever the turn calls it."""
    given = [name for name in REASONING_FIELDS if turn.get(name)]
    if len(given) > 1:
        raise UserError(f"{where}.{given[1]}: expected the reasoning once, found it in {given[0]} too")
    if given and given[0] != "reasoning_content":
        values["reasoning_content"], names["reasoning_content"] = turn[given[0]], f"{where}.{given[0]}"


def _sharegpt_turn(turn: dict, where: str) -> SourceTurn:
    names = {"role": f"{where}.from", "content": f"{where}.value"}
    said = turn["from"]
    role = SHAREGPT_ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        refuse(names["role"], f"one of {', '.join(SHAREGPT_ROLES)}", said)
    values = {**turn, "role": role, "content": turn.get("value")}
    _take_reasoning(turn, where, values, names)
    if said == "function_call":
        names["tool_calls"] = names["content"]
        calls = turn.get("value")
        if isinstance(calls, str):
            calls = parse_json(calls, names["content"], "a call {\"name\", \"arguments\"} or a list of them, in JSON")
        values |= {"content": "", "tool_calls": [calls] if isinstance(calls, dict) else calls}
        if not values["tool_calls"]:
            refuse(names["content"], "a call {\"name\", \"arguments\"} or a list of them, in JSON", calls)
    return SourceTurn(values, where, names)


def _prompt_turns(row: dict) -> list[SourceTurn]:
    """Text, or messages. Assistant's turns inside the prompt are given, not learned, unless they say otherwise."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        before = [SourceTurn({"role": "user", "content": prompt}, "prompt", {"content": "prompt"})]
    else:
        before = [turn._replace(values={**turn.values, "train": False})
                  if turn.values.get("role") == "assistant" and not _is_flagged(turn) else turn
                  for turn in _turns(prompt, "prompt")]
    if isinstance(completion, str):
        after = [SourceTurn({"role": "assistant", "content": completion}, "completion", {"content": "completion"})]
    else:
        after = _turns([completion] if isinstance(completion, dict) else completion, "completion")
    return before + after


def _is_flagged(turn: SourceTurn) -> bool:
    return any(turn.values.get(name) is not None for name in ("train", "weight"))


def _alpaca_turns(row: dict) -> list[SourceTurn]:
    """Alpaca: the question is the instruction, with the input on the line below it; `history` has what came before."""
    turns = []
    history = row.get("history")
    if not isinstance(history, list | None):
        refuse("history", "a list of [question, answer] pairs", history)
    for index, pair in enumerate(history or []):
        if not isinstance(pair, list) or len(pair) != 2:
            refuse(f"history[{index}]", "a pair [question, answer]", pair)
        for role, said, name in zip(("user", "assistant"), pair, ("[0]", "[1]"), strict=True):
            turns.append(SourceTurn({"role": role, "content": said}, f"history[{index}]",
                                    {"content": f"history[{index}]{name}"}))
    for name in ("instruction", "input"):
        if not isinstance(row.get(name), str | None):
            refuse(name, "a string", row[name])
    question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    if not question.strip():
        refuse("instruction", "a question", question)
    turns.append(SourceTurn({"role": "user", "content": question}, "instruction", {"content": "instruction"}))
    turns.append(SourceTurn({"role": "assistant", "content": row["output"]}, "output", {"content": "output"}))
    return turns


FORMS: dict[tuple[str, ...], Callable[[dict], list[SourceTurn]]] = {
    ("conversations",): _listed_turns("conversations"),
    ("messages",): _listed_turns("messages"),
    ("prompt", "completion"): _prompt_turns,
    ("instruction", "output"): _alpaca_turns,
}
"""By the fields that make the form. Running text counts only where none of them is there: Alpaca's rows often carry a
rendering of themselves as `text`."""
