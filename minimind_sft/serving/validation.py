"""Turns what pydantic says about a body into one refusal that names the field."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from minimind_sft.errors import MAX_SHOWN, describe, printable
from minimind_sft.serving.problems import ApiProblem, invalid, unsupported

EXPECTED = "Input should be "
"""The beginning of most of pydantic's messages."""
CODES = {"literal_error": "unsupported_value"}
"""OpenAI's words for kinds of errors; others are an `invalid_type` or an `invalid_value`."""
OWN_WORDS = {
    "model_type": "an object", "model_attributes_type": "an object", "dict_type": "an object", "list_type": "a list",
    "too_long": "at most {max_length} of them", "too_short": "at least {min_length} of them",
    "string_too_long": "at most {max_length} characters", "string_too_short": "some text",
    "string_pattern_mismatch": "text that matches {pattern}",
}
"""Our words for an expected value, where pydantic's are not clear."""
NO_SUCH_FIELD = "this server knows no such field"
NO_NAMES = "; chat templates show no names: put it into the content"
MIN_LIKENESS = 0.75
MAX_UNKNOWN = 20
"""Unknown fields that are looked at: a body may have many."""


def problem_of(error: ValidationError, body: dict[str, Any], fields: Iterable[str]) -> ApiProblem:
    """Returns the refusal for the error that lies deepest in the body, whose own fields are `fields`.

    A value that may have several types has an error for each of them: the deepest belongs to the type that was meant,
    and so does one that finds no fault with the type.
    """
    errors = error.errors(include_url=False, include_context=True)
    deepest = max(errors, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    unknown = [one["loc"] for one in errors if one["type"] == "extra_forbidden"][:MAX_UNKNOWN]
    beside = [str(loc[-1]) for loc in unknown if loc[:-1] == deepest["loc"][:-1]]
    if deepest["type"] == "missing" and (typed := _nearest(str(deepest["loc"][-1]), beside)):
        param = _param(deepest["loc"], body, is_missing=True)
        return invalid(param, f"expected a value, found {describe(typed)} instead", "missing_required_parameter")
    return _problem(deepest, body, fields)


def _problem(error: ErrorDetails, body: dict[str, Any], fields: Iterable[str]) -> ApiProblem:
    kind, found = error["type"], describe(error["input"])
    param = _param(error["loc"], body, is_missing=kind == "missing")
    if kind == "extra_forbidden":
        return unsupported(param, NO_SUCH_FIELD + (_meant(param, fields) if len(error["loc"]) == 1 else ""))
    if kind == "none_required":
        advice = NO_NAMES if param.endswith(".name") else ""
        return unsupported(param, f"not supported here, expected nothing, found {found}{advice}")
    if kind == "missing":
        return invalid(param, "expected a value, found nothing", "missing_required_parameter")
    if kind.startswith("union_tag"):
        name = error["ctx"]["discriminator"].strip("'")
        expected = error["ctx"].get("expected_tags", "a value").replace("'", "")
        tag = error["input"].get(name) if isinstance(error["input"], dict) else None
        return invalid(f"{param}.{name}", f"expected {expected}, found {'nothing' if tag is None else describe(tag)}")
    if kind == "too_long":
        found = str(error["ctx"].get("actual_length") or found)  # of a list, not its values
    code = "invalid_type" if kind.endswith("_type") else CODES.get(kind, "invalid_value")
    return invalid(param, f"expected {_expected(error)}, found {found}", code)


def _meant(name: str, fields: Iterable[str]) -> str:
    """Returns the question whether another field was meant, if the name is like one."""
    nearest = _nearest(name, fields)
    return f"; did you mean {nearest}?" if nearest else ""


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """Returns the name that is most like another, or None if none is like it."""
    return next(iter(get_close_matches(name, [one[:MAX_SHOWN] for one in names], n=1, cutoff=MIN_LIKENESS)), None)


def _expected(error: ErrorDetails) -> str:
    if error["type"] in OWN_WORDS:
        return OWN_WORDS[error["type"]].format(**error.get("ctx", {}))
    return error["msg"].removeprefix(EXPECTED).replace("False", "false")


def _param(place: Sequence[int | str], body: Any, is_missing: bool) -> str:
    """Returns the name of a field, such as `messages[2].content`, without pydantic's names of types."""
    name, value = "", body
    for index, step in enumerate(place):
        if isinstance(step, int) and isinstance(value, list):
            name, value = f"{name}[{step}]", value[step]
        elif isinstance(value, dict) and (step in value or (is_missing and index == len(place) - 1)):
            name, value = f"{name}.{shown_key(str(step))}" if name else shown_key(str(step)), value.get(step)
    return name


def shown_key(key: str) -> str:
    """Returns a client's name of a field as messages show it."""
    return printable(key[:MAX_SHOWN])
