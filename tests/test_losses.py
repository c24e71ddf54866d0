"""Validation loss, perplexity and token accuracy."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, random_documents
from tiny_training import CPU

from minimind_sft.data.batching import BatchLayout, EvaluationBatches
from minimind_sft.data.dataset import Group, Mixture
from minimind_sft.evaluation.losses import TokenScore, group_sums, summarized, validation_loss
from minimind_sft.model.decoder import MiniMindForCausalLM

GROUPS = [Group("a.jsonl", "sums"), Group("a.jsonl", "words"), Group("b.jsonl", "sums")]


def grouped_documents():
    """Returns two files of documents; those of the first alternate between two kinds."""
    first, second = random_documents(70), random_documents(50, seed=1)
    first._set_groups(GROUPS[:2], np.arange(70) % 2)
    second._set_groups(GROUPS[2:], np.zeros(50, np.int32))
    return Mixture([first, second])


def one_at_a_time(model, documents) -> dict[Group, list[tuple[float, bool]]]:
    """Returns loss and accuracy of each supervised token by plain cross-entropy on one document at a time."""
    found = defaultdict(list)
    for sample in range(len(documents)):
        input_ids, labels = (torch.from_numpy(ids.astype("int64")) for ids in documents[sample][0])
        logits = model.eval().document_logits(input_ids, (0, len(input_ids)))
        kept = labels != -100
        losses = F.cross_entropy(logits[kept], labels[kept], reduction="none")
        group = documents.groups[documents.group_of(sample)]
        found[group] += zip(losses.tolist(), (logits[kept].argmax(-1) == labels[kept]).tolist(), strict=True)
    return found


def means(tokens: list[tuple[float, bool]]) -> TokenScore:
    losses, right = zip(*tokens, strict=True)
    return TokenScore(pytest.approx(sum(losses) / len(losses), rel=1e-5), sum(right) / len(right), len(losses))


def new_model() -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(TINY)


def test_scores_are_means_over_supervised_tokens_and_over_those_of_each_file_and_kind():
    model, documents = new_model(), grouped_documents()
    expected = one_at_a_time(model, documents)
    found = validation_loss(model, EvaluationBatches(documents, BatchLayout(40)), CPU.device, torch.float32)
    every = [token for tokens in expected.values() for token in tokens]
    assert TokenScore(found.loss, found.token_accuracy, found.tokens) == means(every)
    assert 0 < found.token_accuracy < 1
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    a, b, c = (expected[group] for group in GROUPS)
    assert found.by_source == {"a.jsonl": means(a + b), "b.jsonl": means(c)}
    assert found.by_kind == {"sums": means(a + c), "words": means(b)}


def test_only_sources_and_kinds_with_samples_are_named():
    documents = grouped_documents().sources[0].select([1, 3])
    found = validation_loss(new_model(), EvaluationBatches(documents, BatchLayout(40)), CPU.device,
                            torch.float32)
    assert (list(found.by_source), list(found.by_kind)) == (["a.jsonl"], ["words"])


def test_the_sums_of_all_ranks_are_those_of_one():
    model, documents = new_model(), grouped_documents()
    alone = group_sums(model, EvaluationBatches(documents, BatchLayout(40)), CPU.device, torch.float32)
    shares = [group_sums(model, EvaluationBatches(documents, BatchLayout(400, rank, 7)), CPU.device, torch.float32)
              for rank in range(7)]
    assert all(share.shape == (3, 3) for share in shares), "even that of a rank whose last batch is empty"
    np.testing.assert_allclose(sum(shares), alone, rtol=1e-6)
    assert summarized(alone, documents.groups).tokens == alone[:, 2].sum()


def test_a_very_large_loss_has_a_finite_perplexity():
    assert TokenScore(loss=5000.0, token_accuracy=0.0, tokens=1).perplexity == pytest.approx(math.exp(700.0))
