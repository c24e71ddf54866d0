"""Schemas that answers cannot follow are refused by their place, in bounded time."""

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("llguidance", reason="the extra [serve] is not installed")

from constrained import allows, byte_level, grammars

from minimind_sft.errors import UserError
from minimind_sft.serving.constraints import grammar_of_json
from minimind_sft.serving.grammars import Constraint, Grammar
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.requests import SchemaFormat
from minimind_sft.serving.schemas import check_schema

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
SCHEMA = "response_format.json_schema.schema"


def grammar(schema: dict[str, Any]) -> Grammar:
    wanted = SchemaFormat.model_validate({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    return grammar_of_json(grammars(byte_level()), wanted, "none")


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


TOGETHER = ("expected at most 8 patterns and formats in a schema with allOf, or with anyOf, oneOf or $ref beside other "
            "keywords, found 9")
REFUSED: dict[str, tuple[Any, str, str]] = {
    "not an object": (7, "", "expected a JSON Schema, which is an object, found 7"),
    "unknown keyword": ({"nullable": True}, ".nullable", "answers cannot be made to follow this keyword"),
    "options of the library": ({"x-guidance": {"lenient": True}, "not": {}}, ".x-guidance",
                               "answers cannot be made to follow this keyword"),
    "inside": ({"properties": {"a": {"anyOf": [TEXT, {"if": {}}]}}}, ".properties.a.anyOf.1.if",
               "answers cannot be made to follow this keyword"),
    "no schema": ({"properties": {"a": 5}}, ".properties.a", "expected a JSON Schema, found 5"),
    "no list": ({"anyOf": {}}, ".anyOf", "expected a list of schemas, found an object"),
    "no names": ({"$defs": []}, ".$defs", "expected schemas by name, found an empty list"),
    "no properties": ({"properties": None}, ".properties", "expected schemas by name, found null"),
    "far away": ({"$ref": "https://example.org/x"}, ".$ref",
                 'expected a schema inside this one, such as #/$defs/NAME, found "https://example.org/x"'),
    "into a note": ({"$ref": "#/examples/0", "examples": [TEXT]}, ".$ref",
                    'expected a schema inside this one, such as #/$defs/NAME, found "#/examples/0"'),
    "no text": ({"$ref": ["#"]}, ".$ref", "expected a string, found a list"),
    "no anchor": ({"$anchor": []}, ".$anchor", "expected a string, found an empty list"),
    "too deep": (nested(25), "", "expected at most 24 levels of schemas"),
    "too large": ({"enum": ["x" * 60_000]}, "", "expected a schema of at most 60,000 characters, found 60,014"),
    "too many": ({"properties": {f"p{n}": {} for n in range(301)}}, ".properties",
                 "expected at most 300 of them, found 301"),
    "too long": ({"minLength": 10**9}, ".minLength", "expected a whole number from 0 to 100,000, found 1000000000"),
    "negative": ({"maxItems": -1}, ".maxItems", "expected a whole number from 0 to 100,000, found -1"),
    "counts too far": ({"multipleOf": 1009}, ".multipleOf", "the product of all multipleOf is above 1,000"),
    "counts too far in tens": ({"multipleOf": 1e9}, ".multipleOf", "the product of all multipleOf is above 1,000"),
    "counts too far together": ({"allOf": [{"multipleOf": n} for n in (0.11, 9, 13)]}, ".allOf.2.multipleOf",
                                "the product of all multipleOf is above 1,000"),
    "counts nothing": ({"multipleOf": 0}, ".multipleOf", "expected a number above 0, found 0"),
    "counts words": ({"multipleOf": "2"}, ".multipleOf", 'expected a number above 0, found "2"'),
    "control characters": ({"enum": ["a", ["\\\x01"]]}, ".enum",
                           'answers cannot hold the control character "\\\\u0001"'),
    "many patterns together": ({"allOf": [{"pattern": f".*a.{{{n}}}b.*"} for n in range(9)]}, "", TOGETHER),
    "many patterns together, nested": ({"pattern": "x", "anyOf": [{"pattern": "y", "$ref": "#/$defs/d"}], "$defs": {
        "d": {"allOf": [{"format": "date"} for n in range(7)]}}}, "", TOGETHER),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 3}, "",
                      "answers cannot be made to follow it: Unsatisfiable schema: minimum (5) is greater than maximum "
                      "(3)"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "",
                   "answers cannot be made to follow it: regex parse error: (?=a)b ^^^ error: look-around, including "
                   "look-ahead and look-behind, is not supported"),
    "unknown format": ({"type": "string", "format": "x"}, "",
                       "answers cannot be made to follow it: Unknown format: x"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "",
                          "answers cannot be made to follow it: the parts of oneOf do not clearly exclude each other; "
                          "anyOf need not"),
    "itself": ({"$ref": "#"}, "", "no answer can follow it"),
    "doubling": ({"allOf": [{"anyOf": [{"properties": {f"k{n}": {"const": value}}} for value in range(2)]}
                            for n in range(14)]}, "", "answers cannot be made to follow it: schema too large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_answers_cannot_follow_is_refused(name: str):
    schema, place, problem = REFUSED[name]
    with pytest.raises(ApiProblem) as caught:
        if isinstance(schema, dict):
            grammar(schema)
        else:
            check_schema(schema, SCHEMA)
    found = caught.value
    assert (found.status, found.param, found.message) == (400, SCHEMA + place, f"{SCHEMA}{place}: {problem}")


FOLLOWED: dict[str, tuple[dict[str, Any], str, str]] = {
    "notes": ({**TEXT, "title": "t", "description": "d", "default": 1, "examples": [2], "$comment": "c",
               "$schema": "https://json-schema.org/draft/2020-12/schema"}, '"x"', "1"),
    "names like keywords": ({"type": "object", "properties": {"not": WHOLE, "$ref": WHOLE}}, '{"not": 1, "$ref": 2}',
                            '{"not": "x"}'),
    "its parts": ({"$defs": {"a/b~": WHOLE}, "$ref": "#/$defs/a~1b~0"}, "1", '"x"'),
    "an anchor": ({"$defs": {"x": {"$anchor": "here", **WHOLE}}, "$ref": "#here"}, "1", '"x"'),
    "draft 7": ({"definitions": {"x": WHOLE}, "type": "array", "items": [{"$ref": "#/definitions/x"}],
                 "additionalItems": False}, "[1]", "[1, 2]"),
    "itself, at an end": ({"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
                          '{"next": {"next": {}}}', '{"next": 1}'),
    "deep": (nested(24), "[" * 24 + '"x"' + "]" * 24, "[" * 23 + '"x"' + "]" * 23),
    "fractions": ({"type": "number", "multipleOf": 0.25}, "1.75", "1.7"),
    "numbers below zero": ({"type": "number", "minimum": -1.5, "exclusiveMaximum": 0}, "-1.5", "0"),
    "texts that look like escapes": ({"const": "\\u0001\n"}, '"\\\\u0001\\n"', "1"),
    "a union that a property tells apart": (
        {"$defs": {name: {"type": "object", "properties": {"kind": {"const": name}, name: WHOLE},
                          "required": ["kind", name], "additionalProperties": False} for name in ("a", "b")},
         "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
         "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/a", "b": "#/$defs/b"}}},
        '{"kind": "b", "b": 1}', '{"kind": "b", "a": 1}'),
    "any": ({}, '{"a": [1, null, true, "x"]}', "x"),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_schemas_that_answers_follow(name: str):
    schema, right, wrong = FOLLOWED[name]
    made, spell = grammar(schema), byte_level().encode_ordinary
    assert allows(made, spell(right)) and not allows(made, spell(wrong))


def test_a_grammar_that_takes_too_long_ends_the_answers_of_its_request_only(monkeypatch):
    monkeypatch.setattr("minimind_sft.serving.grammars.MAX_LEXER_STATES", 200)
    made = grammar({"type": "string", "minLength": 50_000})
    constraint = made.constraint()
    with pytest.raises(UserError, match=r"^the answer cannot be made to follow its format any further: "):
        for token in byte_level().encode_ordinary('"' + "a" * 1000):
            assert constraint.allowed_V()[token]
            constraint.accept(token)
    assert grammar({"type": "string", "minLength": 50_000}).constraint().allowed_V().any()


class Panicking:
    """A matcher whose library fails as those written in Rust do."""

    def compute_bitmask(self) -> bytes:
        class PanicException(BaseException):
            pass

        raise PanicException("index out of\nbounds")


def test_a_panic_of_the_library_ends_its_own_answer_only():
    with pytest.raises(UserError, match=r"^the answer cannot be made to follow its format any further: index out of b"):
        Constraint(Panicking(), 7).allowed_V()
