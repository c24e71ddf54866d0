"""Measures log-likelihoods: how probable a model finds tokens, given the tokens before them.

Local letters: N positions that the head reads, R of them at a time; P scored tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from minimind_sft.inference.generate import LanguageModel
from minimind_sft.model.attention import Documents
from minimind_sft.model.precision import at_least_float32

BATCH_TOKENS = 4096
"""Tokens that go through the model together. A longer sequence goes alone."""
ROWS = 256
"""Positions whose scores of the whole vocabulary exist at the same time."""


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
    for batch in _batches(sorted(groups, key=len, reverse=True), batch_tokens):
        members = [(number, index) for number, read in enumerate(batch) for index in groups[read]]
        scored = _scored(model, batch, [(number, continuations[index].ids) for number, index in members])
        yield from ((index, one) for (_, index), one in zip(members, scored, strict=True))


def _batches(sequences: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    batch: list[tuple[int, ...]] = []
    for sequence in sequences:
        if batch and sum(map(len, batch)) + len(sequence) > batch_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


@torch.inference_mode()
def _scored(model: LanguageModel, sequences: Sequence[tuple[int, ...]],
            wanted: Sequence[tuple[int, Sequence[int]]]) -> list[Likelihood]:
    """Scores (number of a sequence, tokens): the tokens are those that the sequence's last positions predict."""
    device = model.embed_tokens.weight.device
    cu_seqlens = [0, *accumulate(map(len, sequences))]
    positions = [at for number, ids in wanted
                 for at in range(cu_seqlens[number + 1] - len(ids), cu_seqlens[number + 1])]
    read = sorted(set(positions))
    row_of = {position: row for row, position in enumerate(read)}
    rows_P = torch.tensor([row_of[position] for position in positions], device=device)
    tokens_P = torch.tensor([token for _, ids in wanted for token in ids], device=device)

    documents = Documents(cu_seqlens, device)
    input_ids_T = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    hidden_ND = model.hidden_states(input_ids_T, documents.positions_T, documents, torch.tensor(read, device=device))
    logprobs_P, best_P = _token_scores(model, hidden_ND, rows_P, tokens_P)

    lengths = [len(ids) for _, ids in wanted]
    totals = [part.sum().item() for part in logprobs_P.double().cpu().split(lengths)]
    greedy = [bool(part.all()) for part in (best_P == tokens_P).cpu().split(lengths)]
    return [Likelihood(*one) for one in zip(totals, greedy, strict=True)]


def _token_scores(model: LanguageModel, hidden_ND: Tensor, rows_P: Tensor, tokens_P: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of each token (P,) at its row, and the most likely token there (P,)."""
    logprobs_P = at_least_float32(hidden_ND.new_empty(len(rows_P)))
    best_P = torch.empty_like(tokens_P)
    for start in range(0, len(hidden_ND), ROWS):
        logprobs_RV = at_least_float32(model.logits(hidden_ND[start:start + ROWS])).log_softmax(-1)
        here_P = ((rows_P >= start) & (rows_P < start + ROWS)).nonzero().squeeze(1)
        rows_R = rows_P[here_P] - start
        logprobs_P[here_P] = logprobs_RV[rows_R, tokens_P[here_P]]
        best_P[here_P] = logprobs_RV.argmax(-1)[rows_R]
    return logprobs_P, best_P
