"""The server's OpenAPI description: what it accepts and what it answers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from minimind_sft import __version__
from minimind_sft.serving.requests import ChatRequest, CompletionRequest

VERSION = "3.1.0"
REF = "#/components/schemas/{model}"
REFUSALS = {
    "400": "the request cannot be honoured; `param` names the field",
    "401": "the server's key is missing or wrong",
    "403": "web pages from elsewhere may not use the server",
    "404": "there is no such model",
    "408": "the request did not arrive in time, or the answer took too long",
    "413": "the request is too large",
    "415": "the request is not plain JSON",
    "421": "the server answers to localhost only",
    "429": "too many requests are waiting; Retry-After says when to try again",
    "500": "the server failed",
    "503": "the server is stopping",
}


class Answer(BaseModel):
    """An object that has exactly these fields; those with a default may be missing."""

    model_config = ConfigDict(extra="forbid")


class PromptDetails(Answer):
    cached_tokens: int


class CompletionDetails(Answer):
    reasoning_tokens: int


class UsageAnswer(Answer):
    """Tokens that a request took: of its prompt, and of all its answers without the tokens that ended them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TokenAnswer(Answer):
    """A token. Its bytes may be a part of a character."""

    token: str
    bytes: list[int]
    logprob: float


class ChosenToken(TokenAnswer):
    """A token of the answer, and the most likely ones at its place."""

    top_logprobs: list[TokenAnswer]


class ChatLogprobs(Answer):
    content: list[ChosenToken]
    refusal: None


class FunctionAnswer(Answer):
    name: str
    arguments: str


class CallAnswer(Answer):
    id: str
    type: Literal["function"]
    function: FunctionAnswer


class MessageAnswer(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[CallAnswer] = []


class ChatChoiceAnswer(Answer):
    index: int
    message: MessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Head(Answer):
    id: str
    created: int
    model: str
    system_fingerprint: None


class ChatAnswer(Head):
    """A whole answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoiceAnswer]
    usage: UsageAnswer


class FunctionPiece(Answer):
    name: str = ""
    arguments: str


class CallPieceAnswer(Answer):
    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionPiece


class DeltaAnswer(Answer):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[CallPieceAnswer] = []


class ChunkChoice(Answer):
    index: int
    delta: DeltaAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Head):
    """A piece of an answer. A stream ends with `[DONE]`, or with an Error if it cannot go on."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: UsageAnswer | None = None


class TextLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextAnswer(Head):
    """Text that goes on, whole or a piece of it."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: UsageAnswer | None = None


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    endpoints: list[Literal["/v1/chat/completions", "/v1/completions"]]


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class Problem(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """A refusal."""

    error: Problem


class Health(Answer):
    status: Literal["ok", "stopping", "failed"]


SENT = (ChatAnswer, ChatChunk, TextAnswer, Models, Model, Error, Health)
RECEIVED = (ChatRequest, CompletionRequest)


def openapi(title: str) -> dict[str, Any]:
    """Returns the description as OpenAPI has it."""
    kinds: list[Any] = [(kind, "validation") for kind in (*RECEIVED, *SENT)]
    _, schemas = models_json_schema(kinds, ref_template=REF)
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": __version__},
        "paths": {
            "/v1/chat/completions": _asking("Answer a conversation", ChatRequest, ChatAnswer, ChatChunk),
            "/v1/completions": _asking("Continue text", CompletionRequest, TextAnswer, TextAnswer),
            "/v1/models": _telling("List the models", Models),
            "/v1/models/{name}": {"parameters": [name], **_telling("Describe a model", Model)},
            "/health": _telling("Say whether requests can be answered", Health, {"503": _json("not now", Health)}),
            "/metrics": {"get": {"summary": "Count, for Prometheus", "responses": {
                "200": {"description": "metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
                **_refusals()}}},
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer",
                                        "description": "needed if the server was started with a key"}},
        },
        "security": [{}, {"key": []}],
    }


def _asking(summary: str, request: type, answer: type, chunk: type) -> dict[str, Any]:
    """Describes an address that answers, whole or in a stream."""
    streamed = {"schema": {"description": f"server-sent events; the data of each is a {chunk.__name__}, and of the "
                                          "last one [DONE]"}}
    whole = _json("the answer", answer)
    whole["content"]["text/event-stream"] = streamed
    return {"post": {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {"200": whole, **_refusals()}}}


def _telling(summary: str, answer: type, more: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": _json("the answer", answer), **_refusals(), **more}}}


def _refusals() -> dict[str, Any]:
    return {status: _json(reason, Error) for status, reason in REFUSALS.items()}


def _json(description: str, kind: type) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(kind)}}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": REF.format(model=kind.__name__)}
