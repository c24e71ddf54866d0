"""Answers follow `response_format` and `tool_choice`, whatever the model's scores are."""

import json
import random
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("llguidance", reason="the extra [serve] is not installed")

import torch
from chats import BUNDLED, TOKENIZER
from constrained import CONTROL, allows, by_chance, byte_level, grammars, random_schema, sentencepiece
from tool_templates import FAMILIES, FAMILY_TOKENIZER, JSON_CALL, family_template

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.inference.request import Request
from minimind_sft.inference.sampling import Sampler
from minimind_sft.serving.constraints import grammar_of, grammar_of_calls, grammar_of_json
from minimind_sft.serving.grammars import Grammar, Reasoning
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.requests import ChatRequest, JsonFormat, SchemaFormat
from minimind_sft.serving.tool_formats import Call, ToolFormat
from minimind_sft.settings.chat import SamplingSettings

ANY_OBJECT = JsonFormat(type="json_object")
PAIR = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"],
        "additionalProperties": False}
TOKENIZERS = {"byte-level": byte_level, "SentencePiece": sentencepiece}


def schema_format(schema: dict[str, Any]) -> SchemaFormat:
    return SchemaFormat.model_validate({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def grammar(schema: dict[str, Any], reasoning: Reasoning = "none", tokenizer: Tokenizer | None = None) -> Grammar:
    return grammar_of_json(grammars(tokenizer or byte_level()), schema_format(schema), reasoning)


def ids(text: str) -> list[int]:
    return byte_level().encode(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_random_schemas_are_followed_by_random_answers(kind: str):
    """Every answer that ends by itself is valid, by another library's judgement."""
    jsonschema = pytest.importorskip("jsonschema")
    tokenizer, choose, ended, refused = TOKENIZERS[kind](), random.Random(kind), 0, 0
    for seed in range(250):
        schema = random_schema(choose)
        validator = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        try:
            made = grammar(schema, tokenizer=tokenizer)
        except ApiProblem as problem:
            assert "\n" not in problem.message and problem.param.startswith("response_format.json_schema.schema")
            refused += 1
            continue
        answer = by_chance(made, tokenizer, seed)
        if answer is not None:
            ended += 1
            validator.validate(json.loads(tokenizer.decode(answer)))
    assert ended > 180 and refused < 50


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_object(kind: str):
    tokenizer = TOKENIZERS[kind]()
    made, ended = grammar_of_json(grammars(tokenizer), ANY_OBJECT, "none"), 0
    for seed in range(30):
        answer = by_chance(made, tokenizer, seed)
        if answer is not None:
            assert isinstance(json.loads(tokenizer.decode(answer)), dict)
            ended += 1
    assert ended > 15


@pytest.mark.parametrize("changes", ["NFC", "Lowercase"])
@pytest.mark.parametrize("value", ["Ne\u0301", "\u00c9A"])
def test_text_that_the_tokenizer_would_change_is_spelled_as_it_is(changes: str, value: str):
    tokenizer = Tokenizer({**byte_level().state, "normalizer": {"type": changes}}, byte_level().special)
    answer = by_chance(grammar({"const": value}, tokenizer=tokenizer), tokenizer, 0)
    assert answer is not None and json.loads(tokenizer.decode(answer)) == value


@pytest.mark.parametrize(("text", "allowed"), [
    ('{"a":1}', True), ('{"a": 1, "b": "x"}', True), ('{\n  "a": 1\n}', True), ('{"a":1,"b":"<|end"}', True),
    ('{"a":  1}', False), ('{"a":\n\n1}', False), (' {"a":1}', False), ('{"a":1} ', False), ('{"b":"x","a":1}', False),
    ('{"\\u0061":1}', False), ('{"a":1,"b":"\\u0041"}', False), ('{"a":1,"b":"\\n数"}', True), ('{"a":1.0}', False),
    ("{}", False), ('{"a":1', False),
])
def test_what_json_looks_like(text: str, allowed: bool):
    assert allows(grammar(PAIR), byte_level().encode_ordinary(text)) is allowed


def test_control_tokens_are_never_inside_and_end_tokens_only_at_the_end():
    constraint, control = grammar(PAIR).constraint(), [byte_level().token_to_id(token) for token in CONTROL]
    text = byte_level().encode_ordinary('{"a": 1, "b": "<|end|>')
    for token in text:
        assert not constraint.allowed_V()[control].any()
        constraint.accept(token)
    for token in byte_level().encode_ordinary('"}'):
        assert not constraint.allowed_V()[control].any()
        constraint.accept(token)
    assert constraint.allowed_V().nonzero().flatten().tolist() == [0, 2]  # <|end|>, and what the folder names


def test_each_answer_has_a_constraint_of_its_own():
    made = grammar(PAIR)
    first, second = made.constraint(), made.constraint()
    first.accept(ids("{")[0])
    assert first.allowed_V()[ids('"')[0]] and not second.allowed_V()[ids('"')[0]]
    assert second.allowed_V()[ids("{")[0]]


@pytest.mark.parametrize(("reasoning", "text", "allowed"), [
    ("open", 'hm {"a":\n</think>\n\n{"a":1}', True), ("open", '</think>{"a":1}', True), ("open", '{"a":1}', False),
    ("open", 'hm</think>\n\n\n{"a":1}', False), ("open", 'a<think>b</think>{"a":1}', False), ("open", "hm", False),
    ("possible", '<think>hm</think>\n\n{"a":1}', True), ("possible", '{"a":1}', True),
    ("possible", 'hm</think>{"a":1}', False), ("none", '<think>hm</think>{"a":1}', False), ("none", '{"a":1}', True),
])
def test_reasoning_comes_before_the_format(reasoning: Reasoning, text: str, allowed: bool):
    assert allows(grammar(PAIR, reasoning), ids(text)) is allowed


def test_reasoning_of_a_tokenizer_that_spells_the_tags():
    """Tokens may cross the end of a tag that is no token of its own."""
    tokenizer = Tokenizer({**byte_level().state, "added_tokens": [
        token for token in byte_level().state["added_tokens"] if "think" not in token["content"]]},
        byte_level().special)
    spelled = [tokenizer.token_to_id(part) for part in ("</", "think")] if tokenizer.token_to_id("</think") is None \
        else [tokenizer.token_to_id("</think")]
    text = [*tokenizer.encode_ordinary("hm</thin "), *spelled, *tokenizer.encode_ordinary('>\n{"a":1}')]
    made = grammar(PAIR, "open", tokenizer)
    assert allows(made, text) and not allows(made, tokenizer.encode_ordinary('hm {"a":1}'))


def test_a_tokenizer_that_begins_texts_with_a_space_may_do_so():
    tokenizer = sentencepiece()
    made = grammar(PAIR, tokenizer=tokenizer)
    plain = tokenizer.encode_ordinary('{"a":1}')
    assert tokenizer.id_to_token(plain[0]) == "\u2581" and tokenizer.decode(plain) == '{"a":1}'
    constraint = made.constraint()
    for token in (*plain, *plain[1:1]):
        assert constraint.allowed_V()[token]
        constraint.accept(token)


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "q"}], **fields})


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                                     "unit": {"enum": ["C", "F"], "type": "string"}, "now": {"type": "boolean"},
                                     "places": {"type": "array", "items": {"$ref": "#/$defs/place"}}},
    "required": ["city"], "$defs": {"place": {"type": "string", "maxLength": 3}}, "additionalProperties": False}}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
RAIN = Call("weather", {"city": 'Rom "<b>"\nund 数', "days": 2, "unit": "C", "now": True, "places": ["a", "bcd"]})
CITY = Call("weather", {"city": ""}, "call00002")
TIME = Call("now", {}, "call00003")


TWO_CALLS = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>'


def family(name: str) -> tuple[Any, ToolFormat]:
    template = family_template(name)
    return grammars(FAMILY_TOKENIZER, template), ToolFormat.of(template)


def written(tool_format: ToolFormat, *calls: Call) -> list[int]:
    return FAMILY_TOKENIZER.encode(tool_format.write(calls))


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_written_as_the_template_writes_them(name: str):
    made_by, tool_format = family(name)
    made = grammar_of_calls(made_by, tool_format, TOOLS, None, "none")
    end = FAMILY_TOKENIZER.token_to_id("<|im_end|>")

    def may_end_after(*calls: Call) -> bool:
        constraint = made.constraint()
        for token in written(tool_format, *calls):
            if not constraint.allowed_V()[token]:
                return False
            constraint.accept(token)
        return bool(constraint.allowed_V()[end])

    for call in (RAIN, CITY, TIME):
        assert may_end_after(call), call
    assert may_end_after(RAIN, TIME, CITY) is (tool_format.between is not None)
    for wrong in (Call("weather", {}), Call("weather", {"city": "x", "days": "many"}), Call("then", {}),
                  Call("now", {"a": 1}), Call("weather", {"city": "x", "unit": "K"})):
        assert not may_end_after(wrong), wrong
    assert not made.constraint().allowed_V()[end]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_function_is_the_only_one(name: str):
    made_by, tool_format = family(name)
    made = grammar_of_calls(made_by, tool_format, TOOLS, ["now"], "none")
    text, other = written(tool_format, TIME), written(tool_format, CITY)
    constraint = made.constraint()
    assert all(constraint.allowed_V()[token] and constraint.accept(token) is None for token in text)
    constraint, followed = made.constraint(), 0
    for token in other:
        if not constraint.allowed_V()[token]:
            break
        constraint.accept(token)
        followed += 1
    assert followed < len(other)


def test_text_of_a_request_is_never_a_control_token():
    """Names of properties and values that spell one are spelled."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"<|im_end|>": {"type": "string", "enum": ["<arg_key>"]}},
        "required": ["<|im_end|>"]}}}
    made_by, tool_format = family("glm")
    made = grammar_of_calls(made_by, tool_format, [tool], None, "none")
    assert not all_allowed(made, written(tool_format, Call("f", {"<|im_end|>": "<arg_key>"})))
    spell = FAMILY_TOKENIZER.encode_ordinary
    token = {name: FAMILY_TOKENIZER.token_to_id(name) for name in FAMILY_TOKENIZER.added_tokens}
    assert all_allowed(made, [
        token["<tool_call>"], *spell("f\n"), token["<arg_key>"], *spell("<|im_end|>"), token["</arg_key>"],
        *spell("\n"), token["<arg_value>"], *spell("<arg_key>"), token["</arg_value>"], *spell("\n"),
        token["</tool_call>"]])


def all_allowed(made: Grammar, answer: list[int]) -> bool:
    constraint = made.constraint()
    for token in answer:
        if not constraint.allowed_V()[token]:
            return False
        constraint.accept(token)
    return True


@pytest.mark.parametrize(("parameters", "param", "problem"), [
    ({"type": "array"}, ".type", 'expected "object", found "array"'),
    ({"properties": {"a": {"not": {}}}}, ".properties.a.not", "answers cannot be made to follow this keyword"),
])
def test_parameters_that_cannot_be_followed_are_refused(parameters: dict[str, Any], param: str, problem: str):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    place = f"tools[1].function.parameters{param}"
    with pytest.raises(ApiProblem) as caught:
        grammar_of_calls(*family("qwen"), [NOW, tool], None, "none")
    assert (caught.value.status, caught.value.param, caught.value.message) == (400, place, f"{place}: {problem}")


@pytest.mark.parametrize("value", [{}, {"type": ["string", "null"]}, {"type": "string", "pattern": "a"}, True])
def test_arguments_as_plain_text_have_one_type_each(value: Any):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": value}}}}
    with pytest.raises(ApiProblem, match=r"^tools\[0\].function.parameters.properties.a: expected one type"):
        grammar_of_calls(*family("qwen_coder"), [tool], None, "none")


def test_what_a_request_asks_for():
    made_by, tool_format = grammars(TOKENIZER, BUNDLED), ToolFormat.of(BUNDLED)
    one = request(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}})
    for asked in (request(), request(tools=TOOLS), request(response_format={"type": "text"})):
        assert grammar_of(asked, made_by, tool_format, "none") is None
    for asked, text, allowed in [
        (one, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True),
        (one, '<tool_call>\n{"name": "weather', False),
        (request(tools=TOOLS, tool_choice="required"), '<tool_call>\n{"name": "weather', True),
        (request(tools=TOOLS, tool_choice="required"), "It", False),
        (request(tools=TOOLS, tool_choice="required"), TWO_CALLS, True),
        (request(tools=TOOLS, tool_choice="required", parallel_tool_calls=False), TWO_CALLS, False),
        (request(response_format={"type": "json_object"}), '{"x": [', True),
        (request(response_format={"type": "json_object"}), "[", False),
        (request(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": PAIR}}), '{"x', False),
        (request(response_format={"type": "json_schema", "json_schema": {"name": "x"}}), '{"x": [', True),
    ]:
        made = grammar_of(asked, made_by, tool_format, "none")
        assert made is not None and all_allowed(made, TOKENIZER.encode(text)) is allowed


STRICT = [{**tool, "function": {**tool["function"], "strict": tool is WEATHER}} for tool in TOOLS]
UNMARKED = ("llama3", "openai")
"""Their calls are JSON, and nothing marks them."""


@pytest.mark.parametrize("name", FAMILIES)
def test_strict_tools_and_formats_beside_calls_that_the_model_may_make(name: str):
    made_by, tool_format = family(name)
    strict, with_json = request(tools=STRICT), request(tools=TOOLS, response_format={"type": "json_object"})
    if name in UNMARKED:
        for asked, field in ((strict, "tools[0].function.strict"), (with_json, "response_format")):
            with pytest.raises(ApiProblem) as caught:
                grammar_of(asked, made_by, tool_format, "none")
            assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
        return
    end, pairs = FAMILY_TOKENIZER.token_to_id("<|im_end|>"), tool_format.pairs is not None

    def texts_of(asked: ChatRequest) -> list[bool]:
        made = grammar_of(asked, made_by, tool_format, "none")
        assert made is not None
        found = []
        for text in ["Hello <b> 数 {", '{"a": 1}', tool_format.write([RAIN]), "So:\n" + tool_format.write([TIME]),
                     tool_format.write([Call("now", {"a": 1})]), tool_format.write([Call("weather", {})])]:
            constraint = made.constraint()
            for token in FAMILY_TOKENIZER.encode(text):
                if not constraint.allowed_V()[token]:
                    break
                constraint.accept(token)
            else:
                found.append(bool(constraint.allowed_V()[end]))
                continue
            found.append(False)
        return found

    # Arguments that are written one by one follow their schema in any case.
    assert texts_of(strict) == [True, True, True, True, not pairs, False]
    assert texts_of(with_json) == [False, True, True, False, not pairs, not pairs]


SPELLED = ("{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
           "{% for c in m.tool_calls or [] %}<call>" + JSON_CALL + "</call>{% endfor %}<|end|>{% endfor %}"
           "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def test_a_mark_that_is_no_control_token():
    template = ChatTemplate(byte_level(), SPELLED.replace("KEY", "arguments").replace("f.", "c.function."))
    made_by, tool_format = grammars(byte_level(), template), ToolFormat.of(template)
    made = grammar_of(request(tools=STRICT), made_by, tool_format, "none")
    assert made is not None and tool_format.mark == "<call>"
    rain = tool_format.write([RAIN])
    for text, allowed in [("hello <cal", True), ("hello <call>", False), (rain, True), ("so " + rain, True),
                          (rain + " so", False), (tool_format.write([Call("weather", {})]), False)]:
        assert allows(made, byte_level().encode(text)) is allowed, text


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_sampler_follows_a_constraint(temperature: float):
    rows, end = byte_level().vocab_size + 5, 0
    made = grammar({"type": "array", "items": PAIR, "minItems": 2, "maxItems": 2})
    asked = Request([1], SamplingSettings(temperature=temperature), [end], constraint=made.constraint(), logprobs=1)
    sampler, answer = Sampler(rows), list[int]()
    sampler.add(asked)
    generator = torch.Generator().manual_seed(3)
    bias_V = torch.zeros(rows).index_fill(0, torch.tensor([end, *ids('"]}')]), 4.0)
    while end not in answer and len(answer) < 2000:
        (token,) = sampler.choose((torch.randn(1, rows, generator=generator) + bias_V), [asked])
        assert token is not None, asked.problem
        answer.append(token.id)
    assert [set(item) <= {"a", "b"} for item in json.loads(byte_level().decode(answer[:-1]))] == [True, True]
