"""Answers requests: tokens of the engine -> the chunks of a stream, or one whole answer."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, TypeVar

from minimind_sft.serving.answers import AnswerReader, Delta
from minimind_sft.serving.bodies import ChatBodies, ChatChoice, CompletionBodies, CompletionChoice, Usage
from minimind_sft.serving.metrics import Metrics
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.prompts import Prompt
from minimind_sft.serving.worker import Submission

AnyChoice = TypeVar("AnyChoice", ChatChoice, CompletionChoice)

LEFT = ApiProblem(499, "the client has left", code="client_left")
"""Ends the answering of a client that has left; it never reads this."""


class Part(NamedTuple):
    """A piece of one of the answers; the last one has no delta and says why the answer ended."""

    choice: int
    delta: Delta | None
    finish: str = ""


class Answering:
    """Reads the answers to one request.

    Args:
        readers: one for each of the submission's requests.
        model: the model's name, under which answers are counted.
    """

    def __init__(self, submission: Submission, prompts: Sequence[Prompt], readers: Sequence[AnswerReader],
                 metrics: Metrics, model: str):
        self.submission = submission
        self._prompts, self._readers = prompts, readers
        self._metrics, self._model = metrics, model
        self._tokens = [0] * len(readers)
        self._first_seconds: dict[int, float] = {}

    @property
    def count(self) -> int:
        """The number of answers."""
        return len(self._readers)

    @property
    def usage(self) -> Usage:
        """The tokens that the request took so far. A prompt with several answers counts once."""
        return Usage(sum(len(prompt.ids) for prompt in self._prompts),
                     sum(prompt.requests[0].prompt_tokens_shared for prompt in self._prompts), sum(self._tokens),
                     sum(reader.reasoning_tokens for reader in self._readers))

    async def parts(self) -> AsyncIterator[Part]:
        """Yields the answers as they grow, those of several choices mixed.

        Raises:
            ApiProblem: if the answers were broken off.
        """
        try:
            async for choice, tokens, ended in self.submission.news():
                reader = self._readers[choice]
                if tokens and choice not in self._first_seconds:
                    self._first_seconds[choice] = self._seconds()
                for token in tokens:
                    if reader.stopped:
                        break
                    self._tokens[choice] += 1
                    for delta in reader.push([token]):
                        yield Part(choice, delta)
                    if reader.stopped:
                        self.submission.cancel(choice)
                if ended:
                    for delta in reader.end(self._finish(choice)):
                        yield Part(choice, delta)
                    self._count(choice, reader.finish_reason)
                    yield Part(choice, None, reader.finish_reason)
        finally:
            self.submission.break_off("left")  # if one of the answers failed, nobody waits for the others
            self._metrics.count_tokens(self._model, self.usage)

    def _finish(self, choice: int) -> str | None:
        """Returns why the engine ended an answer.

        Raises:
            ApiProblem: if it was not for the answer's own sake.
        """
        request = self.submission.requests[choice]
        if request.finish == "error":
            self._count(choice, "error")
            raise ApiProblem(500, request.problem or "the engine failed", type="server_error", code="engine_failed")
        if request.finish == "cancelled" and self.submission.broken_off and not self._readers[choice].stopped:
            self._count(choice, self.submission.broken_off)
            raise self._broken_off()
        return request.finish

    def _broken_off(self) -> ApiProblem:
        if self.submission.broken_off == "late":
            return ApiProblem(408, "the answer took longer than this server allows", type="timeout_error",
                              code="answer_timeout")
        if self.submission.broken_off == "stopping":
            return ApiProblem(503, "the server is shutting down", type="server_error", code="server_stopping")
        return LEFT

    def _count(self, choice: int, reason: str) -> None:
        self._metrics.count_answer(self._model, reason)
        if choice in self._first_seconds:
            self._metrics.time_answer(self._model, self._first_seconds[choice], self._seconds(), self._tokens[choice])

    def _seconds(self) -> float:
        return time.monotonic() - self.submission.began


async def chat_chunks(answering: Answering, bodies: ChatBodies) -> AsyncIterator[dict[str, Any]]:
    """Yields the chunks of a chat's answers."""
    for choice in range(answering.count):
        yield bodies.opening(choice)
    async for choice, delta, finish in answering.parts():
        yield bodies.end(choice, finish) if delta is None else bodies.piece(choice, delta)
    if bodies.with_usage:
        yield bodies.usage_chunk(answering.usage)


async def whole_chat(answering: Answering, bodies: ChatBodies) -> dict[str, Any]:
    """Returns the whole answers of a chat."""
    choices = [ChatChoice() for _ in range(answering.count)]
    return bodies.whole(await _complete(answering, choices), answering.usage)


async def completion_chunks(answering: Answering, bodies: CompletionBodies) -> AsyncIterator[dict[str, Any]]:
    """Yields the chunks of texts that continue prompts."""
    choices = [CompletionChoice() for _ in range(answering.count)]
    async for choice, delta, finish in answering.parts():
        yield bodies.end(choice, finish) if delta is None else bodies.piece(choice, choices[choice], delta)
    if bodies.with_usage:
        yield bodies.usage_chunk(answering.usage)


async def whole_completion(answering: Answering, bodies: CompletionBodies) -> dict[str, Any]:
    """Returns the whole texts that continue prompts."""
    choices = [CompletionChoice() for _ in range(answering.count)]
    return bodies.whole(await _complete(answering, choices), answering.usage)


async def _complete(answering: Answering, choices: list[AnyChoice]) -> list[AnyChoice]:
    """Puts the choices together from the parts of the answers."""
    async for choice, delta, finish in answering.parts():
        if delta is None:
            choices[choice].finish = finish
        else:
            choices[choice].add(delta)
    return choices
