"""Generates text: loops over an engine (engine.py) that is made for the prompts at hand."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from minimind_sft.errors import UserError
from minimind_sft.inference.engine import PAGE, Engine, room
from minimind_sft.inference.lowering import LanguageModel
from minimind_sft.inference.request import Request
from minimind_sft.inference.sampling import seeds
from minimind_sft.model.kv_cache import padded_length
from minimind_sft.settings.chat import SamplingSettings

IsComplete = Callable[[list[int]], bool]
"""is_complete(answer's tokens so far) -> whether the answer ends there."""


def generate_stream(
    model: LanguageModel, prompt_ids: Sequence[int], settings: SamplingSettings, stop_ids: Collection[int]
) -> Iterator[int]:
    """Yields the answer's tokens one by one, and ends before the first of `stop_ids`.

    Raises:
        UserError: if the prompt is empty or leaves no room in the model's context, or no token can be drawn.
    """
    request = Request(prompt_ids, settings, stop_ids)
    for new in _steps(model, [request]):
        yield from new.get(request, ())


def generate_batch(
    model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, stop_ids: Collection[int],
    is_complete: IsComplete | None = None
) -> list[list[int]]:
    """Returns the answers to several prompts of any lengths, bit for bit those of `generate_stream` for each alone.

    Each prompt draws with a generator of its own, whose seed follows from `settings.seed` and the prompt's place
    (`sampling.seeds`); the first prompt's is `settings.seed` itself.

    Args:
        is_complete: looks at an answer after each of its tokens; if it says so, the answer ends with that token.

    Raises:
        UserError: if a prompt is empty or leaves no room in the model's context, or no token can be drawn.
    """
    requests = [Request(prompt, replace(settings, seed=seed), stop_ids)
                for prompt, seed in zip(prompts, seeds(settings.seed, len(prompts)), strict=False)]
    answers: dict[Request, list[int]] = {request: [] for request in requests}
    complete: set[Request] = set()
    for new in _steps(model, requests, complete):
        for request, tokens in new.items():
            answers[request] += tokens
            if tokens and is_complete is not None and is_complete(answers[request]):
                complete.add(request)
    return list(answers.values())


def generate_greedily(
    model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, stop_ids: Collection[int],
    is_complete: IsComplete | None = None
) -> list[list[int]]:
    """Returns the answers of always the most likely token, the same whichever prompts are answered together.

    Raises:
        UserError: if a prompt is empty or leaves no room in the model's context.
    """
    return generate_batch(model, prompts, replace(settings, temperature=0.0), stop_ids, is_complete)


def _steps(model: LanguageModel, requests: Sequence[Request], complete: Collection[Request] = ()
           ) -> Iterator[dict[Request, list[int]]]:
    """Yields the new tokens of each step. The caller may add to `complete` requests that need no more.

    Raises:
        UserError: if a request cannot be answered.
    """
    rooms = [room(model, request) for request in requests]
    lengths = [len(request.prompt) for request in requests]
    places = sum(-(-padded_length(sum(both)) // PAGE) * PAGE for both in zip(lengths, rooms, strict=True))
    engine = Engine(model, max(len(requests), 1), places, chunk=max(sum(lengths), 1), reserve=max(rooms, default=1))
    for request in requests:
        engine.add(request)
    while engine.running or engine.waiting:
        new = engine.step()
        for request in new:
            if request.finish == "error":
                raise UserError(request.problem)
        yield {request: [token.id for token in tokens] for request, tokens in new.items()}
        for request in complete:
            engine.cancel(request)
