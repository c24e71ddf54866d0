"""Measures how well a model predicts the supervised tokens of a dataset: loss, perplexity, token accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from minimind_sft.data.batching import Batch, EvaluationBatches
from minimind_sft.data.dataset import Group
from minimind_sft.model.decoder import MiniMindForCausalLM

MAX_NATS = 700.0
"""Higher losses would overflow in `math.exp`."""


def perplexity_of(loss: float) -> float:
    """Returns the perplexity for a mean cross-entropy in nats."""
    return math.exp(min(loss, MAX_NATS))


@dataclass(frozen=True)
class TokenScore:
    """Means over supervised tokens.

    loss: cross-entropy in nats; 0 without a token.
    token_accuracy: the share of the tokens that the model gives the highest score.
    """

    loss: float
    token_accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.loss)


@dataclass(frozen=True)
class ValidationLoss(TokenScore):
    """Means over an evaluation set, and over the samples of each of its files and kinds."""

    by_source: Mapping[str, TokenScore] = field(default_factory=dict)
    by_kind: Mapping[str, TokenScore] = field(default_factory=dict)


def validation_loss(model: MiniMindForCausalLM, batches: EvaluationBatches, device: torch.device,
                    dtype: torch.dtype) -> ValidationLoss:
    """Returns the scores over all batches, and leaves the model in evaluation mode; `dtype` is that of matrix products.
    """
    return summarized(group_sums(model, batches, device, dtype), batches.dataset.groups)


@torch.no_grad()
def group_sums(model: MiniMindForCausalLM, batches: EvaluationBatches, device: torch.device,
               dtype: torch.dtype) -> np.ndarray:
    """Returns the sums of `document_sums` for each of the dataset's groups, (groups, 3), over this rank's batches."""
    model.eval()
    dataset = batches.dataset
    sums = np.zeros((len(dataset.groups), 3))
    for batch, samples in batches.with_samples():
        groups = np.array([dataset.group_of(sample) for sample in samples], np.int64)
        np.add.at(sums, groups, document_sums(model, batch, device, dtype))
    return sums


def summarized(sums: np.ndarray, groups: Sequence[Group]) -> ValidationLoss:
    """Turns the sums of each group into means over all, over each file and over each kind."""
    total = _score(sums.sum(0))
    return ValidationLoss(total.loss, total.token_accuracy, total.tokens,
                          _by_name([group.source for group in groups], sums),
                          _by_name([group.kind for group in groups], sums))


@torch.no_grad()
def document_sums(model: MiniMindForCausalLM, batch: Batch, device: torch.device, dtype: torch.dtype) -> np.ndarray:
    """Returns for each document the summed loss, the tokens ranked first and all supervised tokens, (documents, 3)."""
    document_P = np.searchsorted(batch.cu_seqlens, batch.supervised_positions.numpy(), side="right") - 1
    on_device = batch.to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        losses = model.token_losses(on_device.input_ids, on_device.labels, on_device.cu_seqlens,
                                    on_device.supervised_positions)
    weights = (losses.loss_P.cpu().numpy(), losses.is_first_P.cpu().numpy(), None)
    return np.stack([np.bincount(document_P, one, len(batch.cu_seqlens) - 1) for one in weights], axis=1)


def _by_name(names: list[str], sums: np.ndarray) -> dict[str, TokenScore]:
    """Adds up the rows of `sums` that have the same name; leaves out names without a token."""
    totals = {name: sums[[other == name for other in names]].sum(0) for name in dict.fromkeys(names)}
    return {name: _score(total) for name, total in totals.items() if total[2]}


def _score(sums: np.ndarray) -> TokenScore:
    loss, first, tokens = sums.tolist()
    return TokenScore(loss / max(tokens, 1), first / max(tokens, 1), int(tokens))
