"""Scores items one by one, groups of them together, and lays the scores out in tables."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from minimind_sft.evaluation.items import Item
from minimind_sft.evaluation.losses import perplexity_of
from minimind_sft.evaluation.text_scores import bleu, chrf, missing_packages, normalised, rouge_l, token_f1
from minimind_sft.evaluation.tool_calls import call_scores, expected_calls, json_scores
from minimind_sft.terminal import aligned

Write = Callable[[Any], str]
Column = tuple[str, Write]

SHARE: Write = "{:.1%}".format
COUNT: Write = "{:,}".format
POINTS: Write = "{:.1f}".format

TABLES: tuple[dict[str, Column], ...] = (
    {"rows": ("rows", COUNT), "tokens": ("tokens", COUNT), "loss": ("loss", "{:.4f}".format),
     "perplexity": ("perplexity", "{:,.3f}".format), "bits_per_byte": ("bits/byte", "{:.4f}".format),
     "token_accuracy": ("token accuracy", SHARE)},
    {"questions": ("questions", COUNT), "exact_match": ("exact match", SHARE),
     "normalised_match": ("normalised", SHARE), "token_f1": ("F1", SHARE), "bleu": ("BLEU", POINTS),
     "chrf": ("chrF", POINTS), "rouge_l": ("ROUGE-L", SHARE)},
    {"call_questions": ("calls expected", COUNT), "call_made": ("called", SHARE), "call_valid": ("valid", SHARE),
     "call_name": ("right name", SHARE), "call_exact": ("and arguments", SHARE),
     "needless_call": ("needless calls", SHARE)},
    {"json_questions": ("JSON expected", COUNT), "json_valid": ("valid", SHARE), "json_equal": ("equal", SHARE)},
)
"""The columns of each table: the name of a score, its heading, and how to write it. The first column of a table counts
what the others are shares of, except for needless calls, which are shares of the questions that expect none."""


def score_answers(items: Iterable[Item], missing: Collection[str] = ()) -> None:
    """Fills in the scores of all answers; those of `missing` are left out."""
    for item in items:
        if item.answer is not None:
            item.scores = answer_scores(item, missing)


def answer_scores(item: Item, missing: Collection[str] = ()) -> dict[str, float]:
    """Scores one answer, each score from 0 to 1.

    All answers have `exact_match`. An answer that should be a call has the scores of calls. Any other has
    `needless_call` if the model was offered tools, and the scores of texts or, if it should be JSON, those of JSON.
    """
    assert item.answer is not None and item.question is not None
    answer, expected = item.answer, item.question.expected
    scores = {"exact_match": float(answer == expected)}
    calls = expected_calls(item.expected_message)
    if calls or item.question.tools:
        scores |= call_scores(answer, calls)
    if calls:
        return scores
    if of_json := json_scores(answer, expected):
        return scores | of_json
    scores |= {"normalised_match": float(normalised(answer) == normalised(expected)),
               "token_f1": token_f1(answer, expected)}
    return scores if "rouge_l" in missing else scores | {"rouge_l": rouge_l(answer, expected)}


def texts_of(items: Iterable[Item]) -> tuple[list[str], list[str]]:
    """Returns the answers that are scored as texts, and the expected ones."""
    pairs = [(item.answer, item.question.expected) for item in items
             if "token_f1" in item.scores and item.answer is not None and item.question is not None]
    return [answer for answer, _ in pairs], [expected for _, expected in pairs]


def missing_scores(items: Iterable[Item]) -> dict[str, str]:
    """Returns the scores that a missing package prevents, and the package."""
    return missing_packages([item.question.expected for item in items if item.question is not None])


def summary(items: Sequence[Item], missing: Collection[str] = ()) -> dict[str, Any]:
    """Returns the scores of a group of items.

    `loss` is the mean over all supervised tokens, in nats. `bits_per_byte` divides their bits by the bytes of the
    text, so that it compares models with different tokenizers. Scores of answers are means; `bleu` and `chrf` are
    those of all texts together, from 0 to 100, with `signature` saying how sacrebleu computed them.
    """
    found: dict[str, Any] = {"rows": len(items), **_loss_summary([item.losses for item in items if item.losses])}
    answered = [item for item in items if item.answer is not None]
    if not answered:
        return found
    found["questions"] = len(answered)
    for name in dict.fromkeys(name for item in answered for name in item.scores):
        values = [item.scores[name] for item in answered if name in item.scores]
        found[name] = sum(values) / len(values)
    for prefix, name in (("text", "token_f1"), ("call", "call_made"), ("json", "json_valid")):
        if count := sum(name in item.scores for item in answered):
            found[f"{prefix}_questions"] = count
    answers, expected = texts_of(answered)
    if answers and "bleu" not in missing:
        signatures = {}
        found["bleu"], signatures["bleu"] = bleu(answers, expected)
        found["chrf"], signatures["chrf"] = chrf(answers, expected)
        found["signatures"] = signatures
    return found


def _loss_summary(sums: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tokens, loss, size, right, cut = (sum(each[name] for each in sums)
                                      for name in ("tokens", "loss", "bytes", "right", "cut"))
    if not tokens:
        return {}
    return {"tokens": tokens, "loss": loss / tokens, "perplexity": perplexity_of(loss / tokens),
            "bits_per_byte": loss / math.log(2) / size if size else None, "token_accuracy": right / tokens,
            "tokens_cut": cut}


def score_tables(groups: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Lays out the scores of groups in tables, with an empty line between them.

    Columns without values are left out, and so are groups without anything to count in a table, and tables that would
    only count.
    """
    lines: list[str] = []
    for columns in TABLES:
        counted, *others = columns
        if any(name in scores for _, scores in groups for name in others):
            lines += [""] * bool(lines) + _table(columns, [group for group in groups if counted in group[1]])
    return lines


def _table(columns: dict[str, Column], groups: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    used = {name: column for name, column in columns.items() if any(name in scores for _, scores in groups)}
    rows = [["", *(heading for heading, _ in used.values())]]
    for group, scores in groups:
        rows.append([group, *(write(scores[name]) if scores.get(name) is not None else "-"
                                        for name, (_, write) in used.items())])
    return aligned(rows, numbers=range(1, len(rows[0])))
