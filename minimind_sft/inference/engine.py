"""Answers many requests at once: they join and leave at any step, and none changes the tokens of another."""

from collections.abc import Iterator

import torch

from minimind_sft.errors import UserError
from minimind_sft.inference.generate import LanguageModel, generate_stream
from minimind_sft.inference.request import Constraint as Constraint
from minimind_sft.inference.request import Request, Token


class Engine:
    """Answers requests with one model.

    Args:
        max_running: requests that are answered at the same time; others wait in the order in which they came.
        cache_tokens: tokens of prompts and answers that the KV cache holds for all requests together.
        chunk: tokens of a prompt that a step reads at most.
    """

    def __init__(self, model: LanguageModel, max_running: int = 16, cache_tokens: int = 16384, chunk: int = 256):
        self.model, self.max_running, self.cache_tokens, self.chunk = model, max_running, cache_tokens, chunk
        self._waiting: list[Request] = []
        self._running: dict[Request, Iterator[int]] = {}

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot or for room in the cache."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of requests that are being answered."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue.

        Raises:
            UserError: if its prompt is empty, leaves no room in the model's context, or never fits the cache.
        """
        if not 0 < len(request.prompt) < self.model.config.context:
            raise UserError(f"the prompt has {len(request.prompt)} tokens, the model's context is "
                            f"{self.model.config.context}")
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self) -> dict[Request, list[Token]]:
        """Computes the next tokens. Returns them for every request that got some, or that ended (`finish` is set)."""
        while self._waiting and len(self._running) < self.max_running:
            request = self._waiting.pop(0)
            self._running[request] = generate_stream(self.model, request.prompt, request.sampling, request.stop_ids)
        new: dict[Request, list[Token]] = {}
        counts = getattr(self, "_counts", {})
        self._counts = counts
        for request, tokens in list(self._running.items()):
            token = next(tokens, None)
            new[request] = [] if token is None else [Token(token)]
            counts[request] = counts.get(request, 0) + len(new[request])
            if token is None:
                full = counts[request] == min(request.sampling.max_new_tokens,
                                              self.model.config.context - len(request.prompt))
                request.finish = "length" if full else "stop"
                del self._running[request], counts[request]
        return new

    def cancel(self, request: Request) -> None:
        """Ends a request at once and frees its place. Its `finish` becomes "cancelled", unless it had ended."""
        if request.finish is None:
            request.finish = "cancelled"
            self._running.pop(request, None)
            if request in self._waiting:
                self._waiting.remove(request)
