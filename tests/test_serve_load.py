"""The load test's own judgement: a server that mixes up, loses or damages answers is found out."""

import asyncio
import json
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from load import clients
from load.bodies import BROKEN, CHAT, full, injections, ordinary
from load.comparing import error_problem, essence, events_of, joined
from load.http_client import Answer
from serve_load import answer_alone, percentiles, put_load, summary

CHUNK = {"id": "a", "created": 1, "model": "m", "object": "chat.completion.chunk"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {**CHUNK, "choices": [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]}


STREAM = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hello"}), chunk({"content": " there"}),
          chunk({}, "stop"), {**CHUNK, "choices": [], "usage": USAGE}, "[DONE]"]


def test_a_stream_adds_up_to_the_whole_answer():
    whole = {"id": "b", "object": "chat.completion", "created": 2, "model": "m", "usage": USAGE, "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello there", "tool_calls": None},
         "finish_reason": "stop", "logprobs": None}]}
    assert essence(200, joined(STREAM)) == essence(200, whole)
    whole["choices"][0]["message"]["content"] = "Hello"
    assert essence(200, joined(STREAM)) != essence(200, whole)


def test_pieces_of_calls_add_up():
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [{"role": "assistant", "tool_calls": [{"index": 0, **call}]},
              {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
              {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
              {"tool_calls": [{"index": 1, **call}]}]
    body = joined([*map(chunk, pieces), chunk({}, "tool_calls"), *STREAM[-2:]])
    assert body["choices"][0]["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}, call]


@pytest.mark.parametrize(("stream", "reason"), [
    (STREAM[:-1], "does not end with one"), ([*STREAM, "[DONE]"], "does not end with one"),
    ([*STREAM[:2], {"error": {}}, "[DONE]"], "an error inside"), ([*STREAM[:-2], "[DONE]"], "usage must come once"),
    ([{**STREAM[0], "id": "b"}, *STREAM[1:]], "different ids"), (STREAM[1:], "no role"),
    ([*STREAM[:3], *STREAM[-2:]], "without finish_reason"), ([*STREAM[:4], *STREAM[2:]], "behind finish_reason")])
def test_a_stream_of_another_form_is_refused(stream, reason):
    with pytest.raises(ValueError, match=reason):
        joined(stream)


def test_events():
    assert events_of(b': hello\n\ndata: {"a": 1}\n\ndata: [DONE]\n\n') == [{"a": 1}, "[DONE]"]
    with pytest.raises(ValueError, match="Expecting"):
        events_of(b"data: {\n\n")


def test_errors_have_openai_s_form():
    error = {"message": "model: there is no x", "type": "invalid_request_error", "param": "model", "code": None}
    assert error_problem(Answer(404, {}, json.dumps({"error": error}).encode())) is None
    lines = {**error, "message": "a\nb"}
    for status, body in ((500, {"error": error}), (400, {"detail": "x"}), (400, {"error": lines})):
        assert error_problem(Answer(status, {}, json.dumps(body).encode()))


def test_no_two_ordinary_requests_are_alike():
    dice = Random(1)
    bodies = [json.dumps(ordinary(dice, number, ["m"])) for number in range(300)]
    assert len(set(bodies)) == 300


def test_every_field_is_attacked():
    hostile, seen = injections(Random(1), "m"), set()
    for _ in range(3000):
        _, body = next(hostile)
        seen |= {name for name, value in full("m").items() if body.get(name, "gone") != value}
    assert seen == set(full("m"))


async def serve(respond: Callable[[dict[str, Any]], dict[str, Any]], use: Callable[[int], Any]) -> Any:
    """Answers requests with `respond(body)` as JSON while `use(port)` runs."""
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        body = json.dumps(respond(json.loads(await reader.readexactly(length)))).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(connection, "127.0.0.1") as server:
        return await use(server.sockets[0].getsockname()[1])


def echo(body: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": json.dumps(body), "finish_reason": "stop"}], "usage": USAGE}


def loaded(respond: Callable[[dict[str, Any]], dict[str, Any]]) -> list[clients.Result]:
    """Asks 20 questions alone and then among others, of a server that begins to use `respond` then."""
    now = [echo]

    async def use(port: int) -> list[clients.Result]:
        planned = [clients.Planned("whole answers", CHAT, {"question": number}) for number in range(20)]
        await answer_alone(SimpleNamespace(port=port), planned)
        now[0] = respond
        return await put_load(port, planned, 4, until=0)

    return asyncio.run(serve(lambda body: now[0](body), use))


def test_equal_answers_are_right():
    results = loaded(echo)
    assert [one.wrong for one in results] == [""] * 20
    figures = summary([*results, *(clients.Result("streams", status=200, seconds=1, first_seconds=1) for _ in "ab")], 2)
    assert figures["requests"] == 22 and figures["compared_tokens"] == 40
    assert figures["kinds"]["whole answers"] == {"requests": 20, "statuses": {"200": 20}}


def test_mixed_up_and_lost_answers_are_found():
    mixed = loaded(lambda body: echo({"question": 20 - body["question"]}))
    assert sum(bool(one.wrong) for one in mixed) == 19  # the tenth is its own
    assert all(one.wrong.startswith("ZeroDivision") or "Error" in one.wrong
               for one in loaded(lambda body: {"choices": 1 // 0}))


def test_broken_bodies_are_broken():
    accepted = []
    for name, body in BROKEN.items():
        try:
            json.loads(body.decode("utf-8"), parse_constant=lambda name: 1 / 0)
        except (ValueError, RecursionError, ArithmeticError):
            continue
        accepted.append(name)
    assert set(accepted) == {"no object", "a number", "null", "a name twice", "a great exponent", "many values",
                             "many names", "many messages", "half a surrogate pair"}


def test_percentiles():
    assert percentiles([*[1.0] * 99, 101.0]) == {"p50": 1.0, "p99": 2.0, "max": 101.0}
