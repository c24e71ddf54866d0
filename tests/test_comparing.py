"""Two models are compared on the same rows, with intervals that a paired bootstrap gives."""

import math
from dataclasses import replace

import numpy as np
import pytest
from compared import item, items

from minimind_sft.evaluation.comparing import (
    Difference,
    Paired,
    compare_choices,
    compare_items,
    in_turn,
    paired_bootstrap,
    paired_corpus_scores,
    quotient,
)

YES, NO = "yes", "no"


def paired(before, after) -> Paired:
    return Paired(*(np.column_stack([side, np.ones(len(side))]) for side in (before, after)), quotient)


def test_the_interval_is_scipy_s():
    """SciPy draws other resamples, so the bounds agree as far as the number of resamples lets them."""
    stats = pytest.importorskip("scipy.stats")
    draws = np.random.default_rng(0)
    before = (draws.random(60) < 0.3).astype(float)
    after = np.maximum(before, draws.random(60) < 0.2)
    found = paired_bootstrap(paired(before, after), seed=1)
    expected = stats.bootstrap((before, after), lambda one, other, axis: other.mean(axis) - one.mean(axis), paired=True,
                               method="percentile", n_resamples=10_000, rng=np.random.default_rng(2))
    assert (found.before, found.after, found.items) == (before.mean(), after.mean(), 60)
    assert [found.low, found.high] == pytest.approx(list(expected.confidence_interval), abs=0.02)


def test_the_interval_of_a_quotient_of_sums_is_scipy_s():
    """A mean loss per token: rows with more tokens weigh more."""
    stats = pytest.importorskip("scipy.stats")
    draws = np.random.default_rng(3)
    tokens = draws.integers(1, 50, 80).astype(float)
    before, after = tokens * draws.normal(2.0, 0.3, 80), tokens * draws.normal(1.8, 0.3, 80)
    found = paired_bootstrap(Paired(np.column_stack([before, tokens]), np.column_stack([after, tokens]), quotient), 1)
    expected = stats.bootstrap((before, after, tokens), lambda one, other, count, axis: (
        other.sum(axis) - one.sum(axis)) / count.sum(axis), paired=True, method="percentile", n_resamples=10_000,
        rng=np.random.default_rng(2))
    assert found.after - found.before == pytest.approx((after.sum() - before.sum()) / tokens.sum())
    assert [found.low, found.high] == pytest.approx(list(expected.confidence_interval), abs=0.01)


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """In 100 experiments with a true difference of 0.1, at least 88 of the 95% intervals hold it (expected: 95)."""
    draws = np.random.default_rng(4)
    held = 0
    for seed in range(100):
        before = draws.random(100) < 0.5
        after = np.where(draws.random(100) < 0.3, draws.random(100) < 0.5 + 0.1 / 0.3, before)
        one = paired_bootstrap(replace(paired(before.astype(float), after.astype(float)), resamples=500), seed)
        held += one.low <= 0.1 <= one.high
    assert held >= 88


def test_pairs_and_not_only_means_count():
    """The same means: where the same questions are answered right, the difference is certain, else it is not."""
    before, same, other = (np.array(side, dtype=float) for side in ([1, 0] * 20, [1, 0] * 20, [0, 1] * 20))
    assert (paired_bootstrap(paired(before, same), 0).low, paired_bootstrap(paired(before, same), 0).high) == (0, 0)
    assert paired_bootstrap(paired(before, other), 0).high > 0.2


def test_the_interval_depends_on_the_seed_alone():
    one, other = np.arange(20.0), np.arange(20.0) ** 1.1
    assert paired_bootstrap(paired(one, other), 5) == paired_bootstrap(paired(one, other), 5)
    assert paired_bootstrap(paired(one, other), 5) != paired_bootstrap(paired(one, other), 6)


def test_a_verdict_needs_an_interval_without_zero():
    better, worse, open_ = (Difference(0, 0, low, high, 20) for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)))
    assert [one.better(lower_is_better=False) for one in (better, worse, open_)] == [True, False, None]
    assert [one.better(lower_is_better=True) for one in (better, worse, open_)] == [False, True, None]
    assert replace(better, items=19).better(lower_is_better=False) is None


def test_scores_are_compared_over_the_items_that_have_them_for_both():
    before = [*items([NO, NO, YES]), item(None), item(NO, call_made=0.2)]
    after = [*items([YES, NO, YES]), item(YES), item(YES, call_made=0.6)]
    scores = compare_items(before, after, True, 0, 80).result["scores"]
    assert {name: (one["against"], one["weight"], one["items"]) for name, one in scores.items()} == {
        "exact_match": (0.25, 0.75, 4), "call_made": (0.2, 0.6, 1)}


def losses(loss: float, tokens: int, right: int, size: int) -> dict:
    return {"loss": loss, "tokens": tokens, "right": right, "bytes": size, "cut": 0}


def test_losses_are_compared_per_token_only_with_the_same_tokenizer():
    before = [item(None, losses=losses(6.0, 2, 1, 8)), item(None, losses=losses(4.0, 3, 1, 8)), item(None)]
    after = [item(None, losses=losses(2.0, 2, 2, 8)), item(None, losses=losses(3.0, 3, 2, 8)), item(None)]
    scores = compare_items(before, after, True, 0, 80).result["scores"]
    assert {name: (one["against"], one["weight"], one["items"]) for name, one in scores.items()} == {
        "loss": (2.0, 1.0, 2), "token_accuracy": (0.4, 0.8, 2),
        "bits_per_byte": pytest.approx((10 / math.log(2) / 16, 5 / math.log(2) / 16, 2))}
    assert list(compare_items(before, after, False, 0, 80).result["scores"]) == ["bits_per_byte"]


def test_bleu_and_chrf_are_sacrebleu_s_of_any_resample():
    metrics = pytest.importorskip("sacrebleu.metrics")
    texts = ["the cat sat on the mat", "a dog ran over the green hill", "all is well that ends well today"]
    said = ["the cat sat on a mat", "a dog ran up the green hill", "all was well that ends well"]
    before = [item(one, expected=one, token_f1=1.0) for one in texts]
    after = [item(one, expected=text, token_f1=0.5) for one, text in zip(said, texts, strict=True)]
    found = dict(paired_corpus_scores(before, after))
    drawn = [0, 2, 2]
    for name, metric in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        paired = found[name]
        sums = paired.after_NK[drawn].sum(0, keepdims=True)
        expected = metric.corpus_score([said[i] for i in drawn], [[texts[i] for i in drawn]]).score
        assert paired.score_of(sums)[0] == pytest.approx(expected)
        assert paired.score_of(paired.before_NK.sum(0, keepdims=True))[0] == pytest.approx(100.0)


def test_examples_take_turns():
    before = items([NO, NO, YES, NO, YES])
    after = items([YES, YES, NO, "maybe", "never"])
    pairs = list(zip(before, after, strict=True))
    places = [after.question.place for _, after in in_turn(pairs)]
    assert places == ["q.jsonl:1", "q.jsonl:3", "q.jsonl:4", "q.jsonl:2", "q.jsonl:5"]


def test_the_report_has_tables_changed_answers_and_examples():
    """Answers are cut to the terminal's width, and control characters in them are shown as codes."""
    before = [item(NO, kind="a"), item(YES, kind="b", number=1), item(YES, kind="b", number=2)]
    after = [item(YES, kind="a"), item("no\x1b[2J" + "!" * 80, kind="b", number=1), item(YES, kind="b", number=2)]
    outcome = compare_items(before, after, True, 0, 40)
    assert outcome.result["answers"] == {"asked": 3, "changed": 2}
    assert outcome.result["bootstrap"] == {
        "resamples": 10_000, "resamples_of_corpus_scores": 1_000, "confidence": 0.95, "seed": 0}
    assert outcome.result["by_kind"]["b"]["exact_match"] | {"low": 0, "high": 0} == {
        "against": 1.0, "weight": 0.5, "difference": -0.5, "low": 0, "high": 0, "items": 2}
    assert outcome.result["examples"][0] == {
        "kind": "a", "place": "q.jsonl:1", "question": "Is it so?", "expected": YES, "against": NO, "weight": YES,
        "against_exact": False, "weight_exact": True}
    at = outcome.lines.index("changed answers: 2 of 3 (66.7%)")
    assert [line.split() for line in outcome.lines[:at]] == [
        ["items", "--against", "--weight", "difference", "95%", "interval"],
        ["exact", "match", "3", "66.7%", "66.7%", "+0.0%", "-100.0%", "to", "+100.0%"],
        [],
        ["exact", "match", "items", "--against", "--weight", "difference", "95%", "interval"],
        ["a", "1", "0.0%", "100.0%", "+100.0%", "+100.0%", "to", "+100.0%"],
        ["b", "2", "100.0%", "50.0%", "-50.0%", "-100.0%", "to", "+0.0%"],
        []]
    assert outcome.lines[at + 1:] == [
        "  q.jsonl:1",
        "    question    Is it so?",
        "    expected    yes",
        "    --against - no",
        "    --weight  + yes",
        "  q.jsonl:2",
        "    question    Is it so?",
        "    expected    yes",
        "    --against + yes",
        "    --weight  - no\\u001b[2J!!!!!!!!!!...",
    ]


def test_choices_are_compared_question_by_question():
    def chosen(letters: str) -> dict:
        return {str(number): {"answer": letter, "exact": letter == "A", "exact_norm": True}
                for number, letter in enumerate(letters)}

    outcome = compare_choices(chosen("A" * 10 + "B" * 20), chosen("A" * 25 + "C" * 5), 0)
    scores = outcome.result["scores"]
    assert (scores["acc"]["against"], scores["acc"]["weight"]) == (pytest.approx(1 / 3), pytest.approx(5 / 6))
    assert scores["acc_norm"]["low"] == scores["acc_norm"]["high"] == 0
    assert [line.split()[0] for line in outcome.lines] == ["choices", "acc", "acc_norm", "changed"]
    assert outcome.lines[1].endswith("better") and outcome.lines[3] == "changed choices: 20 of 30 (66.7%)"
    assert compare_choices({}, chosen("A"), 0).lines == []


def test_items_without_answers_or_losses_compare_nothing():
    outcome = compare_items([item(None)], [item(None)], True, 0, 80)
    assert outcome.result["scores"] == {} and outcome.result["answers"] == {"asked": 0, "changed": 0}


def test_items_of_other_rows_are_not_compared():
    with pytest.raises(ValueError, match="zip"):
        compare_items(items([YES, NO]), items([YES]), True, 0, 80)


def test_a_loss_that_falls_is_better():
    before = [item(None, losses=losses(6.0, 2, 1, 8))] * 20
    after = [replace(one, losses=losses(2.0, 2, 1, 8)) for one in before]
    lines = compare_items(before, after, True, 0, 80).lines
    assert [line.split()[-1] for line in lines[1:]] == ["better", "+0.0%", "better"]
