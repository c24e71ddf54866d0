"""Answers requests: tokens of the engine -> the chunks of a stream, or one whole answer."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from minimind_sft.serving.answers import AnswerReader, Delta, TokenLogprob, TokenText
from minimind_sft.serving.bodies import ChatBodies, ChatChoice, CompletionBodies, Usage
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.worker import Submission

BROKEN_OFF = {
    "left": ApiProblem(499, "the client has left", code="client_left"),  # which nobody reads
    "late": ApiProblem(408, "the answer took longer than this server allows", type="timeout_error",
                       code="answer_timeout"),
    "stopping": ApiProblem(503, "the server ends", type="server_error", code="server_stopping"),
}


class Part(NamedTuple):
    """A piece of one of the answers, or the reason of its end."""

    choice: int
    delta: Delta
    finish: str | None = None


class Answering:
    """Reads the answers to one request.

    usage: the tokens that it took so far.

    Args:
        readers: one for each of the submission's requests.
    """

    def __init__(self, submission: Submission, readers: Sequence[AnswerReader], usage: Usage):
        self.submission, self.usage = submission, usage
        self._readers = readers

    async def parts(self) -> AsyncIterator[Part]:
        """Yields the answers as they grow, those of several choices mixed.

        Raises:
            ApiProblem: if the answers were broken off.
        """
        async for index, tokens, ended in self.submission.news():
            reader = self._readers[index]
            for token in tokens:
                if reader.stopped:
                    break
                self.usage.completion += 1
                for delta in reader.push([token]):
                    yield Part(index, delta)
                if reader.stopped:
                    self.submission.cancel(index)
            if ended:
                for delta in reader.end(self._finish(index)):
                    yield Part(index, delta)
                yield Part(index, Delta(), reader.finish_reason)

    def _finish(self, index: int) -> str | None:
        """Returns why the engine ended an answer.

        Raises:
            ApiProblem: if nobody wanted it to end.
        """
        request, reason = self.submission.requests[index], self.submission.broken_off
        if request.finish == "error":
            raise ApiProblem(500, request.problem or "the engine failed", type="server_error", code="engine_failed")
        if request.finish == "cancelled" and reason and not self._readers[index].stopped:
            raise BROKEN_OFF[reason]
        return request.finish


async def chat_chunks(answering: Answering, bodies: ChatBodies) -> AsyncIterator[dict[str, Any]]:
    """Yields the chunks of a chat's answers."""
    for index in range(len(answering.submission.requests)):
        yield bodies.chunk(index, {"role": "assistant", "content": ""})
    async for index, delta, finish in answering.parts():
        yield bodies.chunk(index, _chat_delta(delta), finish, _chat_logprobs(delta))
    if bodies.with_usage:
        yield bodies.usage_chunk(answering.usage)


async def chat_completion(answering: Answering, bodies: ChatBodies) -> dict[str, Any]:
    """Returns the whole answers of a chat."""
    choices = [ChatChoice() for _ in answering.submission.requests]
    async for index, delta, finish in answering.parts():
        choices[index].add(_chat_delta(delta), _chat_logprobs(delta))
        choices[index].finish = finish or choices[index].finish
    return bodies.completion(choices, answering.usage)


async def completion_chunks(answering: Answering, bodies: CompletionBodies) -> AsyncIterator[dict[str, Any]]:
    """Yields the chunks of texts that continue prompts."""
    lengths = [0] * len(answering.submission.requests)
    async for index, delta, finish in answering.parts():
        yield bodies.chunk(index, delta.content, finish, _text_logprobs(delta.logprobs, lengths[index]))
        lengths[index] += sum(len(one.chosen.token) for one in delta.logprobs)
    if bodies.with_usage:
        yield bodies.usage_chunk(answering.usage)


async def completion(answering: Answering, bodies: CompletionBodies) -> dict[str, Any]:
    """Returns the whole texts that continue prompts."""
    count = len(answering.submission.requests)
    texts: list[list[str]] = [[] for _ in range(count)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
    finishes: list[str | None] = [None] * count
    async for index, delta, finish in answering.parts():
        texts[index].append(delta.content)
        logprobs[index] += delta.logprobs
        finishes[index] = finish
    return bodies.completion([bodies.choice(index, "".join(texts[index]), finishes[index],
                                            _text_logprobs(logprobs[index], 0)) for index in range(count)],
                             answering.usage)


def _chat_delta(delta: Delta) -> dict[str, Any]:
    """Returns a delta as the chat interface shows it."""
    found: dict[str, Any] = {}
    if delta.content:
        found["content"] = delta.content
    if delta.reasoning:
        found["reasoning_content"] = delta.reasoning
    if (call := delta.call) is not None:
        begins = {} if call.id is None else {"id": call.id, "type": "function"}
        named = {} if call.name is None else {"name": call.name}
        found["tool_calls"] = [{"index": call.index, **begins, "function": {**named, "arguments": call.arguments}}]
    return found


def _chat_logprobs(delta: Delta) -> list[dict[str, Any]] | None:
    def shown(one: TokenText) -> dict[str, Any]:
        return {"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)}

    return [{**shown(one.chosen), "top_logprobs": [shown(best) for best in one.best]}
            for one in delta.logprobs] or None


def _text_logprobs(logprobs: Sequence[TokenLogprob], start: int) -> dict[str, Any] | None:
    """Returns the probabilities of a text's tokens as /v1/completions shows them.

    Args:
        start: characters of the answer's tokens before these.
    """
    if not logprobs:
        return None
    offsets = []
    for one in logprobs:
        offsets.append(start)
        start += len(one.chosen.token)
    return {"tokens": [one.chosen.token for one in logprobs],
            "token_logprobs": [one.chosen.logprob for one in logprobs],
            "top_logprobs": [{best.token: best.logprob for best in one.best} for one in logprobs],
            "text_offset": offsets}
