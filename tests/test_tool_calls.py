"""Calls are read while they arrive, in every format that a template writes, however the text is cut."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_templates import FAMILIES, FAMILY_TOKENIZER, ONE_CALL, family_template, message

from minimind_sft.inference.request import Token
from minimind_sft.serving.answers import AnswerReader
from minimind_sft.serving.tool_calls import CallPiece, CallReader
from minimind_sft.serving.tool_formats import Call, ToolFormat

SCHEMA = {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "when": {"type": ["string", "null"]}, "deep": {},
    "unit": {"enum": ["C", "F"]}, "exact": {"anyOf": [{"type": "boolean"}, {"type": "number"}]}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "get_time-2")]
CALLS = [Call("weather", {"city": "罗马 \"x\"\n{1}", "days": 3, "deep": {"a": [1, {"b": None}], "c": ""}}),
         Call("get_time-2", {}, "call00002"),
         Call("weather", {"city": "5", "unit": "C", "when": None, "exact": True}, "call00003")]


@cache
def format_of(family: str) -> ToolFormat:
    return ToolFormat.of(family_template(family))


def written(family: str, content: str, calls: list[Call]) -> str:
    """Returns the answer as the family's template writes it, up to the end of the turn."""
    template, question = family_template(family), [{"role": "user", "content": "q"}]
    prompt = template.render(question, TOOLS, True)
    return template.render([*question, message(content, calls)], TOOLS).removeprefix(prompt).partition("<|im_end|>")[0]


def read(family: str, pieces, tools=TOOLS) -> tuple[str, list[tuple[str, str]], CallReader]:
    """Returns (content, calls as name and JSON, the reader) of a text that arrives in pieces."""
    reader = CallReader(format_of(family), tools)
    found = [one for piece in pieces for one in reader.push(piece)] + reader.end()
    return *collected(found), reader


def collected(found: list[str | CallPiece]) -> tuple[str, list[tuple[str, str]]]:
    calls: list[list[str]] = []
    for one in found:
        if isinstance(one, CallPiece):
            assert (one.name is not None) == (one.index == len(calls)) == (one.id is not None)
            if one.name is not None:
                assert len(one.id or "") == 9 and not one.arguments
                calls.append([one.name, ""])
            assert one.index == len(calls) - 1
            calls[-1][1] += one.arguments
    return "".join(one for one in found if isinstance(one, str)), [(name, given) for name, given in calls]


def parsed(calls: list[tuple[str, str]]) -> list[Call]:
    return [Call(name, json.loads(arguments)) for name, arguments in calls]


def same(calls: list[Call]) -> list[Call]:
    return [Call(call.name, dict(call.arguments)) for call in calls]


def splits(text: str) -> list[list[str]]:
    """Returns a text whole, by characters, and cut in two at every place."""
    return [[text], list(text), *([text[:at], text[at:]] for at in range(1, len(text)))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("content", ["", "Let me see:"])
def test_what_the_template_writes_is_read_in_every_split(family, content):
    calls = CALLS[:1] if family in ONE_CALL else CALLS
    content = "" if family in ("llama3", "openai") else content  # their calls have no mark
    text = written(family, content, calls)
    for pieces in splits(text):
        found, read_calls, reader = read(family, pieces)
        assert (found, parsed(read_calls), reader.complete) == (content, same(calls), len(calls))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_come_before_arguments_and_arguments_as_they_arrive(family):
    reader = CallReader(format_of(family), TOOLS)
    text = written(family, "", [CALLS[0]])
    pieces = [one for character in text for one in reader.push(character)]
    assert isinstance(pieces[0], CallPiece) and pieces[0].name == "weather"
    streams = family not in ("qwen_coder", "glm", "granite")
    assert len(pieces) > 40 if streams else 2 <= len(pieces) <= 5


TOKENIZERS = {"qwen": "<tool_call>", "mistral": "[TOOL_CALLS]", "deepseek": "<｜tool▁calls▁begin｜>",
              "glm": "<arg_key>"}


@pytest.mark.parametrize("family", TOKENIZERS)
def test_calls_of_tokens(family):
    text = "<think>\nhm\n</think>\n\nSo 你:\n" + written(family, "", CALLS)
    ids = FAMILY_TOKENIZER.encode(text)
    assert FAMILY_TOKENIZER.token_to_id(TOKENIZERS[family]) in ids
    reader = AnswerReader(FAMILY_TOKENIZER, False, CallReader(format_of(family), TOOLS), ["END"])
    deltas = [delta for token_id in ids for delta in reader.push([Token(token_id)])] + reader.end("stop")
    found = [delta.call or delta.content for delta in deltas if delta.call or delta.content]
    content, calls = collected(found)
    assert (content, parsed(calls)) == ("So 你:", same(CALLS))
    assert "".join(delta.reasoning for delta in deltas) == "hm"
    assert reader.finish_reason == "tool_calls"


@pytest.mark.parametrize("family", TOKENIZERS)
def test_an_answer_of_one_call_ends_with_it(family):
    ids = FAMILY_TOKENIZER.encode("So:\n" + written(family, "", CALLS) + " and so on")
    reader = AnswerReader(FAMILY_TOKENIZER, False, CallReader(format_of(family), TOOLS, one_call=True))
    deltas = []
    while not reader.stopped:
        deltas += reader.push([Token(ids.pop(0))])
    assert ids and reader.push([Token(ids[0])]) == []
    content, calls = collected([delta.call or delta.content for delta in deltas + reader.end("cancelled")])
    assert (content, parsed(calls)) == ("So:", same(CALLS[:1]))
    assert reader.finish_reason == "tool_calls"


@pytest.mark.parametrize(("text", "expected", "complete"), [
    ('<tool_call>{"arguments":{"a":1},"name":"f"}</tool_call>', ("", [("f", '{"a":1}')]), 1),
    ('<tool_call>\n\n{ "name" : "f" , "parameters" : { } }\n</tool_call>\n', ("", [("f", "{ }")]), 1),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("f", '{"a": 1}')]), 1),
    ('<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")]), 1),
    ('<tool_call>{"id": 7, "x": [1, "}"], "y": null, "name": "f", "arguments": {}, "z": {"q": 1}}</tool_call> done',
     (" done", [("f", "{}")]), 1),
    ('a <tool_call>{"name": "f", "arguments": {}}</tool_call> b <tool_call>{"name": "g", "arguments": {}}</tool_call>',
     ("a b", [("f", "{}"), ("g", "{}")]), 2),
    # cut off
    ('<tool_call>{"name": "f", "argu', ('<tool_call>{"name": "f", "argu', []), 0),
    ('<tool_call>{"name": "f", "arguments": {"a": [1, ', ("", [("f", '{"a": [1, ')]), 0),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}', ("", [("f", '{"a": 1}')]), 1),
    ("so <tool_c", ("so <tool_c", []), 0),
    ("so <tool_call>", ("so <tool_call>", []), 0),
    # malformed: content
    ("<tool_call>f()</tool_call>", ("<tool_call>f()</tool_call>", []), 0),
    ("<tool_call>{'name': 'f'}</tool_call>", ("<tool_call>{'name': 'f'}</tool_call>", []), 0),
    ('<tool_call>{"name": 1, "arguments": {}}</tool_call>',
     ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', []), 0),
    ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
     ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []), 0),
    ('<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
     ('<tool_call>{"name": "f", "arguments": "x"}</tool_call>', []), 0),
    ('<tool_call>{"arguments": {}}</tool_call>', ('<tool_call>{"arguments": {}}</tool_call>', []), 0),
    ('<tool_call>{"name": "", "arguments": {}}</tool_call>',
     ('<tool_call>{"name": "", "arguments": {}}</tool_call>', []), 0),
    ('<tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>', ("<tool_call>", [("f", "{}")]), 1),
    # malformed after the name has been given out
    ('<tool_call>{"name": "f", "arguments": {"a": True}}</tool_call>', ("True}}</tool_call>", [("f", '{"a": ')]), 0),
    ('<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>', ("1}}</tool_call>", [("f", '{"a": 0')]), 0),
    ('<tool_call>{"name": "f", "arguments": {}</tool_call>', ("</tool_call>", [("f", "{}")]), 1),
    ('<tool_call>{"name": "f", "arguments": {}} x', ("} x", [("f", "{}")]), 1),
])
def test_calls_as_small_models_write_them(text, expected, complete):
    for pieces in splits(text):
        content, calls, reader = read("qwen", pieces)
        assert (content, calls) == expected and reader.complete == complete


@pytest.mark.parametrize(("text", "expected"), [
    ('{"name": "weather", "parameters": {"city": "x"}}', ("", [("weather", '{"city": "x"}')])),
    (' {"name":"weather","arguments":{}}', ("", [("weather", "{}")])),
    ('<|python_tag|>{"name": "weather", "parameters": {}}; {"name": "get_time-2", "parameters": {}}',
     ("", [("weather", "{}"), ("get_time-2", "{}")])),
    ('{"name": "weather", "parameters": {}}; and {', ("; and {", [("weather", "{}")])),
    ('{"name": "Bob", "parameters": {}}', ('{"name": "Bob", "parameters": {}}', [])),
    ('{"name": "Bob", "age": 3}', ('{"name": "Bob", "age": 3}', [])),
    ('So {"name": "weather", "parameters": {}}', ('So {"name": "weather", "parameters": {}}', [])),
    ("[1, 2]", ("[1, 2]", [])),
    ("  Hello ", ("  Hello ", [])),
])
def test_a_call_without_a_mark_is_the_beginning_of_the_answer(text, expected):
    for pieces in splits(text):
        content, calls, _ = read("llama3", pieces)
        assert (content, calls) == expected


def test_an_answer_that_cannot_be_a_call_is_not_held_back():
    reader = CallReader(format_of("llama3"), TOOLS)
    assert collected([one for piece in ('{"colour"', ": 1") for one in reader.push(piece)]) == ('{"colour": 1', [])


@pytest.mark.parametrize(("text", "expected"), [
    ("<tool_call>\n<function=weather>\n<parameter=city>\n5\n</parameter>\n<parameter=days>\n5\n</parameter>\n</function>\n"
     "</tool_call>", ("", [("weather", '{"city": "5", "days": 5}')])),
    ("<tool_call><function=weather><parameter=city>  a\n b </parameter></function></tool_call>",
     ("", [("weather", '{"city": "  a\\n b "}')])),
    ("<tool_call>\n<function=unknown>\n<parameter=x>\n[1]\n</parameter>\n<parameter=y>\nNone\n</parameter>\n"
     "<parameter=z>\nwords\n</parameter>\n</function>\n</tool_call>",
     ("", [("unknown", '{"x": [1], "y": null, "z": "words"}')])),
    ("<tool_call>\n<function=weather>\n<parameter=days>\nmany\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n"
     "<parameter=when>\nNone\n</parameter>\n</function>\n</tool_call>",
     ("", [("weather", '{"days": "many", "exact": true, "when": null}')])),
    ("<tool_call>\n<function=weather>\n<parameter=city>\nBern", ("<parameter=city>\nBern", [("weather", "")])),
    ("<tool_call>\n<function=>\n</function>", ("<tool_call>\n<function=>\n</function>", [])),
])
def test_arguments_one_by_one(text, expected):
    for pieces in splits(text):
        content, calls, _ = read("qwen_coder", pieces)
        assert (content.strip(), calls) == expected


NAMES = st.sampled_from(["weather", "get_time-2", "a.b:c"])
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.floats(allow_nan=False,
                                                                                         allow_infinity=False) |
                      st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=8),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner,
                                                                                 max_size=3), max_leaves=8)
MADE = st.lists(st.tuples(NAMES, st.dictionaries(st.text("xyz_", min_size=1, max_size=3), VALUES, max_size=3)),
                min_size=1, max_size=3)
CUTS = st.lists(st.integers(0, 400), max_size=6)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([name for name in FAMILIES if name not in ("qwen_coder", "glm", *ONE_CALL)]), MADE, CUTS)
def test_any_calls_come_back(family, made, places):
    calls = [Call(name, arguments) for name, arguments in made]
    tools = [{"function": {"name": name}} for name in ("weather", "get_time-2", "a.b:c")]
    content, found, _ = read(family, cut(format_of(family).write(calls), places), tools)
    assert (content, parsed(found)) == ("", same(calls))


PIECES = st.sampled_from([
    "<tool_call>", "</tool_call>", "\n", " ", "{", "}", '"name"', '"arguments"', ": ", ", ", '"weather"', '{"a": 1}',
    "<function=", ">", "weather", "</function>", "<parameter=", "x", "</parameter>", "[TOOL_CALLS]", "[", "]", "[ARGS]",
    '{"name": "weather", "arguments": {', '{"name": "weather", "parameters": {"city": "', '\\"', "tr", "ue", "1.5e",
    "-", "你", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>function",
    "<｜tool▁sep｜>", "```json\n", "<|tool_call|>", "<tool_c"])
BLANKS = str.maketrans("", "", " \n")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(FAMILIES)), st.lists(PIECES, max_size=14).map("".join), CUTS)
def test_no_text_breaks_the_reader_and_the_split_does_not_matter(family, text, places):
    content, calls, reader = read(family, [text])
    for pieces in (list(text), cut(text, places)):
        assert read(family, pieces)[:2] == (content, calls)
    assert reader.complete <= len(calls)
    if not calls:
        assert content == text
    for _, arguments in calls:
        if family not in ("qwen_coder", "glm") and '"{' not in text:
            assert arguments.translate(BLANKS) in text.translate(BLANKS) or arguments == "{}"
