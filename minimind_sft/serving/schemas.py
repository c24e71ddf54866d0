"""Checks JSON Schemas before a grammar is made of them: everything in one is honoured, or refused by its place.

The standard is JSON Schema 2020-12 (https://json-schema.org). Limits keep the time that a grammar takes below a second.
"""

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from minimind_sft.errors import describe
from minimind_sft.serving.problems import invalid, unsupported

ONE = ("additionalProperties", "items", "additionalItems")
SEVERAL = ("prefixItems", "anyOf", "oneOf", "allOf")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values are a schema, a list of schemas, and schemas by name."""
VALUES = ("type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems", "minLength",
          "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
          "$ref")
NOTES = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding",
         "contentMediaType", "$comment", "$schema", "$id", "$anchor", "discriminator")
"""Keywords that say nothing about which values are valid. Pydantic writes OpenAPI's `discriminator` beside `oneOf`."""
KEYWORDS = frozenset((*ONE, *SEVERAL, *NAMED, *VALUES, *NOTES))

UNWRITABLE = re.compile(r"(?<!\\)(?:\\\\)*(\\u00[01][0-9a-f]|\x7f)")
"""Control characters in JSON that have no escape of one letter."""

MAX_CHARACTERS = 60_000
MAX_DEPTH = 24
"""Schemas within schemas."""
MAX_PROPERTIES = 300
"""Of one object."""
MAX_MULTIPLE = 1000
"""For the product of all `multipleOf`: the grammar of one counts up to it."""
MAX_TOGETHER = 8
"""Patterns and formats in a schema whose parts have to be met together: the time grows exponentially with them."""
MAX_REPEATS = 100_000
"""For lengths of texts and lists, and for the number of properties."""


def check_schema(schema: Any, place: str) -> None:
    """Checks that a grammar can be made of a schema.

    Args:
        place: the field of the request that holds it.

    Raises:
        ApiProblem: a 400 that names the place in the schema.
    """
    if not isinstance(schema, dict):
        raise invalid(place, f"expected a JSON Schema, which is an object, found {describe(schema)}")
    if (size := len(json.dumps(schema, ensure_ascii=False))) > MAX_CHARACTERS:
        raise invalid(place, f"expected a schema of at most {MAX_CHARACTERS:,} characters, found {size:,}")
    product, targets, refs, patterns, is_combined = Decimal(1), {"#"}, [], 0, False
    for path, part in _walk(schema, "#", place):
        where = place + path[1:].replace("/", ".")
        _check_one(part, where)
        patterns += len(part.keys() & {"pattern", "format"})
        is_combined |= _is_combined(part)
        targets.add(path)
        if "$anchor" in part:
            targets.add(f"#{part['$anchor']}")
        if "$ref" in part:
            refs.append((where, part["$ref"]))
        if "multipleOf" in part:
            product *= _steps(part["multipleOf"], where)
            if product > MAX_MULTIPLE:
                raise unsupported(f"{where}.multipleOf", f"the product of all multipleOf is above {MAX_MULTIPLE:,}")
    if is_combined and patterns > MAX_TOGETHER:
        raise unsupported(place, f"expected at most {MAX_TOGETHER} patterns and formats in a schema with allOf, or "
                                 f"with anyOf, oneOf or $ref beside other keywords, found {patterns}")
    for where, ref in refs:
        if ref not in targets:
            raise unsupported(f"{where}.$ref", f"expected a schema inside this one, such as #/$defs/NAME, "
                                               f"found {describe(ref)}")


def _walk(schema: Any, path: str, place: str, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields all schemas in a schema, each with its JSON pointer."""
    where = place + path[1:].replace("/", ".")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise invalid(where, f"expected a JSON Schema, found {describe(schema)}")
    if depth > MAX_DEPTH:
        raise invalid(place, f"expected at most {MAX_DEPTH} levels of schemas")
    yield path, schema
    for name in schema.keys() & {*ONE, *SEVERAL, *NAMED}:
        value = schema[name]
        if name in NAMED:
            if not isinstance(value, dict):
                raise invalid(f"{where}.{name}", f"expected schemas by name, found {describe(value)}")
            parts = [(f"{path}/{name}/{_escaped(key)}", part) for key, part in value.items()]
        elif name in SEVERAL or isinstance(value, list):
            if not isinstance(value, list):
                raise invalid(f"{where}.{name}", f"expected a list of schemas, found {describe(value)}")
            parts = [(f"{path}/{name}/{index}", part) for index, part in enumerate(value)]
        else:
            parts = [(f"{path}/{name}", value)]
        for inner, part in parts:
            yield from _walk(part, inner, place, depth + 1)


def _is_combined(schema: Mapping[str, Any]) -> bool:
    """Tells whether values have to follow several parts of a schema."""
    return "allOf" in schema or (bool(schema.keys() & {"anyOf", "oneOf", "$ref"})
                                 and len(schema.keys() - {*NOTES, "$defs", "definitions"}) > 1)


def _check_one(schema: Mapping[str, Any], where: str) -> None:
    for name, value in schema.items():
        if name not in KEYWORDS:
            raise unsupported(f"{where}.{name}", "answers cannot be made to follow this keyword")
        if name[:3] in ("min", "max") and name not in ("minimum", "maximum") and (
                type(value) is not int or not 0 <= value <= MAX_REPEATS):
            raise invalid(f"{where}.{name}", f"expected a whole number from 0 to {MAX_REPEATS:,}, "
                                             f"found {describe(value)}")
    for name in ("$ref", "$anchor"):
        if not isinstance(schema.get(name, ""), str):
            raise invalid(f"{where}.{name}", f"expected a string, found {describe(schema[name])}")
    for name in ("const", "enum"):
        if found := UNWRITABLE.search(json.dumps(schema.get(name), ensure_ascii=False)):
            raise unsupported(f"{where}.{name}", f"answers cannot hold the control character {describe(found[1])}")
    properties = schema.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise invalid(f"{where}.properties", f"expected at most {MAX_PROPERTIES} of them, found {len(properties):,}")


def _steps(multiple: Any, where: str) -> Decimal:
    """Returns how far a grammar of a `multipleOf` counts: 25 for 0.25, 400 for 400."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or multiple <= 0:
        raise invalid(f"{where}.multipleOf", f"expected a number above 0, found {describe(multiple)}")
    number = Decimal(str(multiple)).normalize()
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "JSON has no infinite numbers"
    return number.scaleb(-exponent) if exponent < 0 else number


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
