"""The application: what the server answers at which address."""

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from minimind_sft.serving.access import LOOPBACK_NAMES, Doorkeeper, KeyCheck
from minimind_sft.serving.answering import (
    Answering,
    chat_chunks,
    chat_completion,
    completion,
    completion_chunks,
)
from minimind_sft.serving.answers import AnswerReader
from minimind_sft.serving.bodies import ChatBodies, CompletionBodies, Usage, model_body, models_body
from minimind_sft.serving.limits import read_body
from minimind_sft.serving.metrics import MEDIA_TYPE, Metrics
from minimind_sft.serving.models import ServedModel, ServedModels
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.prompts import Prompt, chat_prompt, completion_prompts
from minimind_sft.serving.requests import AnyBody, ChatRequest, CompletionRequest, parse_body
from minimind_sft.serving.responses import problem_response
from minimind_sft.serving.stream import EventStream, watching
from minimind_sft.serving.worker import QueueFull, Stopping, Submission, Worker
from minimind_sft.settings.serve import LimitSettings, ListeningSettings
from minimind_sft.terminal import say

KIB = 1024

Made = TypeVar("Made")


class Service:
    """What the addresses share: models, their worker, and limits."""

    def __init__(self, models: ServedModels, limits: LimitSettings):
        self.models, self.limits = models, limits
        self.worker = Worker([model.engine for model in models], limits.max_waiting, limits.answer_seconds)
        self.metrics = Metrics(models)
        self._preparing = ThreadPoolExecutor(1, "prompts")  # templates and tokenizers are used by one thread at a time

    async def read(self, request: Request, kind: type[AnyBody]) -> tuple[AnyBody, ServedModel]:
        """Returns what a client asks for, and of which model.

        Raises:
            ApiProblem: if there is no such model, or the body is not as it should be.
        """
        body = await read_body(request, self.limits.max_body * KIB, self.limits.receive_seconds)
        asked = await self.prepare(lambda: parse_body(kind, body))
        return asked, self.model(asked.model)

    def model(self, name: str) -> ServedModel:
        """
        Raises:
            ApiProblem: if there is no model of that name.
        """
        found = self.models.find(name)
        if found is None:
            raise ApiProblem(404, f"model: expected one of {', '.join(self.models.names)}", param="model",
                             code="model_not_found")
        return found

    async def prepare(self, make: Callable[[], Made]) -> Made:
        """Runs a function that may take long in another thread, so that streams go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, make)

    async def submit(self, served: ServedModel, prompts: Sequence[Prompt], readers: Sequence[AnswerReader]
                     ) -> Answering:
        """Puts the prompts' requests into the queue."""
        requests = [request for prompt in prompts for request in prompt.requests]
        submission = await self.worker.submit(served.engine, requests)
        return Answering(submission, readers, Usage(sum(len(prompt.ids) for prompt in prompts)))

    async def whole(self, request: Request, submission: Submission, answer: Any) -> Response:
        """Waits for a whole answer, or until the client leaves."""
        with watching(request.receive, lambda: submission.break_off("left")):
            return JSONResponse(await answer)


def make_application(models: ServedModels, listening: ListeningSettings, limits: LimitSettings) -> FastAPI:
    """Makes the application. Its worker starts and ends with it; `app.state.service` has it."""
    service = Service(models, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.break_off_all()
        service.worker.stop()

    app = FastAPI(title="minimind-sft", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    _add_routes(app, service)
    _add_problems(app)
    if listening.key is not None:
        app.add_middleware(KeyCheck, key=listening.key)
    if listening.allow_origin:
        app.add_middleware(CORSMiddleware, allow_origins=listening.allow_origin, allow_methods=("GET", "POST"),
                           allow_headers=("*",))
    names = None if listening.is_open else LOOPBACK_NAMES
    app.add_middleware(Doorkeeper, names=names, origins=listening.allow_origin)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked, served = await service.read(request, ChatRequest)
        prompt = await service.prepare(lambda: chat_prompt(asked, served.loaded, served.sampling))
        readers = [AnswerReader(served.loaded.tokenizer, prompt.starts_thinking, None, asked.stops,
                                logprobs=asked.best_logprobs is not None) for _ in prompt.requests]
        answering = await service.submit(served, [prompt], readers)
        bodies = ChatBodies(served.name, asked.includes_usage)
        submission = answering.submission
        if asked.stream:
            return EventStream(chat_chunks(answering, bodies), lambda: submission.break_off("left"))
        return await service.whole(request, submission, chat_completion(answering, bodies))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked, served = await service.read(request, CompletionRequest)
        prompts = await service.prepare(lambda: completion_prompts(asked, served.loaded, served.sampling))
        readers = [AnswerReader(served.loaded.tokenizer, None, None, asked.stops, prompt.ids,
                                asked.best_logprobs is not None) for prompt in prompts for _ in prompt.requests]
        answering = await service.submit(served, prompts, readers)
        bodies = CompletionBodies(served.name, asked.includes_usage)
        submission = answering.submission
        if asked.stream:
            return EventStream(completion_chunks(answering, bodies), lambda: submission.break_off("left"))
        return await service.whole(request, submission, completion(answering, bodies))

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models_body((model.name, model.created) for model in service.models)

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        model = service.model(name)
        return model_body(model.name, model.created)

    @app.get("/health")
    async def health() -> Response:
        worker = service.worker
        status = "stopping" if worker.is_draining else "ok" if worker.is_alive else "failed"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=MEDIA_TYPE)


def _add_problems(app: FastAPI) -> None:
    """Makes everything that goes wrong an answer in OpenAI's form."""
    async def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiProblem)
        return problem_response(error)

    async def full(_: Request, error: Exception) -> Response:
        assert isinstance(error, QueueFull)
        return problem_response(ApiProblem(429, str(error), type="rate_limit_error", code="queue_full"),
                                {"Retry-After": str(error.retry_after)})

    async def stopping(_: Request, error: Exception) -> Response:
        return problem_response(ApiProblem(503, str(error), type="server_error", code="server_stopping"))

    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {404: "there is nothing at this address", 405: "this address does not take this method"}
        return problem_response(ApiProblem(error.status_code, said.get(error.status_code, str(error.detail)),
                                           code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code)),
                                error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        say("".join(traceback.format_exception(error)), sys.stderr)
        return problem_response(ApiProblem(500, "the server failed; its terminal shows why", type="server_error"))

    app.add_exception_handler(ApiProblem, problem)
    app.add_exception_handler(QueueFull, full)
    app.add_exception_handler(Stopping, stopping)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(Exception, failed)
