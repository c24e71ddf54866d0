"""Measures validation loss and perplexity."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from minimind_sft.data.batching import Batch


@dataclass(frozen=True)
class ValidationLoss:
    """Mean cross-entropy in nats over the supervised tokens of an evaluation set."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


@torch.no_grad()
def validation_loss(model: nn.Module, batches: Iterable[Batch], device: torch.device, dtype: torch.dtype,
                    sum_over_ranks: Callable[..., list[float]]) -> ValidationLoss:
    """Returns the validation loss over the batches of all ranks, and leaves the model in evaluation mode.

    Args:
        batches: this rank's share.
        sum_over_ranks: sum_over_ranks(a, b) returns both sums over all ranks.
    """
    model.eval()
    loss_sum, tokens = 0.0, 0.0
    for batch in batches:
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss_sum += float(model(batch.input_ids, batch.labels, batch.cu_seqlens).loss_sum)
        tokens += batch.supervised
    all_loss_sum, all_tokens = sum_over_ranks(loss_sum, tokens)
    return ValidationLoss(all_loss_sum / max(all_tokens, 1), int(all_tokens))
