"""Tests of the JSON that goes out: OpenAI's form, and one answer whether it is streamed or not."""

import json

import pytest

from minimind_sft.serving.answers import CallPiece, Delta, TokenLogprob, TokenText
from minimind_sft.serving.bodies import (
    ChatBodies,
    ChatChoice,
    CompletionBodies,
    CompletionChoice,
    Usage,
    model_body,
    models_body,
)
from minimind_sft.serving.problems import ApiProblem


def token(text: bytes, logprob: float = -0.5) -> TokenText:
    return TokenText(text.decode(errors="replace"), tuple(text), logprob)


A, HALF, REST = (TokenLogprob(token(text), (token(text), token(b"x", float("-inf"))))
                 for text in (b"a", "é".encode()[:1], "é".encode()[1:]))
DELTAS = [Delta(reasoning="well"), Delta(reasoning=" then"), Delta("a", logprobs=(A, HALF)),
          Delta("é", logprobs=(REST,)), Delta(call=CallPiece(0, "call_1", "f")),
          Delta(call=CallPiece(0, arguments='{"x":')), Delta(call=CallPiece(0, arguments="1}")),
          Delta(call=CallPiece(1, "call_2", "g", "{}"))]
USAGE = Usage(prompt=7, cached=4, completion=9, reasoning=3)
USAGE_BODY = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16,
              "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3}}
HEAD = {"id": "chatcmpl-1", "created": 5, "model": "m", "system_fingerprint": None}
BODIES = ChatBodies("m", created=5, id="chatcmpl-1")


def piece(body):
    (choice,) = body["choices"]
    return choice["delta"], choice["logprobs"], choice["finish_reason"]


def test_a_chunk():
    assert BODIES.opening(2) == {**HEAD, "object": "chat.completion.chunk", "choices": [
        {"index": 2, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]}
    assert piece(BODIES.end(0, "length")) == ({}, None, "length")
    assert "usage" not in BODIES.end(0, "stop")


def test_the_pieces_of_an_answer():
    assert [piece(BODIES.piece(0, delta))[0] for delta in DELTAS] == [
        {"reasoning_content": "well"}, {"reasoning_content": " then"}, {"content": "a"}, {"content": "é"},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "type": "function",
                         "function": {"name": "g", "arguments": "{}"}}]}]
    assert piece(BODIES.piece(0, DELTAS[3]))[1] == {"refusal": None, "content": [
        {"token": "\ufffd", "bytes": [0xa9], "logprob": -0.5, "top_logprobs": [
            {"token": "\ufffd", "bytes": [0xa9], "logprob": -0.5},
            {"token": "x", "bytes": [120], "logprob": -9999.0}]}]}


def test_usage_at_the_end_of_a_stream():
    bodies = ChatBodies("m", with_usage=True, created=5, id="chatcmpl-1")
    assert bodies.opening(0)["usage"] is None
    assert bodies.usage_chunk(USAGE) == {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE_BODY}


def test_a_whole_answer_is_the_sum_of_its_pieces():
    choice = ChatChoice("tool_calls")
    for delta in DELTAS:
        choice.add(delta)
    body = BODIES.whole([choice], USAGE)
    (whole,) = body.pop("choices")
    assert body == {**HEAD, "object": "chat.completion", "usage": USAGE_BODY}
    assert whole["message"] == {
        "role": "assistant", "content": "aé", "refusal": None, "reasoning_content": "well then", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}
    assert (whole["index"], whole["finish_reason"], len(whole["logprobs"]["content"])) == (0, "tool_calls", 3)


def test_an_answer_of_calls_has_no_content_and_an_empty_one_has_empty_content():
    choice = ChatChoice()
    assert choice.body(0)["message"]["content"] == ""
    choice.add(DELTAS[-1])
    assert choice.body(0)["message"]["content"] is None


def test_text_that_goes_on():
    bodies, choice = CompletionBodies("m", created=5, id="cmpl-1"), CompletionChoice("length")
    assert bodies.piece(0, choice, DELTAS[2]) == {
        "id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m", "system_fingerprint": None,
        "choices": [{"index": 0, "text": "a", "finish_reason": None, "logprobs": {
            "tokens": ["a", "\ufffd"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 1],
            "top_logprobs": [{"a": -0.5, "x": -9999.0}, {"\ufffd": -0.5, "x": -9999.0}]}}]}
    assert bodies.piece(0, choice, Delta("é b"))["choices"][0]["logprobs"] is None
    assert bodies.piece(0, choice, Delta("", logprobs=(REST, A)))["choices"][0]["logprobs"]["text_offset"] == [1, 2]
    (whole,) = bodies.whole([choice], USAGE)["choices"]
    assert (whole["text"], whole["finish_reason"], whole["logprobs"]["text_offset"]) == ("aé b", "length", [0, 1, 1, 2])
    assert bodies.end(0, "stop")["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}


def test_ids_differ_and_models_are_listed():
    assert ChatBodies("m").id != ChatBodies("m").id and ChatBodies("m").id.startswith("chatcmpl-")
    model = {"id": "m", "object": "model", "created": 3, "owned_by": "minimind-sft",
             "endpoints": ["/v1/completions"]}
    assert model_body("m", 3, False) == model and models_body([("m", 3, False)]) == {"object": "list", "data": [model]}
    assert model_body("m", 3, True)["endpoints"] == ["/v1/chat/completions", "/v1/completions"]


def test_bodies_are_as_the_description_says():
    description = pytest.importorskip("minimind_sft.serving.description", reason="the extra [serve] is not installed")
    choice, text = ChatChoice("tool_calls"), CompletionChoice("stop")
    for delta in DELTAS:
        choice.add(delta)
    bodies, texts = ChatBodies("m", with_usage=True), CompletionBodies("m", with_usage=True)
    for kind, made in [(description.ChatAnswer, [BODIES.whole([choice, ChatChoice()], USAGE)]),
                       (description.ChatChunk, [BODIES.opening(0), bodies.opening(0), bodies.end(0, "stop"),
                                                bodies.usage_chunk(USAGE),
                                                *(bodies.piece(1, delta) for delta in DELTAS)]),
                       (description.TextAnswer, [texts.piece(0, text, DELTAS[2]), texts.whole([text], USAGE)]),
                       (description.Models, [models_body([("m", 3, True)])]),
                       (description.Error, [ApiProblem(400, "no").body()])]:
        for body in made:
            kind.model_validate(body, strict=True)


def test_openai_s_client_reads_every_body():
    pytest.importorskip("openai", reason="the openai client is not installed")
    from openai.types import Completion, Model
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    choice, text = ChatChoice("tool_calls"), CompletionChoice("stop")
    for delta in DELTAS:
        choice.add(delta)
    text.add(DELTAS[2])
    bodies, texts = ChatBodies("m", with_usage=True), CompletionBodies("m")
    for kind, made in [(ChatCompletion, [BODIES.whole([choice, ChatChoice()], USAGE)]),
                       (ChatCompletionChunk, [bodies.opening(0), bodies.end(0, "stop"), bodies.usage_chunk(USAGE),
                                              *(bodies.piece(1, delta) for delta in DELTAS)]),
                       (Completion, [texts.whole([text], USAGE)]),
                       (Model, [model_body("m", 3, True)])]:
        for body in made:
            read = kind.model_validate(json.loads(json.dumps(body, allow_nan=False)), strict=False)
            assert read.to_dict(exclude_unset=True) == body
