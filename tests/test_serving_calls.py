"""Tool calls through the server: whole, as a stream, and back as history for the next turn."""

import json

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [test] is not installed")

from chats import CALL, TOOLS
from served import HERE, QUESTION, TOKENIZER, ScriptedEngine, chat, events, served
from starlette.testclient import TestClient

from minimind_sft.serving.application import make_application
from minimind_sft.serving.models import ServedModels
from minimind_sft.settings.serve import LimitSettings

WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "罗马"}}\n</tool_call>'
OTHER = WRITTEN.replace("罗马", "Bern")
TWO = f"Let me see:\n{WRITTEN}\n{OTHER}"


def ask(text: str, **fields):
    """Returns the answer to a question with tools, of a model that writes this text; a list of chunks if streamed."""
    app = make_application(ServedModels([served(engine=ScriptedEngine(text))]), HERE, LimitSettings())
    with TestClient(app, base_url="http://127.0.0.1:8998") as client:
        response = client.post("/v1/chat/completions", json=chat(**{"tools": TOOLS, "max_tokens": 200, **fields}))
    assert response.status_code == 200, response.text
    return events(response.text) if fields.get("stream") else response.json()


def calls_of(message: dict) -> list[tuple[str, dict]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", ())]


def test_calls_of_a_whole_answer():
    answer = ask(TWO)
    message, reason = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]
    assert message["content"] == "Let me see:" and reason == "tool_calls"
    assert calls_of(message) == [("weather", {"city": "罗马"}), ("weather", {"city": "Bern"})]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert answer["usage"]["completion_tokens"] == len(TOKENIZER.encode(TWO))
    assert ask(WRITTEN)["choices"][0]["message"]["content"] is None


def test_calls_of_a_stream_are_those_of_the_whole_answer():
    *chunks, done = ask(TWO, stream=True)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see:"
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    joined = {index: "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == index)
              for index in (0, 1)}
    assert {index: json.loads(text) for index, text in joined.items()} == {0: {"city": "罗马"}, 1: {"city": "Bern"}}
    assert [piece["function"]["name"] for piece in pieces if "id" in piece] == ["weather", "weather"]
    assert len(pieces) > 8 and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_comes_back_as_the_model_wrote_it():
    message = ask(WRITTEN)["choices"][0]["message"]
    template = served().loaded.template
    written = template.generation_prompt_ids(
        [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "id": message["tool_calls"][0]["id"], "function": CALL[0]}]},
         {"role": "tool", "content": "sun"}], TOOLS)
    history = [*QUESTION, message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}]
    assert WRITTEN in TOKENIZER.decode(written)
    assert ask("fine", messages=history)["usage"]["prompt_tokens"] == len(written)


@pytest.mark.parametrize(("text", "fields", "content", "calls", "reason"), [
    (WRITTEN, {"tools": None}, WRITTEN, [], "stop"),
    (WRITTEN, {"tool_choice": "none"}, WRITTEN, [], "stop"),
    (TWO, {"parallel_tool_calls": False}, "Let me see:", [("weather", {"city": "罗马"})], "tool_calls"),
    ("<tool_call>weather()</tool_call>", {}, "<tool_call>weather()</tool_call>", [], "stop"),
    (f"{WRITTEN} and END more", {"stop": "END"}, " and ", [("weather", {"city": "罗马"})], "tool_calls"),
    (f"so STOP {WRITTEN}", {"stop": "STOP"}, "so ", [], "stop"),
])
def test_what_is_a_call_and_what_is_content(text, fields, content, calls, reason):
    choice = ask(text, **fields)["choices"][0]
    assert ((choice["message"]["content"] or ""), calls_of(choice["message"]), choice["finish_reason"]) == (
        content, calls, reason)


def test_a_call_that_is_cut_off_has_its_arguments_so_far():
    cut = len(TOKENIZER.encode(WRITTEN.partition("罗")[0]))
    choice = ask(WRITTEN, max_tokens=cut)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'
