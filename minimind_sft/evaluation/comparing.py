"""Compares two models on the same rows: differences with their intervals, and the answers that changed."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from minimind_sft.evaluation.answering import shortened
from minimind_sft.evaluation.items import Item, grouped, kind_of
from minimind_sft.evaluation.results import Outcome
from minimind_sft.evaluation.scores import texts_of
from minimind_sft.evaluation.text_scores import (
    bleu,
    bleu_metric,
    chrf_metric,
    corpus_statistics,
    score_of_statistics,
)
from minimind_sft.terminal import aligned, in_one_line

CONFIDENCE = 0.95
RESAMPLES = 10_000
CORPUS_RESAMPLES = 1_000
"""Of BLEU and chrF, which take longer to compute; sacrebleu draws as many."""
RESAMPLES_AT_ONCE = 100
EXAMPLES_SHOWN = 6
EXAMPLES_KEPT = 100
MIN_ITEMS = 20
"""With fewer, no verdict: the bootstrap's intervals are too short for a handful of items."""
HEADING = ("items", "--against", "--weight", "difference", f"{CONFIDENCE:.0%} interval", "")
LOWER_IS_BETTER = ("loss", "bits_per_byte", "needless_call")
FORMS = {"loss": ".4f", "bits_per_byte": ".4f", "bleu": ".1f", "chrf": ".1f"}
LOSSES = {"loss": ("loss", "tokens", 1.0), "token_accuracy": ("right", "tokens", 1.0),
          "bits_per_byte": ("loss", "bytes", 1 / math.log(2))}
"""Scores that divide one sum over the supervised tokens by another, times a factor."""


@dataclass(frozen=True)
class Paired:
    """A score of two models on the same N items, as a function of K sums over the items.

    before_NK, after_NK: what each item adds to the sums.
    score_of: turns R rows of sums (R, K) into R scores.
    resamples: how many the bootstrap draws.
    """

    before_NK: np.ndarray
    after_NK: np.ndarray
    score_of: Callable[[np.ndarray], np.ndarray]
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Difference:
    """A score before and after, and the interval of the difference `after - before` by the paired bootstrap."""

    before: float
    after: float
    low: float
    high: float
    items: int

    def better(self, lower_is_better: bool) -> bool | None:
        """Whether the model became better; None if the interval includes no difference, or there are too few items."""
        if self.items < MIN_ITEMS or self.low <= 0 <= self.high:
            return None
        return (self.high < 0) == lower_is_better

    def as_json(self) -> dict[str, Any]:
        return {"against": self.before, "weight": self.after, "difference": self.after - self.before,
                "low": self.low, "high": self.high, "items": self.items}


def quotient(sums_RK: np.ndarray) -> np.ndarray:
    """Returns the first of two sums over the second."""
    return sums_RK[:, 0] / sums_RK[:, 1]


def paired_bootstrap(paired: Paired, seed: int) -> Difference:
    """Estimates how much a difference depends on which items were drawn.

    Draws as many items as there are with replacement, the same for both models, and takes the difference of their
    scores; the interval lies between percentiles of many such differences (Koehn 2004, Statistical Significance Tests
    for Machine Translation Evaluation; Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
    """
    before_NK, after_NK, count = paired.before_NK, paired.after_NK, len(paired.before_NK)
    draws = np.random.default_rng(seed)
    differences = []
    for _ in range(paired.resamples // RESAMPLES_AT_ONCE):
        times_drawn_RN = draws.multinomial(count, np.full(count, 1 / count), size=RESAMPLES_AT_ONCE)
        differences.append(paired.score_of(times_drawn_RN @ after_NK) - paired.score_of(times_drawn_RN @ before_NK))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    before, after = (float(paired.score_of(of_items.sum(0, keepdims=True))[0]) for of_items in (before_NK, after_NK))
    return Difference(before, after, float(low), float(high), count)


def compare_items(before: Sequence[Item], after: Sequence[Item], same_tokens: bool, seed: int, width: int) -> Outcome:
    """Compares two models by their items, which belong to the same rows.

    Args:
        same_tokens: both models have the same tokenizer and chat template, so that their losses are of the same tokens.
        width: columns of the terminal.
    """
    of_all = dict(chain(paired_scores(before, after, same_tokens), paired_corpus_scores(before, after)))
    scores = differences(of_all, seed)
    befores = grouped(before, kind_of)
    kinds = {kind: differences(dict(paired_scores(befores[kind], group, same_tokens)), seed)
             for kind, group in grouped(after, kind_of).items()}
    asked = [pair for pair in zip(before, after, strict=True) if None not in (pair[0].answer, pair[1].answer)]
    changed = in_turn([pair for pair in asked if pair[0].answer != pair[1].answer])
    result = {"scores": {name: one.as_json() for name, one in scores.items()},
              "by_kind": {kind: {name: one.as_json() for name, one in of_kind.items()}
                          for kind, of_kind in kinds.items()},
              "bootstrap": _how(seed),
              "answers": {"asked": len(asked), "changed": len(changed)},
              "examples": [_example(*pair) for pair in changed[:EXAMPLES_KEPT]]}
    return Outcome(result, list(_lines(scores, kinds, len(asked), changed, width)))


def compare_choices(before: Mapping[str, dict], after: Mapping[str, dict], seed: int) -> Outcome:
    """Compares what two models chose for the same questions, which are the finished items of `choices`."""
    pairs = [(before[name], chosen) for name, chosen in after.items() if name in before]
    if not pairs:
        return Outcome({"scores": {}}, [])
    scores = differences({score: _quotients([[float(one[field]), 1.0] for one in pair] for pair in pairs)
                          for score, field in (("acc", "exact"), ("acc_norm", "exact_norm"))}, seed)
    changed = sum(one["answer"] != other["answer"] for one, other in pairs)
    result = {"scores": {name: one.as_json() for name, one in scores.items()}, "bootstrap": _how(seed),
              "answers": {"asked": len(pairs), "changed": changed}}
    rows = [[name, *_row(name, one)] for name, one in scores.items()]
    return Outcome(result, [*aligned([["choices", *HEADING], *rows], numbers=range(1, 6)),
                            f"changed choices: {changed:,} of {len(pairs):,} ({changed / len(pairs):.1%})"])


def _how(seed: int) -> dict[str, Any]:
    return {"resamples": RESAMPLES, "resamples_of_corpus_scores": CORPUS_RESAMPLES, "confidence": CONFIDENCE,
            "seed": seed}


def differences(paired: Mapping[str, Paired], seed: int) -> dict[str, Difference]:
    """Returns the difference of each score."""
    return {name: paired_bootstrap(one, seed) for name, one in paired.items()}


def paired_scores(before: Sequence[Item], after: Sequence[Item],
                  same_tokens: bool) -> Iterator[tuple[str, Paired]]:
    """Yields the scores that both models have, each over the items that have it for both."""
    pairs = list(zip(before, after, strict=True))
    measured = [(one.losses, other.losses) for one, other in pairs
                if one.losses and other.losses and one.losses["tokens"] and other.losses["tokens"]]
    for name, (upper, lower, factor) in LOSSES.items():
        if (same_tokens or lower == "bytes") and any(losses[lower] for losses, _ in measured):
            yield name, _quotients([[factor * losses[upper], losses[lower]] for losses in pair] for pair in measured)
    for name in dict.fromkeys(chain.from_iterable(other.scores for _, other in pairs)):
        both = [(one.scores[name], other.scores[name]) for one, other in pairs
                if name in one.scores and name in other.scores]
        if both:
            yield name, _quotients([[score, 1.0] for score in pair] for pair in both)


def _quotients(pairs: Iterable[list[list[float]]]) -> Paired:
    """Pairs scores that are quotients, from upper and lower term of both models for each item."""
    terms_N2K = np.array(list(pairs))
    return Paired(terms_N2K[:, 0], terms_N2K[:, 1], quotient)


def paired_corpus_scores(before: Sequence[Item], after: Sequence[Item]) -> Iterator[tuple[str, Paired]]:
    """Yields BLEU and chrF, which are scores of all texts together."""
    pairs = [(one, other) for one, other in zip(before, after, strict=True)
             if "token_f1" in one.scores and "token_f1" in other.scores]
    if not pairs or find_spec("sacrebleu") is None:
        return
    (before_said, expected), (after_said, _) = (texts_of(side) for side in zip(*pairs, strict=True))
    metrics = {"chrf": chrf_metric()}
    if bleu(after_said, expected)[0] is not None:
        metrics = {"bleu": bleu_metric(expected), **metrics}
    for name, metric in metrics.items():
        before_NK, after_NK = (np.array(corpus_statistics(metric, said, expected))
                               for said in (before_said, after_said))
        yield name, Paired(before_NK, after_NK, partial(_corpus_scores, metric), CORPUS_RESAMPLES)


def _corpus_scores(metric: Any, sums_RK: np.ndarray) -> np.ndarray:
    return np.array([score_of_statistics(metric, sums) for sums in sums_RK.tolist()])


def in_turn(pairs: Sequence[tuple[Item, Item]]) -> list[tuple[Item, Item]]:
    """Orders pairs of answers as examples: in turn one that became right, one that became wrong, and another."""
    def gain(pair: tuple[Item, Item]) -> float:
        return pair[1].scores.get("exact_match", 0) - pair[0].scores.get("exact_match", 0)

    gained, lost, others = ([pair for pair in pairs if gain(pair) == sign] for sign in (1, -1, 0))
    return [pair for turn in zip_longest(gained, lost, others) for pair in turn if pair is not None]


def _example(before: Item, after: Item) -> dict[str, Any]:
    assert after.question is not None
    return {"kind": kind_of(after), "place": after.question.place, "question": after.question.messages[-1]["content"],
            "expected": after.question.expected, "against": before.answer, "weight": after.answer,
            "against_exact": before.answer == after.question.expected,
            "weight_exact": after.answer == after.question.expected}


def _lines(scores: Mapping[str, Difference], kinds: Mapping[str, Mapping[str, Difference]], asked: int,
           changed: Sequence[tuple[Item, Item]], width: int) -> Iterator[str]:
    """Yields the tables and examples for a terminal."""
    rows = [[name.replace("_", " "), *_row(name, one)] for name, one in scores.items()]
    yield from aligned([["", *HEADING], *rows], numbers=range(1, 6))
    of_kinds = [[kind, *_row("exact_match", of_kind["exact_match"])] for kind, of_kind in kinds.items()
                if "exact_match" in of_kind]
    if len(of_kinds) > 1:
        yield ""
        yield from aligned([["exact match", *HEADING], *of_kinds], numbers=range(1, 6))
    if asked:
        yield ""
        yield f"changed answers: {len(changed)} of {asked} ({len(changed) / asked:.1%})"
    for one, other in changed[:EXAMPLES_SHOWN]:
        example = _example(one, other)
        yield f"  {in_one_line(example['place'])}"
        marks = {"against": _mark(example["against_exact"]), "weight": _mark(example["weight_exact"])}
        for name in ("question", "expected", "against", "weight"):
            flag = f"--{name}" if name in marks else name
            yield shortened(f"    {flag:<9} {marks.get(name, ' ')} {example[name]}", width)


def _mark(is_exact: bool) -> str:
    return "+" if is_exact else "-"


def _row(name: str, one: Difference) -> list[str]:
    """Writes a difference as cells of a table."""
    form = FORMS.get(name, ".1%")
    better = one.better(name in LOWER_IS_BETTER)
    return [f"{one.items:,}", f"{one.before:{form}}", f"{one.after:{form}}", f"{one.after - one.before:+{form}}",
            f"{one.low:+{form}} to {one.high:+{form}}", {True: "better", False: "worse", None: ""}[better]]
