"""A prompt to continue, and the tokens of its answer."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from minimind_sft.settings.chat import SamplingSettings


class Token(NamedTuple):
    """A token of an answer.

    logprob: the natural logarithm of its probability among all tokens, before temperature, penalties and constraints;
        None unless the request asks for `logprobs`.
    best: the most likely tokens at its place with their logprobs, best first, as many as the request asks for.
    """

    id: int
    logprob: float | None = None
    best: Sequence[tuple[int, float]] = ()


class Constraint(Protocol):
    """Says which tokens may come next, for answers that must follow a grammar. Belongs to one request."""

    def allowed_V(self) -> Tensor:
        """Returns which tokens may come next (V,), bool, on the CPU. The request's stop ids count like any token."""

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen."""


@dataclass(eq=False)
class Request:
    """A prompt to continue. An object belongs to one engine and is answered once.

    stop_ids: tokens that end the answer; they are not part of it.
    frequency_penalty, presence_penalty: subtracted from the score of a token of the answer, the first for each time
        that it occurred, as in OpenAI's interface.
    logit_bias: added to the scores of these tokens.
    logprobs: how many of the best tokens to report with each; None: report no logprobs at all.
    finish: why the answer ended: "stop" (a stop id), "length" (max_new_tokens, or the context is full), "cancelled",
        or "error"; None while it goes on.
    problem: what was wrong, if `finish` is "error".
    prompt_tokens_shared: tokens of the prompt that did not have to be read, because an earlier request began alike.
    """

    prompt: Sequence[int]
    sampling: SamplingSettings
    stop_ids: Collection[int] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    constraint: Constraint | None = None
    finish: Literal["stop", "length", "cancelled", "error"] | None = None
    problem: str = ""
    prompt_tokens_shared: int = 0
