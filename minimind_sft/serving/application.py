"""The application: what the server answers at which address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from minimind_sft.errors import UserError
from minimind_sft.host_names import LOOPBACK_NAMES
from minimind_sft.serving.access import Doorkeeper, KeyCheck, names_of
from minimind_sft.serving.answering import LEFT, chat_chunks, completion_chunks, whole_chat, whole_completion
from minimind_sft.serving.bodies import ChatBodies, CompletionBodies, model_body, models_body
from minimind_sft.serving.chat_page import page_files
from minimind_sft.serving.description import openapi
from minimind_sft.serving.metrics import MEDIA_TYPE, CountingResponses
from minimind_sft.serving.models import ServedModels
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.requests import ChatRequest, CompletionRequest
from minimind_sft.serving.responses import problem_response
from minimind_sft.serving.service import Service
from minimind_sft.serving.worker import QueueFull, Stopping
from minimind_sft.settings.serve import LimitSettings, ListeningSettings

ADDRESSES = ("/", "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
"""Addresses that are counted by themselves."""


def make_application(models: ServedModels, listening: ListeningSettings, limits: LimitSettings) -> FastAPI:
    """Makes the application; `app.state.service` has the worker, which starts and ends with it."""
    service = Service(models, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            service.worker.break_off_all()
            service.worker.stop()

    app = FastAPI(title="minimind-sft", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    document = openapi(app.title)
    app.openapi = lambda: document  # type: ignore[method-assign]
    _add_answers(app, service)
    _add_facts(app, service)
    _add_page(app)
    _add_problems(app)
    if listening.key is not None:
        app.add_middleware(KeyCheck, key=listening.key)
    if listening.allow_origin:
        app.add_middleware(CORSMiddleware, allow_origins=listening.allow_origin, allow_methods=("GET", "POST"),
                           allow_headers=("*",), expose_headers=("Retry-After",))
    names = None if listening.is_open else {*LOOPBACK_NAMES, listening.host, *names_of(listening.allow_origin)}
    app.add_middleware(Doorkeeper, names=names, origins=listening.allow_origin)
    app.add_middleware(CountingResponses, metrics=service.metrics, addresses=ADDRESSES)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked, served = await service.read(request, ChatRequest)
        answering = await service.ask_chat(asked, served)
        bodies = ChatBodies(served.name, asked.includes_usage)
        if asked.stream:
            return service.stream(answering, chat_chunks(answering, bodies))
        return await service.whole(request, answering, whole_chat(answering, bodies))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked, served = await service.read(request, CompletionRequest)
        answering = await service.ask_completion(asked, served)
        bodies = CompletionBodies(served.name, asked.includes_usage)
        if asked.stream:
            return service.stream(answering, completion_chunks(answering, bodies))
        return await service.whole(request, answering, whole_completion(answering, bodies))


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models_body((model.name, model.created, model.chats) for model in service.models)

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        model = service.model(name)
        return model_body(model.name, model.created, model.chats)

    @app.get("/health")
    async def health() -> Response:
        status = service.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=MEDIA_TYPE)


def _add_page(app: FastAPI) -> None:
    """Adds the files of the chat page, as they are now."""
    for address, file in page_files().items():
        async def send(_: Request, file: Any = file) -> Response:
            return Response(file.content, headers=dict(file.headers))

        app.add_route(address, send, ["GET"], include_in_schema=False)


def _add_problems(app: FastAPI) -> None:
    """Makes everything that goes wrong a response in OpenAI's form."""
    async def problem(_: Request, error: Any) -> Response:
        return problem_response(error)

    async def never(_: Request, error: Any) -> Response:
        return problem_response(ApiProblem(400, str(error), code="invalid_value"))

    async def full(_: Request, error: Any) -> Response:
        return problem_response(ApiProblem(429, str(error), type="rate_limit_error", code="queue_full"),
                                {"Retry-After": str(error.retry_after)})

    async def stopping(_: Request, error: Any) -> Response:
        return problem_response(ApiProblem(503, str(error), type="server_error", code="server_stopping"))

    async def left(_: Request, __: Any) -> Response:
        return problem_response(LEFT)

    async def http(_: Request, error: Any) -> Response:
        said = {404: f"there is nothing at this address; requests go to {', '.join(ADDRESSES[1:])}",
                405: f"this address takes {(error.headers or {}).get('Allow', 'another method')}"}
        codes = {404: "not_found", 405: "method_not_allowed"}
        message = said.get(error.status_code, str(error.detail))
        return problem_response(ApiProblem(error.status_code, message, code=codes.get(error.status_code)),
                                error.headers)

    async def failed(_: Request, __: Any) -> Response:  # uvicorn prints the error
        return problem_response(ApiProblem(500, "the server failed; its terminal shows why", type="server_error",
                                           code="server_failed"))

    for kind, handler in ((ApiProblem, problem), (UserError, never), (QueueFull, full), (Stopping, stopping),
                          (HTTPException, http), (ClientDisconnect, left), (Exception, failed)):
        app.add_exception_handler(kind, handler)
