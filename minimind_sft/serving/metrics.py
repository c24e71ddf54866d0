"""Counts what the server does, for Prometheus."""

from collections.abc import Collection
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimind_sft.serving.bodies import Usage
from minimind_sft.serving.models import ServedModels

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
MEDIA_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
"""The label of all addresses that the server does not know."""


class Metrics:
    """Counters of one server. Labels are names of models, our own addresses and statuses: nothing of clients."""

    def __init__(self, models: ServedModels):
        self._registry = CollectorRegistry()
        self._requests = Counter("minimind_requests", "HTTP requests that were answered", ("path", "status"),
                                 registry=self._registry)
        self._tokens = Counter("minimind_tokens", "tokens of prompts, of prompts that were not read again, of answers",
                               ("model", "kind"), registry=self._registry)
        self._answers = Counter("minimind_answers", "answers, by the reason of their end", ("model", "reason"),
                                registry=self._registry)
        self._first = Histogram("minimind_first_token_seconds", "from the request to its first token", ("model",),
                                buckets=SECONDS, registry=self._registry)
        self._between = Histogram("minimind_between_tokens_seconds", "mean time between the tokens of an answer",
                                  ("model",), buckets=SECONDS, registry=self._registry)
        self._whole = Histogram("minimind_answer_seconds", "from the request to the end of its answer", ("model",),
                                buckets=SECONDS, registry=self._registry)
        for name, what in (("running", "requests that are being answered"), ("waiting", "requests that wait")):
            gauge = Gauge(f"minimind_{name}", what, ("model",), registry=self._registry)
            for model in models:
                gauge.labels(model.name).set_function(partial(getattr, model.engine, name))

    def count_response(self, path: str, status: int) -> None:
        """Counts an answered HTTP request. `path`: one of our addresses, not what the client wrote."""
        self._requests.labels(path, str(status)).inc()

    def count_tokens(self, model: str, usage: Usage) -> None:
        """Counts the tokens of a request that has ended."""
        for kind, count in (("prompt", usage.prompt), ("cached", usage.cached), ("completion", usage.completion)):
            self._tokens.labels(model, kind).inc(count)

    def count_answer(self, model: str, reason: str) -> None:
        """Counts an answer that has ended."""
        self._answers.labels(model, reason).inc()

    def time_answer(self, model: str, first: float, whole: float, tokens: int) -> None:
        """Takes the times of an answer of at least one token, in seconds since its request."""
        self._first.labels(model).observe(first)
        self._whole.labels(model).observe(whole)
        if tokens > 1:
            self._between.labels(model).observe((whole - first) / (tokens - 1))

    def page(self) -> bytes:
        """Returns everything in Prometheus's text format."""
        return generate_latest(self._registry)


class CountingResponses:
    """Counts all responses of an application.

    Args:
        addresses: those that are counted by themselves; all others are counted together.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, addresses: Collection[str]):
        self.app, self.metrics, self.addresses = app, metrics, frozenset(addresses)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.addresses else OTHER
                self.metrics.count_response(path, message["status"])
            await send(message)

        await self.app(scope, receive, send_counted)
