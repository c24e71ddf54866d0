"""Makes a grammar of `response_format`, `tool_choice` and strict tools: the form that a request gives its answer.

A `json_schema` is followed whether it is `strict` or not, and so are the parameters of a call that is demanded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from minimind_sft.errors import describe
from minimind_sft.serving.grammars import Grammar, Grammars, Reasoning, json_rule, quoted
from minimind_sft.serving.problems import invalid, unsupported
from minimind_sft.serving.requests import ChatRequest, JsonFormat, SchemaFormat
from minimind_sft.serving.schemas import check_schema
from minimind_sft.serving.tool_formats import Pairs, Slot, ToolFormat

OBJECT = {"type": "object"}
NO_ARGUMENTS = {**OBJECT, "additionalProperties": False}
SCHEMA = "response_format.json_schema.schema"
CALL_ID = "/[a-zA-Z0-9]{9}/"
PYTHON_NAMES = {"boolean": '"True" | "False"', "null": '"None"'}
ABOUT_TEXTS = {"const", "pattern", "minLength", "maxLength", "format"}


def grammar_of(request: ChatRequest, grammars: Grammars, tool_format: ToolFormat | None,
               reasoning: Reasoning) -> Grammar | None:
    """Makes the grammar of the answers to a request; None if they may be any text.

    Args:
        tool_format: how the model's template writes calls; needed if the request offers tools.

    Raises:
        ApiProblem: a 400 that names the place in the request that answers cannot follow.
    """
    wanted = request.response_format if isinstance(request.response_format, JsonFormat | SchemaFormat) else None
    if not request.offered:
        return grammar_of_json(grammars, wanted, reasoning) if wanted else None
    assert tool_format is not None
    if request.parallel_tool_calls is False:
        tool_format = replace(tool_format, between=None)
    if request.forced:
        names = [request.forced] if isinstance(request.forced, str) else None
        return grammar_of_calls(grammars, tool_format, request.offered, names, reasoning)
    strict = next((index for index, tool in enumerate(request.offered) if tool["function"].get("strict")), None)
    if wanted is None and strict is None:
        return None
    if not tool_format.mark:
        raise unsupported("response_format" if wanted else f"tools[{strict}].function.strict",
                          "not together with calls that the model may make or not, as nothing marks its calls")
    if wanted is not None:
        calls = _call_rules(grammars, tool_format, request.offered, None, begun="")
        return grammars.compile(f"body: json | calls\njson: {_json_body(wanted)}\n{calls}", reasoning,
                                "response_format")
    calls = _call_rules(grammars, tool_format, request.offered, None, begun=tool_format.mark)
    return grammars.compile(f"body: WORDS | before calls\nWORDS: {grammars.without(tool_format.mark)}\n"
                            f"{grammars.until('before', tool_format.mark)}{calls}", reasoning, "tools")


def grammar_of_json(grammars: Grammars, wanted: JsonFormat | SchemaFormat, reasoning: Reasoning) -> Grammar:
    """Makes the grammar of a `response_format`.

    Raises:
        ApiProblem: a 400 that names the place in the schema that answers cannot follow.
    """
    is_any = isinstance(wanted, JsonFormat) or wanted.json_schema.schema_ is None
    return grammars.compile(f"body: {_json_body(wanted)}\n", reasoning, "response_format" if is_any else SCHEMA)


def grammar_of_calls(grammars: Grammars, tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]],
                     names: Sequence[str] | None, reasoning: Reasoning) -> Grammar:
    """Makes the grammar of an answer that is calls, as many as the model likes, and nothing else after reasoning.

    Args:
        names: the functions that may be called; None: all.

    Raises:
        ApiProblem: a 400 that names the place in a function's parameters that answers cannot follow.
    """
    return grammars.compile(f"body: calls\n{_call_rules(grammars, tool_format, tools, names)}", reasoning,
                            "tool_choice")


def _json_body(wanted: JsonFormat | SchemaFormat) -> str:
    if isinstance(wanted, JsonFormat) or wanted.json_schema.schema_ is None:
        return json_rule(OBJECT)
    check_schema(wanted.json_schema.schema_, SCHEMA)
    return json_rule(wanted.json_schema.schema_)


def _call_rules(grammars: Grammars, tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]],
                names: Sequence[str] | None, begun: str | None = None) -> str:
    """Returns the rules of `calls`.

    Args:
        begun: the beginning of the first call that other rules have, for an answer that need not be a call: only the
            arguments of strict functions follow their schema, and no blanks come before the first call. None: calls
            are demanded.
    """
    rules, calls = [], []
    for index, tool in enumerate(tools):
        function = tool["function"]
        if names is not None and function["name"] not in names:
            continue
        rule, place = f"arguments_{index}", f"tools[{index}].function.parameters"
        follows = begun is None or function.get("strict") or tool_format.pairs
        schema = (function.get("parameters") or NO_ARGUMENTS) if follows else OBJECT
        check_schema(schema, place)
        if (kind := schema.get("type", "object")) != "object":
            raise invalid(f"{place}.type", f'expected "object", found {describe(kind)}')
        rules += ([f"{rule}: {json_rule({**OBJECT, **schema})}\n"] if tool_format.pairs is None
                  else _Arguments(grammars, tool_format.pairs, schema, rule, place).rules())
        slots = {Slot.NAME: quoted(function["name"]), Slot.ARGUMENTS: rule, Slot.ID: CALL_ID}
        calls.append(" ".join(grammars.literal(part) if isinstance(part, str) else slots[part]
                              for part in tool_format.call[1:]))
    first = tool_format.beginning if begun is None else tool_format.beginning.lstrip()[len(begun):]
    more = ""
    if tool_format.between is not None:
        next_one = tool_format.beginning[len(tool_format.opening):]
        more = f"({grammars.literal(tool_format.between)} {grammars.literal(next_one)} call)*"
    body = f"{grammars.literal(first)} call {more} {grammars.literal(tool_format.closing)}"
    return f"calls: {body}\ncall: {' | '.join(calls)}\n{''.join(rules)}"


class _Arguments:
    """The rules of arguments that are written one by one, those that may be left out among them."""

    def __init__(self, grammars: Grammars, pairs: Pairs, schema: Mapping[str, Any], rule: str, place: str):
        self._pairs, self._schema, self._rule, self._place = pairs, schema, rule, place
        self._grammars, self._after = grammars, grammars.literal(pairs.after_value)

    def rules(self) -> list[str]:
        """Returns the rules; the first stands for all arguments.

        Raises:
            ApiProblem: for a property that cannot be written like that.
        """
        properties, required = self._schema.get("properties", {}), self._schema.get("required", [])
        if missing := [name for name in required if name not in properties]:
            raise unsupported(f"{self._place}.required", f"expected names of properties, found {describe(missing[0])}")
        before, after = map(self._grammars.literal, (self._pairs.before_name, self._pairs.before_value))
        rules, parts = [], ['""']
        for index, (name, schema) in enumerate(properties.items()):
            rule = f"{self._rule}_{index}"
            parts.append(rule if name in required else f"{rule}?")
            rules += [f"{rule}: {before} {quoted(name)} {after} {rule}_value\n",
                      *self._value(f"{rule}_value", schema, f"{self._place}.properties.{name}")]
        return [f"{self._rule}: {' '.join(parts)}\n", *rules]

    def _value(self, rule: str, schema: Any, place: str) -> list[str]:
        """Returns the rules of a value and the text after it."""
        given = schema if isinstance(schema, dict) else {}
        kind = given.get("type")
        if not isinstance(kind, str) or (kind == "string" and given.keys() & ABOUT_TEXTS):
            raise unsupported(place, "expected one type, and for a string nothing else but enum, as the chat template "
                                     "writes arguments as plain text")
        if kind == "string" and "enum" not in given:
            return [self._grammars.until(rule, self._pairs.after_value)]
        if kind == "string":
            texts = " | ".join(quoted(value) for value in given["enum"] if isinstance(value, str))
            return [f"{rule}: ({texts}) {self._after}\n"]
        if self._pairs.constants == "python" and kind in PYTHON_NAMES:
            return [f"{rule}: ({PYTHON_NAMES[kind]}) {self._after}\n"]
        shared = {name: self._schema[name] for name in ("$defs", "definitions") if name in self._schema}
        return [f"{rule}: {rule}_json {self._after}\n", f"{rule}_json: {json_rule({**shared, **given})}\n"]
