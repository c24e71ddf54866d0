"""Measures how likely a model finds the tokens of documents.

Local letter: P supervised positions.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimind_sft.data.batching import collate
from minimind_sft.data.example import Example
from minimind_sft.inference.lowering import LanguageModel, prompt_form
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.attention import Documents
from minimind_sft.model.precision import at_least_float32
from minimind_sft.terminal import progress_bar

BATCH_TOKENS = 4096
"""Tokens of one forward pass, or the longest document if that is longer."""

CHUNK_LOGITS = 2**24
"""Logits that exist at the same time."""


class TokenScores(NamedTuple):
    """The supervised tokens of a document, in order.

    log_probs_P: the natural logarithm of each token's probability (float64).
    is_best_P: whether it is the token that the model finds most likely (bool).
    """

    log_probs_P: np.ndarray
    is_best_P: np.ndarray


@torch.inference_mode()
def score_tokens(model: LanguageModel, documents: Sequence[Example], batch_tokens: int = BATCH_TOKENS,
                 progress: str = "") -> list[TokenScores]:
    """Returns the scores of each document's supervised tokens, given the tokens before them in the document.

    Args:
        batch_tokens: most tokens in a forward pass; affects memory and speed only, up to rounding.
        progress: label of a progress bar; "" shows none.
    """
    found: list[TokenScores] = [TokenScores(np.zeros(0), np.zeros(0, bool))] * len(documents)
    with progress_bar(label=progress, total=len(documents), unit=" documents",
                      disable=None if progress else True) as bar:
        for batch in batches([len(document.input_ids) for document in documents], batch_tokens):
            scores = _scores(model, [documents[index] for index in batch])
            for index, of_one in zip(batch, scores, strict=True):
                found[index] = of_one
            bar.update(len(batch))
    return found


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yields the indices of documents that go through the model together, longest first."""
    batch: list[int] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[index] > room:
            yield batch
            batch = []
        room = (room if batch else batch_tokens) - lengths[index]
        batch.append(index)
    if batch:
        yield batch


def _scores(model: LanguageModel, documents: Sequence[Example]) -> list[TokenScores]:
    model = prompt_form(model)
    device = model.embed_tokens.weight.device
    batch = collate(documents).to(device)
    context = Documents(batch.cu_seqlens, device)
    read_P = batch.supervised_positions
    hidden_PD = model.hidden_states(batch.input_ids, context.positions_T, context, read_P)
    log_probs_P, is_best_P = scores_of(model, hidden_PD, batch.labels[read_P])
    ends = np.cumsum([int((document.labels != IGNORE_INDEX).sum()) for document in documents])[:-1]
    return [TokenScores(*of_one) for of_one in zip(np.split(log_probs_P, ends), np.split(is_best_P, ends), strict=True)]


def scores_of(model: LanguageModel, hidden_PD: Tensor, labels_P: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns each label's log probability, and whether it is the best token; a chunk of positions at a time."""
    log_probs, is_best = [np.zeros(0)], [np.zeros(0, bool)]
    rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    for hidden, labels in zip(hidden_PD.split(rows), labels_P.split(rows), strict=True):
        logits = at_least_float32(model.logits(hidden))
        chosen = logits.gather(1, labels[:, None]).squeeze(1)
        log_probs.append((chosen - logits.logsumexp(1)).double().cpu().numpy())
        is_best.append((logits.argmax(1) == labels).cpu().numpy())
    return np.concatenate(log_probs), np.concatenate(is_best)
