"""Answers of the server follow what a request says about their form, whatever an untrained model would write."""

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [test] is not installed")
pytest.importorskip("llguidance", reason="the extra [serve] is not installed")

from served import HERE, TOKENIZER, chat, events, served
from starlette.testclient import TestClient

from minimind_sft.serving.application import make_application
from minimind_sft.serving.models import ServedModels
from minimind_sft.settings.serve import LimitSettings

COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
          "required": ["colour", "sure"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": COLOUR}}
TOOLS = [{"type": "function", "function": {"name": "paint", "parameters": COLOUR}},
         {"type": "function", "function": {"name": "stop"}}]
VALUES = {"red", "blue"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = make_application(ServedModels([served()]), HERE, LimitSettings())
    with TestClient(app, base_url="http://127.0.0.1:8998") as client:
        yield client


def ask(client: TestClient, **fields) -> dict:
    response = client.post("/v1/chat/completions", json=chat(**{"max_tokens": 200, "seed": 3, **fields}))
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_several_answers_follow_a_schema(client: TestClient, temperature: float):
    choices = ask(client, response_format=FORMAT, n=3, temperature=temperature)["choices"]
    for choice in choices:
        found = json.loads(choice["message"]["content"])
        assert found["colour"] in VALUES and isinstance(found["sure"], bool) and len(found) == 2
        assert choice["finish_reason"] == "stop"
    assert len(choices) == 3


def test_a_stream_follows_a_schema(client: TestClient):
    response = client.post("/v1/chat/completions", json=chat(max_tokens=200, response_format=FORMAT, stream=True))
    *chunks, done = events(response.text)
    content = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert done == "[DONE]" and json.loads(content)["colour"] in VALUES


def test_reasoning_that_the_prompt_opened_comes_first(client: TestClient):
    """A bias makes the model write braces and end its reasoning at some time."""
    bias = {str(TOKENIZER.token_to_id("</think>")): 30, str(TOKENIZER.token_to_id("{")): 31}
    answer = ask(client, response_format=FORMAT, open_thinking=True, logit_bias=bias, temperature=1, n=4)
    messages = [choice["message"] for choice in answer["choices"]]
    assert any("{" in message.get("reasoning_content", "") for message in messages)
    assert all(json.loads(message["content"])["colour"] in VALUES for message in messages)


@pytest.mark.parametrize(("choice", "names"), [
    ("required", {"paint", "stop"}), ({"type": "function", "function": {"name": "paint"}}, {"paint"}),
    ({"type": "function", "function": {"name": "stop"}}, {"stop"})])
def test_a_call_that_is_demanded_is_made(client: TestClient, choice, names: set[str]):
    found = ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, temperature=1.2)["choices"][0]
    (call,) = found["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] in names and found["finish_reason"] == "tool_calls"
    assert arguments == {} if call["function"]["name"] == "stop" else arguments["colour"] in VALUES


def test_a_strict_tool_may_be_called_and_its_arguments_follow_the_schema(client: TestClient):
    """A bias makes the model begin a call at some time."""
    bias = {str(TOKENIZER.token_to_id("<tool_call>")): 25}
    tools = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    choices = ask(client, tools=tools, logit_bias=bias, n=4, temperature=1, parallel_tool_calls=False)["choices"]
    calls = [call for choice in choices for call in choice["message"].get("tool_calls", [])]
    assert calls and all(json.loads(call["function"]["arguments"])["colour"] in VALUES for call in calls)


def test_what_answers_cannot_follow_is_refused(client: TestClient):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"not": {}}}}}}
    response = client.post("/v1/chat/completions", json=chat(response_format=wanted))
    place = "response_format.json_schema.schema.properties.a.not"
    assert response.status_code == 400
    assert response.json()["error"] == {"message": f"{place}: answers cannot be made to follow this keyword",
                                        "type": "invalid_request_error", "param": place,
                                        "code": "unsupported_parameter"}
