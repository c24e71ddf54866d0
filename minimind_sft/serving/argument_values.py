"""Reads values of arguments that a template writes without quotes: the tool's schema says whether one is a string."""

from collections.abc import Mapping
from typing import Any, Literal

from minimind_sft.errors import UserError
from minimind_sft.serving.tool_formats import to_json
from minimind_sft.strict_json import parse_json

PYTHON_CONSTANTS = {"True": True, "False": False, "None": None}
UNIONS = ("anyOf", "oneOf")


def argument_json(text: str, parameters: Mapping[str, Any], name: str, constants: Literal["json", "python"]) -> str:
    """Returns the JSON of a value.

    It is the value that the text spells, if the schema allows its type, and otherwise the text as a string.

    Args:
        parameters: the schema of all arguments; may be empty.
        constants: as in `Pairs`.
    """
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    allowed = _types(schema) if isinstance(schema, Mapping) else set()
    try:
        value = PYTHON_CONSTANTS[text] if constants == "python" and text in PYTHON_CONSTANTS else parse_json(text, "")
    except UserError:
        return to_json(text)
    is_allowed = not isinstance(value, str) and (not allowed or bool(allowed & _types_of(value)))
    return to_json(value if is_allowed else text)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Returns the types that a schema names; none if it allows any."""
    given = schema.get("type")
    if given is not None:
        return {given} if isinstance(given, str) else set(map(str, given)) if isinstance(given, list) else set()
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    found = {name for value in values for name in _types_of(value)}
    unions = [union for name in UNIONS if isinstance(union := schema.get(name), list)]
    options = [option.get("type") for union in unions for option in union if isinstance(option, Mapping)]
    return found | {name for name in options if isinstance(name, str)}


def _types_of(value: Any) -> set[str]:
    """Returns what JSON Schema calls the type of a value."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}
