"""Generates text: prefill, then one token at a time with the KV cache.

Local letter: M candidates for the next token.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.inference.lowering import LoweredModel
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kv_cache import KVCache, cache_dtype
from minimind_sft.model.precision import at_least_float32
from minimind_sft.settings.chat import SamplingSettings

LanguageModel = MiniMindForCausalLM | LoweredModel

IsComplete = Callable[[list[int]], bool]
"""is_complete(answer's tokens so far) -> whether the answer ends there."""

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 1.0}
"""By the dtype of the weights: two scores that differ by less may change places when other prompts join the batch.

Other prompts changed a score of SmolLM2-135M by up to 1e-4 in float32 and 0.5 in bfloat16 on a CPU; the scores are
about 20.
"""


def generate_stream(
    model: LanguageModel, prompt_ids: Sequence[int], settings: SamplingSettings, stop_ids: Collection[int]
) -> Iterator[int]:
    """Yields the answer's tokens one by one, and ends before the first of `stop_ids`.

    Raises:
        UserError: if the prompt is empty or leaves no room in the model's context, or no token can be drawn.
    """
    for step in _steps(model, [prompt_ids], settings, stop_ids, _Sampler(model, [prompt_ids], settings)):
        yield from step.values()


def generate_batch(
    model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, stop_ids: Collection[int],
    is_complete: IsComplete | None = None
) -> list[list[int]]:
    """Returns the answers to several prompts of any lengths, the same as `generate_stream` gives, except for the draw.

    Args:
        is_complete: looks at an answer after each of its tokens; if it says so, the answer ends with that token.

    Raises:
        UserError: if a prompt is empty or leaves no room in the model's context.
    """
    return _answers(model, prompts, settings, stop_ids, _Sampler(model, prompts, settings), is_complete)


def generate_greedily(
    model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, stop_ids: Collection[int],
    is_complete: IsComplete | None = None
) -> list[list[int]]:
    """Returns the answers of always the most likely token, the same whichever prompts are answered together.

    How many prompts are in a batch decides in which order sums are rounded. So two tokens with almost the same score
    could change places, and the answers would differ from there on. An answer that met two such tokens is therefore
    generated again, alone. (Experts of a mixture could change places in the same way; that is not checked.)

    Raises:
        UserError: if a prompt is empty or leaves no room in the model's context.
    """
    settings = replace(settings, temperature=0.0)
    if len(prompts) < 2:
        return generate_batch(model, prompts, settings, stop_ids, is_complete)
    sampler = _CloseSampler(model, prompts, settings)
    answers = _answers(model, prompts, settings, stop_ids, sampler, is_complete)
    for index in sampler.met_close_scores.nonzero().flatten().tolist():
        (answers[index],) = generate_batch(model, [prompts[index]], settings, stop_ids, is_complete)
    return answers


def _answers(model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings,
             stop_ids: Collection[int], sampler: "_Sampler", is_complete: IsComplete | None) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    complete: set[int] = set()
    for step in _steps(model, prompts, settings, stop_ids, sampler, complete):
        for index, token in step.items():
            answers[index].append(token)
        if is_complete is not None:
            complete.update(index for index in step if is_complete(answers[index]))
    return answers


@torch.inference_mode()
def _steps(
    model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings, stop_ids: Collection[int],
    sampler: "_Sampler", complete: Collection[int] = ()
) -> Iterator[dict[int, int]]:
    """Yields for each step the new token of every unfinished prompt, {index of the prompt: token}.

    The caller may add indices to `complete` between two steps: the answers to these prompts are finished.
    """
    assert not model.training, "generation needs model.eval()"
    rooms = [_room(model, prompt, settings) for prompt in prompts]
    if not prompts:
        return
    weight = model.embed_tokens.weight
    device = weight.device
    lengths = [len(prompt) for prompt in prompts]
    longest = max(length + room for length, room in zip(lengths, rooms, strict=True))
    cache = KVCache(model.config, len(prompts), longest, cache_dtype(weight), device)
    running = list(range(len(prompts)))

    cu_seqlens = [0, *accumulate(lengths)]
    prompt_ids_T = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    context = cache.prefill(cu_seqlens)
    last_S = torch.tensor(cu_seqlens[1:], device=device) - 1
    hidden_SD = model.hidden_states(prompt_ids_T, context.positions_T, context, last_S)
    while True:
        tokens_S = sampler.choose(model.logits(hidden_SD))
        tokens = tokens_S.tolist()
        if NONE in tokens:
            raise UserError("the model's scores are NaN or infinite: its weights are damaged, or too large for --dtype")
        step = {index: token for index, token in zip(running, tokens, strict=True) if token not in stop_ids}
        yield step
        for index in step:
            rooms[index] -= 1
        finished = [s for s, index in enumerate(running) if index not in step or rooms[index] == 0 or index in complete]
        if finished:
            kept = _without(finished, len(running))
            if not kept:
                return
            running = [running[s] for s in kept]
            cache.keep(kept)
            sampler.keep(kept)
            tokens_S = tokens_S[kept]
        hidden_SD = model.hidden_states(tokens_S, cache.advance(), cache)


def _room(model: LanguageModel, prompt: Sequence[int], settings: SamplingSettings) -> int:
    """Returns how many tokens may follow the prompt."""
    context = model.config.context
    if len(prompt) == 0:
        raise UserError("the prompt is empty: expected at least one token")
    if len(prompt) >= context:
        raise UserError(f"the prompt has {len(prompt)} tokens and leaves no room for an answer: "
                        f"the model's context is {context} (max_position_embeddings)")
    return min(settings.max_new_tokens, context - len(prompt))


def _without(finished: list[int], slots: int) -> list[int]:
    """Returns the slots that continue, in their new order: the last ones fill the gaps."""
    kept = list(range(slots))
    for slot in reversed(finished):
        kept[slot] = kept[-1]
        kept.pop()
    return kept


NONE = -1
"""In place of a token."""
MIN_TEMPERATURE, MIN_SHARE = 1e-6, 1e-30
"""Divided by less, scores may overflow, and the best token is certain anyway; less is 0 in float32."""


class _Sampler:
    """Draws the next tokens, and remembers which occurred if a repetition penalty needs it."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings):
        device = model.embed_tokens.weight.device
        self.settings = settings
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.seen_SV: Tensor | None = None
        if settings.repetition_penalty != 1.0:
            self.seen_SV = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=device)
            for seen_V, prompt in zip(self.seen_SV, prompts, strict=True):
                seen_V[torch.tensor(prompt, device=device)] = True

    def choose(self, logits_SV: Tensor) -> Tensor:
        """Returns a token for each sequence, or NONE where it would be drawn by scores that are no numbers."""
        scores_SV = at_least_float32(logits_SV)
        if self.seen_SV is not None:
            scores_SV = penalize(scores_SV, self.seen_SV, self.settings.repetition_penalty)
        is_drawn = self.settings.temperature >= MIN_TEMPERATURE
        tokens_S = draw(*candidates(scores_SV, self.settings), self.generator) if is_drawn else self.best(scores_SV)
        if self.seen_SV is not None:
            self.seen_SV.scatter_(1, tokens_S[:, None], True)
        return tokens_S.where(scores_SV.amax(-1).isfinite(), NONE) if is_drawn else tokens_S

    def best(self, scores_SV: Tensor) -> Tensor:
        return scores_SV.argmax(-1)

    def keep(self, slots: list[int]) -> None:
        if self.seen_SV is not None:
            self.seen_SV = self.seen_SV[slots]


class _CloseSampler(_Sampler):
    """Takes the best tokens, and remembers for which prompts another token ever had almost the same score.

    met_close_scores: bool, one for each prompt.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], settings: SamplingSettings):
        super().__init__(model, prompts, settings)
        weight = model.embed_tokens.weight
        self.met_close_scores = torch.zeros(len(prompts), dtype=torch.bool, device=weight.device)
        self._index_S = torch.arange(len(prompts), device=weight.device)
        self._close = CLOSE[weight.dtype]

    def best(self, scores_SV: Tensor) -> Tensor:
        best_S2, tokens_S2 = scores_SV.topk(2)
        self.met_close_scores[self._index_S] |= best_S2[:, 0] - best_S2[:, 1] < self._close
        return tokens_S2[:, 0]

    def keep(self, slots: list[int]) -> None:
        super().keep(slots)
        self._index_S = self._index_S[slots]


def penalize(scores_SV: Tensor, seen_SV: Tensor, penalty: float) -> Tensor:
    """Applies CTRL's repetition penalty (Keskar et al. 2019, arXiv:1909.05858); it lowers negative scores too."""
    penalized_SV = torch.where(scores_SV > 0, scores_SV / penalty, scores_SV * penalty)
    return torch.where(seen_SV, penalized_SV, scores_SV)


def candidates(scores_SV: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Returns the probabilities (S, M) and ids (S, M) of the tokens that `temperature`, `top_k` and `top_p` leave.

    With `top_p` (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751) the others have probability 0.
    """
    scores_SV = scores_SV / settings.temperature
    vocab_size = scores_SV.shape[1]
    if settings.top_k == 0 and settings.top_p == 1:
        return scores_SV.softmax(-1), torch.arange(vocab_size, device=scores_SV.device).expand_as(scores_SV)
    best_SM, tokens_SM = scores_SV.topk(min(settings.top_k or vocab_size, vocab_size))
    probs_SM = best_SM.softmax(-1)
    if settings.top_p < 1:
        better_SM = probs_SM.cumsum(-1) - probs_SM
        probs_SM = probs_SM.masked_fill(better_SM >= max(settings.top_p, MIN_SHARE), 0.0)
        probs_SM = probs_SM / probs_SM.sum(-1, keepdim=True)
    return probs_SM, tokens_SM


def draw(probs_SM: Tensor, tokens_SM: Tensor, generator: torch.Generator) -> Tensor:
    """Draws one token per sequence: the one where a uniform number falls among the cumulative probabilities."""
    cumulated_SM = probs_SM.cumsum(-1)
    uniform_S1 = torch.rand(len(probs_SM), 1, generator=generator, device=probs_SM.device) * cumulated_SM[:, -1:]
    chosen_S1 = torch.searchsorted(cumulated_SM, uniform_S1).clamp(max=tokens_SM.shape[1] - 1)  # beyond it for NaN
    return tokens_SM.gather(1, chosen_S1).squeeze(1)
