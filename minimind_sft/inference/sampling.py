"""Chooses the next token of each sequence as its own request asks, the same alone and among others.

A row of scores goes through these steps, in the order of vLLM and of transformers' `generate`:

1. `logit_bias` is added.
2. Scores of tokens that occurred in prompt or answer are divided by `repetition_penalty` where positive and multiplied
   where negative (CTRL, Keskar et al. 2019, arXiv:1909.05858).
3. `frequency_penalty` is subtracted for each time that a token occurred in the answer, and `presence_penalty` once, as
   in OpenAI's interface.
4. Tokens that the constraint does not allow are left out.
5. At temperature 0 the best token is chosen. Otherwise scores are divided by the temperature;
6. the best `top_k` stay, with all that are equal to the last of them;
7. of those, the fewest whose probabilities sum to at least `top_p` stay (nucleus sampling, Holtzman et al. 2019,
   arXiv:1904.09751), of equal ones those with lower ids;
8. and a uniform number from the request's own generator chooses among them.

Reported logprobs are those of the scores before all steps. Rows that only need their best token are computed together
where the model computes; all others one by one on the CPU, so that neither the rows beside them nor the device have an
influence. Local letter: M candidates for the next token.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.inference.request import Request, Token
from minimind_sft.model.precision import at_least_float32

MIN_TEMPERATURE = 1e-6
"""Below, the best token is certain, and float32 may not hold the temperature."""
CUTOFFS = (1e-2, 1e-3, 1e-4, 1e-5)
"""A nucleus is looked for among the tokens that are at least so likely, so that few have to be sorted."""
NO_NUMBERS = "the model's scores are NaN or infinite: its weights are damaged, or too large for --dtype"
NOTHING_ALLOWED = "no token can continue the answer: the constraint allows none"


class Sampler:
    """Chooses the tokens of the requests of one engine.

    Args:
        vocab_size: the number of scores in a row.
    """

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size
        self._states: dict[Request, _State] = {}

    def add(self, request: Request) -> None:
        """Prepares for a request; its answer has no token yet.

        Raises:
            UserError: if its `logit_bias` names a token that the model does not have.
        """
        for token in request.logit_bias:
            if not 0 <= token < self._vocab_size:
                raise UserError(f"logit_bias: expected token ids from 0 to {self._vocab_size - 1}, found {token}")
        self._states[request] = _State(request)

    def forget(self, request: Request) -> None:
        """Drops what `add` prepared, if it did."""
        self._states.pop(request, None)

    def choose(self, logits_SV: Tensor, requests: Sequence[Request]) -> list[Token | None]:
        """Returns the next token of each request, which owns the row of scores at the same place.

        None stands for a request that cannot go on; its `problem` says why.
        """
        states = [self._states[request] for request in requests]
        if any(state.needs_row for state in states):
            rows_SV = at_least_float32(logits_SV).cpu().numpy()
            return [_chosen(state, logits_V) for state, logits_V in zip(states, rows_SV, strict=True)]
        tokens: list[Token | None] = []
        for state, token, is_number in zip(states, *_best(logits_SV), strict=True):
            if not is_number:
                state.request.problem = NO_NUMBERS
            tokens.append(Token(token) if is_number else None)
        return tokens


class _State:
    """The state of choosing one request's tokens.

    needs_row: whether it needs more of a row than the best token.
    """

    def __init__(self, request: Request):
        sampling = request.sampling
        self.request = request
        self.draws = sampling.temperature >= MIN_TEMPERATURE
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.bias_ids = np.array(list(request.logit_bias), dtype=np.int64)
        self.bias_values = np.array(list(request.logit_bias.values()))
        self.repeats = sampling.repetition_penalty != 1.0
        self.penalizes = self.repeats or request.frequency_penalty != 0 or request.presence_penalty != 0
        self.changes_scores = bool(request.logit_bias) or self.penalizes or request.constraint is not None
        self.needs_row = self.draws or self.changes_scores or request.logprobs is not None
        # Tokens that occurred, in the order in which they first did, and how often each did in the answer.
        self.occurred = np.unique(np.array(request.prompt if self.repeats else [], dtype=np.int64))
        self.counts = np.zeros(len(self.occurred))
        self.place = {token: place for place, token in enumerate(self.occurred.tolist())}

    def changed(self, scores_V: NDArray) -> NDArray:
        """Returns the scores after steps 1 to 4.

        Raises:
            UserError: if the constraint fails.
        """
        request, scores_V = self.request, scores_V.copy()
        scores_V[self.bias_ids] += self.bias_values
        if self.penalizes:
            scores_M = scores_V[self.occurred]
            if self.repeats:
                scores_M = penalized(scores_M, request.sampling.repetition_penalty)
            scores_M -= request.frequency_penalty * self.counts + request.presence_penalty * (self.counts > 0)
            scores_V[self.occurred] = scores_M
        if request.constraint is not None:
            scores_V[~request.constraint.allowed_V().numpy()] = -np.inf
        return scores_V

    def choose(self, logits_V: NDArray) -> Token:
        """Returns the next token, and takes note of it.

        Raises:
            UserError: if the scores are no numbers, or the constraint fails or allows no token.
        """
        if not np.isfinite(logits_V.max()):
            raise UserError(NO_NUMBERS)
        request, sampling = self.request, self.request.sampling
        scores_V = self.changed(logits_V) if self.changes_scores else logits_V
        token = int(scores_V.argmax())
        if not np.isfinite(scores_V[token]):
            raise UserError(NOTHING_ALLOWED)
        if self.draws:
            token = draw(*candidates(scores_V, sampling.temperature, sampling.top_k, sampling.top_p), self.generator)
        self.note(token)
        return Token(token) if request.logprobs is None else _with_logprobs(token, logits_V, request.logprobs)

    def note(self, token: int) -> None:
        """Tells the constraint and the penalties which token was chosen."""
        if self.request.constraint is not None:
            self.request.constraint.accept(token)
        if self.penalizes:
            if token not in self.place:
                self.place[token] = len(self.occurred)
                self.occurred, self.counts = np.append(self.occurred, token), np.append(self.counts, 0.0)
            self.counts[self.place[token]] += 1


def _chosen(state: _State, logits_V: NDArray) -> Token | None:
    """Returns the next token of a request; None, and says why in its `problem`, if there is none."""
    try:
        return state.choose(logits_V)
    except UserError as error:
        state.request.problem = str(error)
        return None


def _best(logits_SV: Tensor) -> tuple[list[int], list[bool]]:
    """Returns each row's token of the best score, of equal ones the first, and whether that score is a finite number.
    """
    if logits_SV.device.type == "cpu":  # NumPy's is several times faster there
        rows_SV = at_least_float32(logits_SV).numpy()
        tokens_S = rows_SV.argmax(-1)
        return tokens_S.tolist(), np.isfinite(rows_SV[np.arange(len(rows_SV)), tokens_S]).tolist()
    best = logits_SV.max(-1)
    return best.indices.tolist(), best.values.isfinite().tolist()


def _with_logprobs(token: int, logits_V: NDArray, count: int) -> Token:
    best = logits_V.max()
    total = float(best) + float(np.log(np.exp(logits_V - best).sum(dtype=np.float64)))
    best_M = largest(logits_V, count)[:count].tolist() if count else []
    return Token(token, float(logits_V[token]) - total, [(one, float(logits_V[one]) - total) for one in best_M])


def penalized(scores_M: NDArray, penalty: float) -> NDArray:
    """Returns the scores of tokens that occurred under CTRL's repetition penalty; it lowers negative scores too."""
    return np.where(scores_M > 0, scores_M / penalty, scores_M * penalty)


def candidates(scores_V: NDArray, temperature: float, top_k: int, top_p: float) -> tuple[NDArray, NDArray]:
    """Returns the probabilities (M,) and ids (M,) of the tokens that `temperature`, `top_k` and `top_p` leave.

    The probabilities sum to 1 only before `top_p` leaves some out.
    """
    scores_M, tokens_M = scores_V, np.arange(len(scores_V))
    if 0 < top_k < len(scores_V):
        tokens_M = _at_least_kth(scores_V, top_k)
        scores_M = scores_V[tokens_M]
    with np.errstate(over="ignore"):  # then a token is as good as impossible
        probs_M = np.exp((scores_M - scores_M.max()) / temperature)
    probs_M /= probs_M.sum(dtype=np.float64)
    if top_p < 1:
        kept_M = nucleus(probs_M, top_p)
        probs_M, tokens_M = probs_M[kept_M], tokens_M[kept_M]
    return probs_M, tokens_M


def nucleus(probs_V: NDArray, top_p: float) -> NDArray:
    """Returns the indices of the fewest tokens whose probabilities sum to at least `top_p`, most likely first."""
    for cutoff in (*CUTOFFS, 0.0):
        likely_M = np.flatnonzero(probs_V >= cutoff)
        if cutoff == 0 or probs_V[likely_M].sum(dtype=np.float64) >= top_p:
            break
    likely_M = _sorted(probs_V, likely_M)
    sums_M = probs_V[likely_M].cumsum(dtype=np.float64)
    return likely_M[:int(np.searchsorted(sums_M, top_p)) + 1]


def largest(values_V: NDArray, count: int) -> NDArray:
    """Returns the indices of the `count` largest values and of those equal to the last, best first, then by index."""
    return _sorted(values_V, _at_least_kth(values_V, count) if count < len(values_V) else np.arange(len(values_V)))


def _at_least_kth(values_V: NDArray, count: int) -> NDArray:
    return np.flatnonzero(values_V >= np.partition(values_V, -count)[-count])


def _sorted(values_V: NDArray, indices_M: NDArray) -> NDArray:
    return indices_M[np.argsort(-values_V[indices_M], kind="stable")]


def draw(probs_M: NDArray, tokens_M: NDArray, generator: torch.Generator) -> int:
    """Draws a token: the one where a uniform number falls among the cumulative probabilities."""
    sums_M = probs_M.cumsum(dtype=np.float64)
    uniform = torch.rand(1, generator=generator).item() * sums_M[-1]
    return int(tokens_M[np.searchsorted(sums_M, uniform, side="right")])


def seeds(seed: int, count: int) -> Iterator[int]:
    """Yields the seeds of `count` prompts that are answered together; the first is `seed`."""
    yield seed
    for index in range(1, count):
        digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
        yield int.from_bytes(digest[:8], "big", signed=True)
