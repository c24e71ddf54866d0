"""Compares what a request was answered, streamed or not, with what the same request was answered alone."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from load.http_client import Answer

ERROR_FIELDS = {"message", "type", "param", "code"}
VARYING = {"id", "created", "system_fingerprint"}
"""Fields that differ between two answers to one request."""


def essence(status: int, body: Any) -> Any:
    """Returns what may not vary of an answer's body: all but ids, times and what was shared in the cache.

    Ids of tool calls are replaced by their presence.
    """
    if status != 200 or not isinstance(body, dict):
        return status, body
    kept = {name: value for name, value in body.items() if name not in VARYING | {"usage", "object"}}
    usage = body.get("usage")
    if usage:
        kept["usage"] = [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]]
    kept["choices"] = [_without_call_ids(choice) for choice in sorted(body["choices"], key=lambda one: one["index"])]
    return status, kept


def _without_call_ids(choice: Mapping[str, Any]) -> dict[str, Any]:
    choice = {name: value for name, value in choice.items() if value is not None}
    if message := choice.get("message"):
        message = {name: value for name, value in message.items() if value}
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "id": bool(call.get("id"))} for call in calls]
        choice["message"] = message
    return choice


def error_problem(answer: Answer) -> str | None:
    """Says what is wrong with the form of an error answer, or None."""
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}: {answer.body[:200]!r}"
    body = answer.json()
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(error) != ERROR_FIELDS or not isinstance(error["message"], str):
        return f"status {answer.status} without OpenAI's error: {answer.body[:200]!r}"
    if not error["message"] or "\n" in error["message"] or len(error["message"]) > 2000:
        return f"status {answer.status}: not one clear line: {error['message'][:200]!r}"
    return None


def events_of(body: bytes) -> list[Any]:
    """Returns the data of server-sent events: parsed, except for [DONE].

    Raises:
        ValueError: if the body is no such stream.
    """
    found = []
    for block in body.decode("utf-8").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            data = "\n".join(line.removeprefix("data: ") for line in lines)
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def joined(events: Iterable[Any]) -> dict[str, Any]:
    """Returns the body that a request without `stream` would have had.

    Raises:
        ValueError: if the events do not follow OpenAI's form; says how.
    """
    *chunks, last = events
    if last != "[DONE]" or "[DONE]" in chunks:
        raise ValueError("the stream does not end with one [DONE]")
    if failed := next((chunk for chunk in chunks if "error" in chunk), None):
        raise ValueError(f"an error inside the stream: {failed}")
    if len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) != 1:
        raise ValueError("chunks with different ids, times or models")
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    if len(usages) != 1 or chunks[-1].get("usage") is None or chunks[-1]["choices"]:
        raise ValueError("usage must come once, in a last chunk of its own")
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks[:-1]:
        for piece in chunk["choices"]:
            _join_choice(choices.setdefault(piece["index"], {"index": piece["index"]}), piece)
    if any("finish_reason" not in choice for choice in choices.values()):
        raise ValueError("a choice without finish_reason")
    return {**{name: chunks[0][name] for name in ("id", "created", "model")}, "usage": usages[0],
            "choices": list(choices.values())}


def _join_choice(choice: dict[str, Any], piece: Mapping[str, Any]) -> None:
    if choice.get("finish_reason"):
        raise ValueError("a piece behind finish_reason")
    if piece.get("finish_reason"):
        choice["finish_reason"] = piece["finish_reason"]
    if "text" in piece:
        choice["text"] = choice.get("text", "") + piece["text"]
    if "delta" in piece:
        if "message" not in choice and piece["delta"].get("role") != "assistant":
            raise ValueError("no role in the first delta")
        _join_message(choice.setdefault("message", {}), piece["delta"])
    if piece.get("logprobs"):
        _join_logprobs(choice.setdefault("logprobs", {}), piece["logprobs"])


def _join_message(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        if delta.get(name):
            message[name] = message.get(name, "") + delta[name]
    if delta.get("role"):
        message["role"] = delta["role"]
    for piece in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        if piece["index"] == len(calls):
            calls.append({"id": piece["id"], "type": piece["type"],
                          "function": {"name": piece["function"]["name"], "arguments": ""}})
        calls[piece["index"]]["function"]["arguments"] += piece["function"].get("arguments") or ""


def _join_logprobs(kept: dict[str, Any], piece: Mapping[str, Any]) -> None:
    for name, values in piece.items():
        if isinstance(values, list):
            kept[name] = [*kept.get(name, []), *values]
        else:
            kept.setdefault(name, values)
