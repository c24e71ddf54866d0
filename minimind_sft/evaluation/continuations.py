"""Measures the likelihood of continuations: how probable a model finds tokens, given the tokens before them."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from minimind_sft.evaluation.likelihood import BATCH_TOKENS, batches, scores_of
from minimind_sft.inference.lowering import LanguageModel, prompt_form
from minimind_sft.model.attention import Documents


class Continuation(NamedTuple):
    """Tokens to score, and the tokens before them. Neither is empty."""

    context: Sequence[int]
    ids: Sequence[int]

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that the model reads: all but the last."""
        return (*self.context, *self.ids[:-1])


class Likelihood(NamedTuple):
    """log_likelihood: log-probability of the scored tokens in nats; is_greedy: each was the most likely one."""

    log_likelihood: float
    is_greedy: bool


def likelihoods(model: LanguageModel, continuations: Sequence[Continuation],
                batch_tokens: int = BATCH_TOKENS) -> Iterator[tuple[int, Likelihood]]:
    """Yields (index of the continuation, its likelihood), those of the longest sequences first.

    Continuations that differ in their last token only, such as the letters A to D, go through the model once.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, continuation in enumerate(continuations):
        assert len(continuation.context) and len(continuation.ids), "nothing to read or to score"
        groups.setdefault(continuation.read, []).append(index)
    sequences = list(groups)
    for batch in batches([len(sequence) for sequence in sequences], batch_tokens):
        members = [(number, index) for number, chosen in enumerate(batch) for index in groups[sequences[chosen]]]
        found = _likelihoods(model, [sequences[chosen] for chosen in batch],
                             [(number, continuations[index].ids) for number, index in members])
        yield from zip([index for _, index in members], found, strict=True)


@torch.inference_mode()
def _likelihoods(model: LanguageModel, sequences: Sequence[tuple[int, ...]],
                 wanted: Sequence[tuple[int, Sequence[int]]]) -> list[Likelihood]:
    """Scores (number of a sequence, tokens): the tokens are those that the sequence's last positions predict."""
    model = prompt_form(model)
    device = model.embed_tokens.weight.device
    cu_seqlens = [0, *accumulate(map(len, sequences))]
    read = [at for number, ids in wanted for at in range(cu_seqlens[number + 1] - len(ids), cu_seqlens[number + 1])]
    input_ids_T = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    labels_P = torch.tensor([token for _, ids in wanted for token in ids], device=device)
    documents = Documents(cu_seqlens, device)
    hidden_PD = model.hidden_states(input_ids_T, documents.positions_T, documents, torch.tensor(read, device=device))
    ends = np.cumsum([len(ids) for _, ids in wanted])[:-1]
    log_probs, is_best = (np.split(values_P, ends) for values_P in scores_of(model, hidden_PD, labels_P))
    return [Likelihood(float(one.sum()), bool(best.all())) for one, best in zip(log_probs, is_best, strict=True)]
