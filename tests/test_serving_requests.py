"""Tests of the bodies that the server accepts: each field is honoured, or refused by name."""

import json

import pytest

pytest.importorskip("pydantic", reason="the extra [serve] is not installed")

from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.requests import ChatRequest, CompletionRequest, parse_body

USER = {"role": "user", "content": "hi"}
BASE = {ChatRequest: {"model": "m", "messages": [USER]}, CompletionRequest: {"model": "m", "prompt": "hi"}}
TOOL = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "weather"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def parse(kind=ChatRequest, **fields):
    return parse_body(kind, json.dumps({**BASE[kind], **fields}).encode())


def refused(kind=ChatRequest, **fields):
    """Returns (param, code) and the message of a refusal."""
    with pytest.raises(ApiProblem) as caught:
        parse(kind, **fields)
    problem = caught.value
    assert (problem.status, problem.type) == (400, "invalid_request_error")
    assert problem.message.startswith(f"{problem.param}: ") and "\n" not in problem.message
    assert problem.body() == {"error": {"message": problem.message, "type": problem.type, "param": problem.param,
                                        "code": problem.code}}
    return (problem.param, problem.code), problem.message.removeprefix(f"{problem.param}: ")


def test_what_a_request_leaves_open_stays_open():
    request = parse()
    assert (request.choices, request.stops, request.max_new_tokens, request.best_logprobs) == (1, (), None, None)
    assert (request.stream, request.includes_usage, request.thinks, request.offered, request.forced) == (
        False, False, False, None, None)


def test_fields_that_are_null_say_nothing():
    fields = dict.fromkeys([*ChatRequest.model_fields, "functions", "audio", "function_call", "prediction"])
    request = parse(**{**fields, **BASE[ChatRequest]})
    assert (request.choices, request.stops, request.thinks, request.temperature) == (1, (), False, None)


OPENAI_CHAT = """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier
    stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity
    web_search_options"""
OPENAI_COMPLETIONS = """best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt
    seed stop stream stream_options suffix temperature top_p user"""


@pytest.mark.parametrize(("kind", "names"), [(ChatRequest, OPENAI_CHAT), (CompletionRequest, OPENAI_COMPLETIONS)])
def test_every_field_of_openai_s_interface_is_known(kind, names):
    for name in names.split():
        if name not in kind.model_fields:
            place, message = refused(kind, **{name: {"some": "value"}})
            assert place == (name, "unsupported_parameter") and message != "this server knows no such field"


def test_openai_s_client_has_no_other_fields():
    pytest.importorskip("openai", reason="the openai client is not installed")
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Chat
    from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as Completion
    for kind, ours in ((Chat, OPENAI_CHAT), (Completion, OPENAI_COMPLETIONS)):
        theirs = {name for base in kind.__orig_bases__[0].__mro__ for name in getattr(base, "__annotations__", {})}
        assert {*theirs, *kind.__annotations__} <= set(ours.split()), "a newer client: decide what its fields do here"


@pytest.mark.parametrize(("fields", "place", "message"), [
    ({"min_p": 0.1}, ("min_p", "unsupported_parameter"), "this server knows no such field"),
    ({"temprature": 0.1}, ("temprature", "unsupported_parameter"),
     "this server knows no such field; did you mean temperature?"),
    ({"max_new_tokens": 5}, ("max_new_tokens", "unsupported_parameter"),
     "this server knows no such field; did you mean max_tokens?"),
    ({"model": None}, ("model", "invalid_type"), "expected a valid string, found null"),
    ({"temperature": 2.1}, ("temperature", "invalid_value"), "expected less than or equal to 2, found 2.1"),
    ({"temperature": "1"}, ("temperature", "invalid_type"), 'expected a valid number, found "1"'),
    ({"temperature": True}, ("temperature", "invalid_type"), "expected a valid number, found true"),
    ({"top_p": -0.1}, ("top_p", "invalid_value"), "expected greater than or equal to 0, found -0.1"),
    ({"top_k": -2}, ("top_k", "invalid_value"), "expected greater than or equal to -1, found -2"),
    ({"max_tokens": 0}, ("max_tokens", "invalid_value"), "expected greater than or equal to 1, found 0"),
    ({"max_tokens": 1.5}, ("max_tokens", "invalid_type"), "expected a valid integer, found 1.5"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, ("max_tokens", "invalid_value"),
     "expected the same as max_completion_tokens (5), found 4"),
    ({"n": 17}, ("n", "invalid_value"), "expected less than or equal to 16, found 17"),
    ({"seed": 2**63}, ("seed", "invalid_value"), None),
    ({"frequency_penalty": 3}, ("frequency_penalty", "invalid_value"), "expected less than or equal to 2, found 3"),
    ({"logit_bias": {"05": 1}}, ("logit_bias.05", "invalid_value"),
     'expected text that matches ^(0|[1-9][0-9]{0,8})$, found "05"'),
    ({"logit_bias": {"5": 101}}, ("logit_bias.5", "invalid_value"), "expected less than or equal to 100, found 101"),
    ({"stop": ["a"] * 33}, ("stop", "invalid_value"), "expected at most 32 of them, found 33"),
    ({"stop": ["a", ""]}, ("stop[1]", "invalid_value"), 'expected some text, found ""'),
    ({"stop": {"a": 1}}, ("stop", "invalid_type"), "expected a valid string, found an object"),
    ({"messages": "hi"}, ("messages", "invalid_type"), 'expected a list, found "hi"'),
    ({"messages": []}, ("messages", "invalid_value"), "expected at least 1 of them, found an empty list"),
    ({"stop": 5}, ("stop", "invalid_type"), "expected a valid string, found 5"),
    ({"stream_options": {"include_usage": True}}, ("stream_options", "invalid_value"), None),
    ({"stream": True, "stream_options": {"include_obfuscation": True}},
     ("stream_options.include_obfuscation", "unsupported_value"), "expected false, found true"),
    ({"top_logprobs": 2}, ("top_logprobs", "invalid_value"), "expected only with logprobs true, found without"),
    ({"logprobs": True, "top_logprobs": 21}, ("top_logprobs", "invalid_value"), None),
    ({"store": True}, ("store", "unsupported_value"), "expected false, found true"),
    ({"modalities": ["text", "audio"]}, ("modalities[1]", "unsupported_value"), "expected 'text', found \"audio\""),
    ({"messages": [{"role": "user", "contnet": "hi"}]}, ("messages[0].content", "missing_required_parameter"),
     'expected a value, found "contnet" instead'),
    ({"reasoning_effort": "most"}, ("reasoning_effort", "unsupported_value"),
     "expected 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh', found \"most\""),
    ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
     ("chat_template_kwargs.reasoning_effort", "invalid_value"),
     'expected the same as reasoning_effort (low), found "high"'),
    ({"chat_template_kwargs": {"thinking": 1}}, ("chat_template_kwargs.thinking", "invalid_type"), None),
    ({"open_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
     ("chat_template_kwargs.enable_thinking", "invalid_value"), "expected the same as open_thinking, found false"),
    ({"response_format": {"type": "xml"}}, ("response_format.type", "invalid_value"),
     'expected text, json_object, json_schema, found "xml"'),
    ({"response_format": {"type": "json_schema"}}, ("response_format.json_schema", "missing_required_parameter"), None),
    ({"metadata": {"a": 1}}, ("metadata.a", "invalid_type"), None),
])
def test_a_value_that_cannot_be_honoured_is_refused_by_name(fields, place, message):
    found, said = refused(**fields)
    assert found == place and said == (message or said)


@pytest.mark.parametrize(("message", "place"), [
    ("hi", ("messages[1]", "invalid_type")),
    ({"content": "hi"}, ("messages[1].role", "invalid_value")),
    ({"role": "function", "content": "hi"}, ("messages[1].role", "invalid_value")),
    ({"role": "user"}, ("messages[1].content", "missing_required_parameter")),
    ({"role": "user", "content": None}, ("messages[1].content", "invalid_type")),
    ({"role": "user", "content": "hi", "name": "Ada"}, ("messages[1].name", "unsupported_parameter")),
    ({"role": "user", "content": "hi", "train": False}, ("messages[1].train", "unsupported_parameter")),
    ({"role": "user", "content": ["hi"]}, ("messages[1].content[0]", "invalid_type")),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
     ("messages[1].content[0].type", "unsupported_value")),
    ({"role": "assistant", "content": "a", "refusal": "no"}, ("messages[1].refusal", "unsupported_parameter")),
    ({"role": "assistant", "tool_calls": [{"type": "custom"}]},
     ("messages[1].tool_calls[0].type", "unsupported_value")),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "", "arguments": ""}}]},
     ("messages[1].tool_calls[0].function.name", "invalid_value")),
])
def test_a_message_that_cannot_be_read_is_refused_by_name(message, place):
    assert refused(messages=[USER, message])[0] == place


def test_who_speaks_belongs_into_the_content():
    for role in ("user", "assistant"):
        assert refused(messages=[USER, {"role": role, "content": "hi", "name": "Ada"}]) == (
            ("messages[1].name", "unsupported_parameter"),
            'not supported here, expected nothing, found "Ada"; chat templates show no names: put it into the content')


def test_results_name_the_calls_before_them():
    asked = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert parse(messages=[*asked, {"role": "tool", "content": "sun", "tool_call_id": "call_1"}])
    assert refused(messages=[*asked, {"role": "tool", "content": "sun", "tool_call_id": "call_2"}])[0] == (
        "messages[2].tool_call_id", "invalid_value")
    assert refused(messages=[{"role": "system", "content": "s"}])[0] == ("messages", "invalid_value")


def test_an_answer_of_openai_s_client_can_be_sent_back():
    answer = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None,
              "function_call": None, "tool_calls": None, "reasoning_content": "b"}
    assert parse(messages=[USER, answer, USER]).messages[1] == answer


def test_code_completion_sends_many_stops():
    stops = [f"<|fim_{name}|>" for name in ("prefix", "suffix", "middle", "pad")] + ["<|endoftext|>", "/src/", "```"]
    assert parse(CompletionRequest, prompt="def f(", stop=stops).stops == tuple(stops)


def test_tools():
    request = parse(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}})
    assert (request.offered, request.forced) == ([TOOL], "weather")
    assert list(request.offered[0]["function"]) == ["parameters", "name"], "templates write fields in their order"
    assert parse(tools=[TOOL], tool_choice="none").offered is None
    assert parse(tools=[TOOL], tool_choice="required").forced is True
    assert parse(tools=[]).offered is None
    assert refused(tools=[TOOL, TOOL])[0] == ("tools[1].function.name", "invalid_value")
    assert refused(tool_choice="required")[0] == ("tool_choice", "invalid_value")
    assert refused(tools=[TOOL], tool_choice="must")[0] == ("tool_choice", "unsupported_value")
    assert refused(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "rain"}})[0] == (
        "tool_choice.function.name", "invalid_value")
    assert refused(tools=[{**TOOL, "type": "custom"}])[0] == ("tools[0].type", "unsupported_value")
    assert refused(tools=[{"type": "function", "function": {"name": "a b"}}])[0] == (
        "tools[0].function.name", "invalid_value")


def test_thinking_has_several_names():
    assert parse(open_thinking=True).thinking == {"open_thinking": True}
    assert parse(chat_template_kwargs={"enable_thinking": True}).thinks
    assert parse(chat_template_kwargs={"open_thinking": True, "thinking": True}, open_thinking=True).thinks
    assert parse(chat_template_kwargs={"style": [1]}).variables == {"style": [1]}
    assert parse(reasoning_effort="none").thinking == {"reasoning_effort": False}
    assert parse(reasoning_effort="low").thinking == {} == parse(reasoning_effort="none").variables
    assert parse(reasoning_effort="low").variables == {"reasoning_effort": "low"}


@pytest.mark.parametrize(("prompt", "prompts"), [
    ("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])])
def test_prompts_are_texts_or_ids(prompt, prompts):
    assert parse(CompletionRequest, prompt=prompt).prompts == prompts


@pytest.mark.parametrize(("fields", "place"), [
    ({"prompt": ["a", 1]}, "prompt[0]"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt[0]"), ({"prompt": None}, "prompt"), ({"echo": True}, "echo"),
    ({"suffix": "a"}, "suffix"), ({"best_of": 2}, "best_of"), ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"), ({"prompt": ["a"] * 8, "n": 16}, "prompt"), ({"messages": [USER]}, "messages")])
def test_a_completion_that_cannot_be_honoured_is_refused_by_name(fields, place):
    assert refused(CompletionRequest, **fields)[0][0] == place


@pytest.mark.parametrize(("body", "message"), [
    (b"", "the body: expected a JSON object, found broken JSON at column 1: Expecting value"),
    (b"[]", "the body: expected a JSON object, found an empty list"),
    (b'{"model": "a", "model": "b"}', "the body: model is there twice"),
    (b'{"temperature": NaN}', "the body: NaN is not a number in JSON"),
    (b'{"model": "\\ud800"}', "the body: a string holds \\ud800, half of a surrogate pair, which is not a character"),
    (b'{"model": "\xff"}', "the body: expected UTF-8, found byte 0xff at position 11"),
    (b"[" * 100000, "the body: the JSON is nested too deeply"),
    (b'{"a": 1' + b"0" * 400 + b"}", f"the body: 1{'0' * 39}... is too large a number"),
    (b'{"a": [' + b"0," * 300000 + b"0]}", "the body: expected at most 200,000 values in the JSON"),
])
def test_a_body_that_is_not_strict_json_is_refused(body, message):
    with pytest.raises(ApiProblem) as caught:
        parse_body(ChatRequest, body)
    assert (caught.value.message, caught.value.code, caught.value.param) == (message, "invalid_json", None)


def test_long_names_and_values_are_cut_in_messages():
    place, message = refused(**{"x" * 5000 + "\n": "y" * 5000})
    assert place == ("x" * 40, "unsupported_parameter") and len(message) < 100
    assert len(refused(temperature="y" * 5000)[1]) < 100


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_the_description_says_what_is_allowed(kind):
    schema = kind.model_json_schema()
    assert schema["additionalProperties"] is False and "model" in schema["required"]
    assert schema["properties"]["temperature"]["anyOf"][0] == {"maximum": 2, "minimum": 0, "type": "number"}
    if kind is ChatRequest:
        assert schema["properties"]["messages"]["items"]["discriminator"]["propertyName"] == "role"
