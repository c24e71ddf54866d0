"""The JSON that goes out, in the form of OpenAI's interface.

An answer that is sent whole is made from the same deltas as a stream.
"""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OWNER = "minimind-sft"


@dataclass
class Usage:
    """Tokens that a request took.

    cached: tokens of the prompt that did not have to be read.
    completion: tokens of all answers, without those that ended them.
    reasoning: how many of them are reasoning.
    """

    prompt: int
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def body(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion,
                "total_tokens": self.prompt + self.completion,
                "prompt_tokens_details": {"cached_tokens": self.cached},
                "completion_tokens_details": {"reasoning_tokens": self.reasoning}}


def new_id(kind: str) -> str:
    """Returns an id that no other request has: `chatcmpl-...`, `cmpl-...` or `call_...`."""
    return f"{kind}{secrets.token_hex(12)}"


def now() -> int:
    """Returns the time in seconds since 1970."""
    return int(time.time())


@dataclass(frozen=True)
class ChatBodies:
    """The bodies of one chat request.

    with_usage: whether a stream tells at its end how many tokens the request took; all its chunks then have `usage`.
    """

    model: str
    with_usage: bool = False
    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    created: int = field(default_factory=now)

    def chunk(self, index: int, delta: Mapping[str, Any], finish: str | None = None,
              logprobs: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Returns a piece of an answer.

        The first of each choice is {"role": "assistant", "content": ""}; the last is {} with the reason of its end.
        """
        choice = {"index": index, "delta": dict(delta),
                  "logprobs": None if logprobs is None else {"content": list(logprobs), "refusal": None},
                  "finish_reason": finish}
        return self._body("chat.completion.chunk", [choice], {"usage": None} if self.with_usage else {})

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Returns the last chunk of a stream whose request asks for it."""
        return self._body("chat.completion.chunk", [], {"usage": usage.body()})

    def completion(self, choices: Sequence["ChatChoice"], usage: Usage) -> dict[str, Any]:
        """Returns the whole answer."""
        return self._body("chat.completion", [choice.body(index) for index, choice in enumerate(choices)],
                          {"usage": usage.body()})

    def _body(self, kind: str, choices: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": None, "choices": choices, **more}


@dataclass
class ChatChoice:
    """One of the answers, put together from its deltas."""

    finish: str = "stop"
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    _arguments: dict[int, list[str]] = field(default_factory=dict)
    _logprobs: list[Mapping[str, Any]] | None = None

    def add(self, delta: Mapping[str, Any], logprobs: Iterable[Mapping[str, Any]] | None = None) -> None:
        """Adds what a chunk would have sent."""
        self._content.append(delta.get("content") or "")
        self._reasoning.append(delta.get("reasoning_content") or "")
        for piece in delta.get("tool_calls", ()):
            call = self._calls.setdefault(piece["index"], {"id": None, "type": "function", "function": {}})
            call["id"] = piece.get("id", call["id"])
            function = piece.get("function", {})
            if "name" in function:
                call["function"]["name"] = function["name"]
            self._arguments.setdefault(piece["index"], []).append(function.get("arguments", ""))
        if logprobs is not None:
            self._logprobs = [*(self._logprobs or []), *logprobs]

    def body(self, index: int) -> dict[str, Any]:
        """Returns the choice as part of a whole answer."""
        calls = [{**call, "function": {**call["function"], "arguments": "".join(self._arguments[number])}}
                 for number, call in sorted(self._calls.items())]
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.finish}


@dataclass(frozen=True)
class CompletionBodies:
    """The bodies of one request to continue text; `with_usage` as for chats."""

    model: str
    with_usage: bool = False
    id: str = field(default_factory=lambda: new_id("cmpl-"))
    created: int = field(default_factory=now)

    def chunk(self, index: int, text: str, finish: str | None = None,
              logprobs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns a piece of an answer; the last one has the reason of its end."""
        return self._body([self.choice(index, text, finish, logprobs)], {"usage": None} if self.with_usage else {})

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Returns the last chunk of a stream whose request asks for it."""
        return self._body([], {"usage": usage.body()})

    def completion(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """Returns the whole answer, given the choices as `choice` makes them."""
        return self._body(choices, {"usage": usage.body()})

    @staticmethod
    def choice(index: int, text: str, finish: str | None, logprobs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _body(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
                "system_fingerprint": None, "choices": choices, **more}


def model_body(name: str, created: int) -> dict[str, Any]:
    """Returns the description of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def models_body(models: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Returns the list of models, given the name of each and when it was made."""
    return {"object": "list", "data": [model_body(name, created) for name, created in models]}
