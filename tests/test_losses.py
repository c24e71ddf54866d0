"""Validation loss and perplexity."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, random_documents
from tiny_training import CPU

from minimind_sft.data.batching import BatchLayout, EvaluationBatches
from minimind_sft.evaluation.losses import ValidationLoss, validation_loss
from minimind_sft.model.decoder import MiniMindForCausalLM


def test_validation_loss_is_the_mean_over_supervised_tokens():
    """Compared with plain cross-entropy on one document at a time."""
    torch.manual_seed(0)
    model, documents = MiniMindForCausalLM(TINY), random_documents(7)
    total, tokens = 0.0, 0
    for sample in range(7):
        input_ids, labels = (torch.from_numpy(ids.astype("int64")) for ids in documents[sample][0])
        logits = model.eval().document_logits(input_ids, (0, len(input_ids)))
        total += F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        tokens += int((labels != -100).sum())
    found = validation_loss(model, EvaluationBatches(documents, BatchLayout(40)), CPU.device, torch.float32, CPU.sum)
    assert (found.loss, found.tokens) == (pytest.approx(total / tokens, rel=1e-5), tokens)
    assert found.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_loss_and_tokens_are_summed_over_ranks():
    torch.manual_seed(0)
    model, documents = MiniMindForCausalLM(TINY), random_documents(7)
    alone = validation_loss(model, EvaluationBatches(documents, BatchLayout(40)), CPU.device, torch.float32, CPU.sum)
    shares = []

    def collect(loss_sum: float, tokens: float) -> list[float]:
        shares.append((loss_sum, tokens))
        return [sum(column) for column in zip(*shares, strict=True)]

    for rank in range(2):
        share = EvaluationBatches(documents, BatchLayout(40, rank, 2))
        found = validation_loss(model, share, CPU.device, torch.float32, collect)
    assert 0 < shares[0][1] < alone.tokens
    assert (found.loss, found.tokens) == (pytest.approx(alone.loss, rel=1e-5), alone.tokens)


def test_a_very_large_loss_has_a_finite_perplexity():
    assert ValidationLoss(loss=5000.0, tokens=1).perplexity == pytest.approx(math.exp(700.0))
