"""Takes a request from its body to its answer: models, their worker, limits and metrics, which all addresses share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minimind_sft.errors import describe
from minimind_sft.inference.request import Request as EngineRequest
from minimind_sft.serving.answering import Answering
from minimind_sft.serving.answers import AnswerReader
from minimind_sft.serving.constraints import grammar_of
from minimind_sft.serving.limits import read_body
from minimind_sft.serving.metrics import Metrics
from minimind_sft.serving.models import ServedModel, ServedModels
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.prompts import Prompt, chat_prompt, completion_prompts
from minimind_sft.serving.requests import AnyBody, ChatRequest, CompletionRequest, parse_body
from minimind_sft.serving.stream import EventStream, watching
from minimind_sft.serving.tool_calls import CallReader
from minimind_sft.serving.worker import Worker
from minimind_sft.settings.serve import LimitSettings

KIB = 1024
Made = TypeVar("Made")


class Service:
    """Answers requests with the models that it has."""

    def __init__(self, models: ServedModels, limits: LimitSettings):
        self.models, self.limits = models, limits
        self.worker = Worker([model.engine for model in models], limits.max_waiting, limits.answer_seconds)
        self.metrics = Metrics(models)
        self._parsing = ThreadPoolExecutor(1, "bodies")
        self._preparing = ThreadPoolExecutor(1, "prompts")  # one: templates and tokenizers are not made for several

    @property
    def status(self) -> Literal["ok", "stopping", "failed"]:
        """Whether requests can be answered."""
        if not self.worker.is_alive:
            return "failed"
        return "stopping" if self.worker.is_draining else "ok"

    async def read(self, request: Request, kind: type[AnyBody]) -> tuple[AnyBody, ServedModel]:
        """Returns a client's request and the model that it names.

        Raises:
            ApiProblem: if there is no such model, or the body is not as it should be.
        """
        body = await read_body(request, self.limits.max_body * KIB, self.limits.receive_seconds)
        asked = await asyncio.get_running_loop().run_in_executor(self._parsing, parse_body, kind, body)
        return asked, self.model(asked.model)

    def model(self, name: str) -> ServedModel:
        """Returns the model of a name.

        Raises:
            ApiProblem: if there is no model of that name.
        """
        found = self.models.find(name)
        if found is None:
            raise ApiProblem(404, f"model: expected one of {', '.join(self.models.names)}, found "
                                  f"{describe(name)}; --served_name and --models name them", param="model",
                             code="model_not_found")
        return found

    async def ask_chat(self, asked: ChatRequest, served: ServedModel) -> Answering:
        """Puts a chat into the queue.

        Raises:
            ApiProblem: if the model cannot be asked this.
            QueueFull, Stopping: as `Worker.submit`.
        """
        with self.worker.reserved(served.engine, asked.choices):
            tool_format = await self._prepare(served.tool_format) if asked.offered else None
            prompt = await self._prepare(lambda: chat_prompt(
                asked, served.loaded, served.sampling,
                lambda reasoning: grammar_of(asked, served.grammars, tool_format, reasoning)))

        def calls() -> CallReader | None:
            one_call = asked.parallel_tool_calls is False
            return CallReader(tool_format, asked.offered or (), one_call) if tool_format else None

        readers = [AnswerReader(served.loaded.tokenizer, prompt.starts_thinking, calls(), asked.stops,
                                logprobs=asked.best_logprobs is not None) for _ in prompt.requests]
        return await self._submit(served, [prompt], readers)

    async def ask_completion(self, asked: CompletionRequest, served: ServedModel) -> Answering:
        """Puts texts to continue into the queue.

        Raises:
            ApiProblem, QueueFull, Stopping: as `ask_chat`.
        """
        with self.worker.reserved(served.engine, len(asked.prompts) * asked.choices):
            prompts = await self._prepare(lambda: completion_prompts(asked, served.loaded, served.sampling))
        readers = [AnswerReader(served.loaded.tokenizer, None, None, asked.stops, prompt.ids,
                                asked.best_logprobs is not None) for prompt in prompts for _ in prompt.requests]
        return await self._submit(served, prompts, readers)

    def stream(self, answering: Answering, chunks: AsyncIterator[Any]) -> Response:
        """Returns the response that sends chunks as they come."""
        return EventStream(chunks, lambda: answering.submission.break_off("left"))

    async def whole(self, request: Request, answering: Answering, body: Coroutine[Any, Any, Any]) -> Response:
        """Waits for a whole answer, or until the client leaves."""
        with watching(request.receive, lambda: answering.submission.break_off("left")):
            return JSONResponse(await body)

    async def _prepare(self, make: Callable[[], Made]) -> Made:
        """Runs a function that may take long in another thread, so that streams go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, make)

    async def _submit(self, served: ServedModel, prompts: Sequence[Prompt], readers: Sequence[AnswerReader]
                      ) -> Answering:
        requests = [request for prompt in prompts for request in prompt.requests]
        for request in requests:
            self._fit(request, served.engine.cache_tokens)
        submission = await self.worker.submit(served.engine, requests)
        return Answering(submission, prompts, readers, self.metrics, served.name)

    @staticmethod
    def _fit(request: EngineRequest, cache_tokens: int) -> None:
        """Shortens an answer to what the KV cache has room for, as the model's context does.

        Raises:
            ApiProblem: if the prompt alone does not fit.
        """
        room = cache_tokens - len(request.prompt)
        if room < 1:
            raise ApiProblem(400, f"the prompt has {len(request.prompt):,} tokens, this server has room for "
                                  f"{cache_tokens:,} (--cache_tokens)", code="context_length_exceeded")
        request.sampling = replace(request.sampling, max_new_tokens=min(request.sampling.max_new_tokens, room))
