"""The JSON that goes out, in the form of OpenAI's interface.

An answer that is sent whole is made from the same deltas as a stream.
"""

import codecs
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from minimind_sft.serving.answers import CallPiece, Delta, TokenLogprob, TokenText

OWNER = "minimind-sft"
UTF8 = codecs.getincrementaldecoder("utf-8")
MIN_LOGPROB = -9999.0
"""Stands for the logprob of a token that is impossible: JSON has no infinity."""


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
        """Returns the JSON of the `usage` field."""
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion,
                "total_tokens": self.prompt + self.completion,
                "prompt_tokens_details": {"cached_tokens": self.cached},
                "completion_tokens_details": {"reasoning_tokens": self.reasoning}}


def new_id(kind: str) -> str:
    """Returns an id that no other request has: `chatcmpl-...` or `cmpl-...`."""
    return f"{kind}{secrets.token_hex(12)}"


class Choice(Protocol):
    """One of the answers to a request."""

    def body(self, index: int) -> dict[str, Any]:
        """Returns the choice as part of a whole answer."""


@dataclass(frozen=True)
class Bodies:
    """The bodies of one request.

    with_usage: whether a stream tells at its end how many tokens the request took; all its chunks then have `usage`.
    """

    model: str
    with_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or new_id(self.prefix))

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Returns the last chunk of a stream whose request asks for it."""
        return self._body(self.chunk_kind, [], usage=usage.body())

    def whole(self, choices: Sequence["Choice"], usage: Usage) -> dict[str, Any]:
        """Returns the whole answer."""
        return self._body(self.kind, [choice.body(index) for index, choice in enumerate(choices)], usage=usage.body())

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._body(self.chunk_kind, [choice], **({"usage": None} if self.with_usage else {}))

    def _body(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": None, "choices": choices, **more}


@dataclass(frozen=True)
class ChatBodies(Bodies):
    """The bodies of one chat request. A choice is sent as its opening, its pieces and its end."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl-"

    def opening(self, index: int) -> dict[str, Any]:
        """Returns the first chunk of a choice, which tells the role."""
        return self._chunk(_chat_piece(index, {"role": "assistant", "content": ""}))

    def piece(self, index: int, delta: Delta) -> dict[str, Any]:
        """Returns the chunk for a delta."""
        return self._chunk(_chat_piece(index, _delta_body(delta), delta.logprobs))

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """Returns the last chunk of a choice."""
        return self._chunk(_chat_piece(index, {}, finish=finish))


@dataclass
class ChatChoice:
    """One of the answers of a chat, put together from its deltas.

    finish: why it ended.
    """

    finish: str = "stop"
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _calls: dict[int, list[CallPiece]] = field(default_factory=dict)
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Takes the next delta."""
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        if delta.call:
            self._calls.setdefault(delta.call.index, []).append(delta.call)
        self._logprobs += delta.logprobs

    def body(self, index: int) -> dict[str, Any]:
        """Returns the choice as part of a whole answer."""
        calls = [_call_body(pieces) for _, pieces in sorted(self._calls.items())]
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {"index": index, "message": message, "logprobs": _chat_logprobs(self._logprobs),
                "finish_reason": self.finish}


@dataclass(frozen=True)
class CompletionBodies(Bodies):
    """The bodies of one request to continue text."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl-"

    def piece(self, index: int, choice: "CompletionChoice", delta: Delta) -> dict[str, Any]:
        """Returns the chunk for a delta, and adds it to its choice, which knows the places of the tokens."""
        return self._chunk(_text_choice(index, delta.content, choice.add(delta), None))

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """Returns the last chunk of a choice."""
        return self._chunk(_text_choice(index, "", None, finish))


@dataclass
class CompletionChoice:
    """One of the answers of a request to continue text, put together from its deltas.

    finish: why it ended.
    """

    finish: str = "stop"
    _text: list[str] = field(default_factory=list)
    _logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: UTF8("replace"))
    _offset: int = 0

    def add(self, delta: Delta) -> dict[str, Any] | None:
        """Takes a delta, and returns its logprobs."""
        self._text.append(delta.content)
        new = []
        for token in delta.logprobs:
            new.append((self._offset, token))
            self._offset += len(self._decoder.decode(bytes(token.chosen.bytes)))
        self._logprobs += new
        return _text_logprobs(new)

    def body(self, index: int) -> dict[str, Any]:
        """Returns the choice as part of a whole answer."""
        return _text_choice(index, "".join(self._text), _text_logprobs(self._logprobs), self.finish)


def model_body(name: str, created: int, chats: bool) -> dict[str, Any]:
    """Returns the description of a model; `endpoints`, which OpenAI does not have, says what it can be asked."""
    endpoints = ["/v1/chat/completions", "/v1/completions"] if chats else ["/v1/completions"]
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "endpoints": endpoints}


def models_body(models: Iterable[tuple[str, int, bool]]) -> dict[str, Any]:
    """Returns the list of models, given of each the name, when it was made (in seconds since 1970), and if it chats."""
    return {"object": "list", "data": [model_body(*model) for model in models]}


def _chat_piece(index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (),
                finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": _chat_logprobs(logprobs), "finish_reason": finish}


def _delta_body(delta: Delta) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if delta.reasoning:
        body["reasoning_content"] = delta.reasoning
    if delta.content:
        body["content"] = delta.content
    if call := delta.call:
        begins = {} if call.id is None else {"id": call.id, "type": "function"}
        name = {} if call.name is None else {"name": call.name}
        body["tool_calls"] = [{"index": call.index, **begins, "function": {**name, "arguments": call.arguments}}]
    return body


def _call_body(pieces: Sequence[CallPiece]) -> dict[str, Any]:
    return {"id": pieces[0].id, "type": "function",
            "function": {"name": pieces[0].name, "arguments": "".join(piece.arguments for piece in pieces)}}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    return {"content": [{**_token_body(token.chosen), "top_logprobs": list(map(_token_body, token.best))}
                        for token in tokens], "refusal": None}


def _token_body(token: TokenText) -> dict[str, Any]:
    return {"token": token.token, "bytes": list(token.bytes), "logprob": max(token.logprob, MIN_LOGPROB)}


def _text_choice(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _text_logprobs(tokens: Sequence[tuple[int, TokenLogprob]]) -> dict[str, Any] | None:
    """Returns logprobs as completions have them; `text_offset` counts characters from the answer's beginning."""
    if not tokens:
        return None
    return {"tokens": [token.chosen.token for _, token in tokens],
            "token_logprobs": [max(token.chosen.logprob, MIN_LOGPROB) for _, token in tokens],
            "top_logprobs": [{one.token: max(one.logprob, MIN_LOGPROB) for one in (*token.best, token.chosen)}
                             for _, token in tokens],
            "text_offset": [offset for offset, _ in tokens]}
