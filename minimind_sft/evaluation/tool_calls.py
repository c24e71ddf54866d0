"""Scores tool calls by name and arguments, and answers that should be JSON."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from minimind_sft.errors import UserError
from minimind_sft.strict_json import parse_json

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
"""A call as ChatML templates write it; the last one may lack its end."""
MARK = "[TOOL_CALLS]"
"""Precedes a list of calls in Mistral's templates."""
ARGUMENTS = ("arguments", "parameters")


class Call(NamedTuple):
    """A call of a function. `arguments` is canonical JSON, so equal arguments are equal texts."""

    name: str
    arguments: str


class Calls(NamedTuple):
    """The calls in an answer, and the number of parts that should be calls and are not valid ones."""

    valid: list[Call]
    broken: int


def calls_in(answer: str) -> Calls:
    """Finds the calls in an answer.

    They stand between `<tool_call>` tags, or the whole answer is the JSON of a call or of a list of calls, after
    `[TOOL_CALLS]` or without anything. A valid call is an object with a `name` and, as an object or the JSON of one,
    `arguments` (or `parameters`, as Llama calls them).
    """
    if parts := TAGGED.findall(answer):
        found = [_call(_parsed(part)) for part in parts]
        return Calls([call for call in found if call], found.count(None))
    is_marked = answer.startswith(MARK)
    value = _parsed(answer.removeprefix(MARK))
    found = [_call(one) for one in (value if isinstance(value, list) else [value])]
    if found and None not in found:
        return Calls([call for call in found if call], 0)
    return Calls([], int(is_marked))


def expected_calls(message: dict) -> list[Call]:
    """Returns the calls of an assistant's message."""
    return [Call(call["function"]["name"], canonical(call["function"]["arguments"]))
            for call in message.get("tool_calls", ())]


def call_scores(answer: str, expected: Sequence[Call]) -> dict[str, float]:
    """Scores the calls of an answer, each 0 or 1; the order of several calls does not matter.

    With expected calls: `call_made` (it calls something), `call_valid` (and all of its calls are valid), `call_name`
    (and the names are the expected ones) and `call_exact` (and so are the arguments, as JSON values). Without:
    `needless_call`.
    """
    calls, broken = calls_in(answer)
    made = bool(calls or broken)
    if not expected:
        return {"needless_call": float(made)}
    valid = made and not broken
    named = valid and Counter(call.name for call in calls) == Counter(call.name for call in expected)
    exact = named and Counter(calls) == Counter(expected)
    return {"call_made": float(made), "call_valid": float(valid), "call_name": float(named), "call_exact": float(exact)}


def json_scores(answer: str, expected: str) -> dict[str, float]:
    """Scores an answer where a JSON object or list is expected, each 0 or 1; {} where other text is expected.

    `json_valid`: the whole answer is JSON; `json_equal`: and it has the expected value.
    """
    wanted = _parsed(expected)
    if not isinstance(wanted, dict | list):
        return {}
    given = _parsed(answer)
    equal = given is not INVALID and canonical(given) == canonical(wanted)
    return {"json_valid": float(given is not INVALID), "json_equal": float(equal)}


def canonical(value: Any) -> str:
    """Returns JSON that is equal for equal values: the order of keys does not matter, and 5.0 is 5."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


INVALID = object()
"""Stands for the value of text that is not JSON, as None is the value of `null`."""


def _parsed(text: str) -> Any:
    try:
        return parse_json(text, "", "")
    except UserError:
        return INVALID


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = next((value[key] for key in ARGUMENTS if key in value), None)
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    return Call(value["name"], canonical(arguments)) if isinstance(arguments, dict) else None
