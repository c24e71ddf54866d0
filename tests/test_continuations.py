"""Log-likelihoods of continuations, next to plain sums over the whole sequence's logits."""

import pytest
import torch
from tiny_generation import CONFIGS, DYNAMIC, VOCAB, build

from minimind_sft.evaluation import likelihood
from minimind_sft.evaluation.continuations import Continuation, Likelihood, likelihoods
from minimind_sft.inference.lowering import ready_to_decode

CONTINUATIONS = [
    Continuation([7, 3, 9], [12]), Continuation([7, 3, 9], [4]),  # differ in the last token only
    Continuation([7, 3], [9, 12]),  # reads the same tokens, scores one more
    Continuation([1], [5, 5, 20, 31, 8, 2, 40]), Continuation([33, 4, 9, 8, 7], [6, 2]), Continuation([2], [3]),
]


def score(model, continuations=CONTINUATIONS, **options) -> list[Likelihood]:
    found = dict(likelihoods(model, continuations, **options))
    assert sorted(found) == list(range(len(continuations)))
    return [found[index] for index in sorted(found)]


@torch.no_grad()
def expected(model, continuation: Continuation) -> tuple[float, bool]:
    """Sums log-probabilities one token at a time, each from the whole sequence before it."""
    total, greedy = 0.0, True
    for number, token in enumerate(continuation.ids):
        before = [*continuation.context, *continuation.ids[:number]]
        logits = model.document_logits(torch.tensor(before), (0, len(before)))[-1]
        total += (logits[token] - logits.logsumexp(-1)).item()
        greedy = greedy and int(logits.argmax()) == token
    return total, greedy


@pytest.mark.parametrize("config", [*CONFIGS.values(), DYNAMIC], ids=[*CONFIGS, "dynamic"])
def test_they_are_sums_over_the_tokens(config):
    model = build(config)
    for one, continuation in zip(score(model), CONTINUATIONS, strict=True):
        if config is DYNAMIC and len(continuation.ids) > 1:
            continue  # its positions depend on the length of the whole sequence
        total, greedy = expected(model, continuation)
        assert one.log_likelihood == pytest.approx(total, abs=1e-9) and one.is_greedy == greedy


def test_the_most_likely_tokens_are_greedy():
    model, ids = build(), [7, 3]
    for _ in range(5):
        ids.append(int(model.document_logits(torch.tensor(ids), (0, len(ids)))[-1].argmax()))
    (best, other) = score(model, [Continuation(ids[:2], ids[2:]), Continuation(ids[:2], [*ids[2:-1], ids[-1] - 1])])
    assert best.is_greedy and not other.is_greedy and best.log_likelihood > other.log_likelihood


def test_neither_batches_nor_chunks_matter(monkeypatch):
    model = build()
    whole = score(model)
    monkeypatch.setattr(likelihood, "CHUNK_LOGITS", 2 * VOCAB)
    for batch_tokens in (1, 8, 12):
        for one, other in zip(score(model, batch_tokens=batch_tokens), whole, strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-12)
            assert one.is_greedy == other.is_greedy


def test_the_fast_form_of_a_model_scores_the_same():
    model = build().float()
    for one, plain in zip(score(ready_to_decode(model)), score(model), strict=True):
        assert one.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-4)


def test_sequences_that_differ_in_the_last_token_are_read_once(monkeypatch):
    model, read = build(), []
    forward = model.hidden_states
    monkeypatch.setattr(model, "hidden_states", lambda ids, *more: read.append(len(ids)) or forward(ids, *more))
    score(model, [Continuation([7, 3, 9, 1], [letter]) for letter in (5, 6, 7, 8)])
    assert read == [4]
