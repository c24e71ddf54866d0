"""The scores of a run before and after: headline figures, tables by kind and file, and what was forgotten."""

from collections.abc import Callable
from statistics import median
from typing import Any

from minimind_sft.report.formats import duration, number, pair, percent
from minimind_sft.report.page import Badge, Column, Figure, Note, Table, Weight
from minimind_sft.report.run_files import Run
from minimind_sft.report.verdict import Evaluation, Outcome, exact_counts, loss_change, rose, score_of
from minimind_sft.terminal import counted

ACTIVITIES = {"eval_seconds": "evaluating", "save_seconds": "saving", "data_seconds": "waiting for data"}
MIN_SHARE_NAMED = 0.01
NAMED = 5
"""Kinds or files named in a sentence."""


def figures(run: Run, found: Outcome) -> list[Figure]:
    """Returns the numbers that a reader should see first."""
    wanted = (_exact(found), _value(found, "Validation loss", "eval_loss"), _value(found, "Perplexity", "perplexity"),
              _accuracy(found), _training_loss(run, found), _time(run), _speed(run))
    return [figure for figure in wanted if figure]


def score_table(heading: str, name: str, found: Outcome) -> Table | None:
    """Returns the scores by kind or by file, before and after; None if there are less than two of them."""
    if found.kept is None or len(found.kept.get(name) or {}) < 2:
        return None
    after, before = found.kept, found.before or {}
    kinds = list(after[name])
    exact = (after.get("exact_by_kind") or {}) if name == "by_kind" else {}
    columns, cells = [Column(heading)], [kinds]

    def add(title: str, cell: Callable[[Evaluation, str], str]) -> None:
        sides = [("before", before), ("after", after)] if found.before else [("", after)]
        for side, evaluation in sides:
            columns.append(Column(f"{title} {side}".strip(), True))
            cells.append([cell(evaluation, kind) for kind in kinds])

    if exact:
        add("exact", lambda one, kind: _of((one.get("exact_by_kind") or {}).get(kind)))
    add("token accuracy", lambda one, kind: percent(score_of(one, name, kind, "token_accuracy")))
    add("loss", lambda one, kind: _fixed(score_of(one, name, kind, "loss")))
    columns.append(Column("tokens", True))
    cells.append([f"{score_of(after, name, kind, 'tokens') or 0:,}" for kind in kinds])
    rows: list[list[Any]] = [list(row) for row in zip(*cells, strict=True)]
    if found.before:
        columns.append(Column("change"))
        for row, kind in zip(rows, kinds, strict=True):
            row.append(_moved(score_of(before, name, kind, "loss"), score_of(after, name, kind, "loss")))
    return Table(columns, rows)


def forgetting(found: Outcome) -> list[Note]:
    """Returns a note on the files and kinds whose loss rose, or one that there are none."""
    if not (found.before and found.kept):
        return []
    notes, measured = [], []
    for name, what in (("by_source", "files"), ("by_kind", "kinds")):
        parts = [one for one in found.kept.get(name) or {} if one in (found.before.get(name) or {})]
        measured += [f"{len(parts)} {what}"] if len(parts) > 1 else []
        risen = rose(found, name) if len(parts) > 1 else []
        if risen:
            texts = [f"{one} from {' to '.join(pair(*_losses(found, name, one)))}" for one in risen[:NAMED]]
            more = f", and {len(risen) - NAMED} more" if len(risen) > NAMED else ""
            notes.append(Note("warning", f"The loss rose on {len(risen)} of {len(parts)} {what}: "
                                         f"{'; '.join(texts)}{more}."))
    if measured and not notes:
        return [Note("fine", f"Nothing measured here was forgotten: the loss rose on none of the "
                             f"{' and '.join(measured)}.")]
    return notes


def _exact(found: Outcome) -> Figure | None:
    after, before = exact_counts(found.kept or found.before), exact_counts(found.before)
    if not after:
        return None
    note = f"{after[0]:,} of {counted(after[1], 'answer')}"
    weight: Weight | None = None
    if found.kept and before:
        note += f"; before {before[0]:,}"
        weight = _weight(after[0] / after[1] - before[0] / before[1])
    return Figure("Exact match", f"{after[0] / after[1]:.0%}", note, weight)


def _value(found: Outcome, title: str, name: str) -> Figure | None:
    shown = found.kept or found.before
    if not shown or shown.get(name) is None:
        return None
    before = found.before.get(name) if found.before and found.kept else None
    if before is None:
        return Figure(title, number(shown[name]))
    return Figure(title, number(shown[name]), f"before {number(before)}", _weight(before - shown[name]))


def _accuracy(found: Outcome) -> Figure | None:
    shown = found.kept or found.before
    if not shown or shown.get("token_accuracy") is None:
        return None
    before = found.before.get("token_accuracy") if found.before and found.kept else None
    return Figure("Token accuracy", percent(shown["token_accuracy"]), f"before {percent(before)}" if before else "",
                  _weight(shown["token_accuracy"] - before) if before else None)


def _training_loss(run: Run, found: Outcome) -> Figure | None:
    losses = [value for _, value in run.curve("loss")]
    if found.kept or not losses:
        return None
    return Figure("Training loss", number(losses[-1]), f"at first {number(losses[0])}" if len(losses) > 1 else "")


def _time(run: Run) -> Figure | None:
    if not run.end or run.end.seconds is None:
        return None
    last = run.steps[-1] if run.steps else {}
    shares = {words: (last.get(name) or 0) / max(run.end.seconds, 1e-9) for name, words in ACTIVITIES.items()}
    parts = [f"{share:.0%} {words}" for words, share in shares.items() if share >= MIN_SHARE_NAMED]
    note = ", ".join(parts) or counted(len(run.steps), "step")
    return Figure("Time", duration(run.end.seconds), note + (", since it was resumed" if len(run.starts) > 1 else ""))


def _speed(run: Run) -> Figure | None:
    speeds = [value for _, value in run.curve("supervised_tokens_per_second")]
    if not speeds:
        return None
    everything = [value for _, value in run.curve("tokens_per_second")]
    more = f"; {median(everything):,.0f} of all" if everything and everything != speeds else ""
    return Figure("Speed", f"{median(speeds):,.0f}", f"supervised tokens/s{more}")


def _weight(improved: float) -> Weight | None:
    return "fine" if improved > 0 else "wrong" if improved < 0 else None


def _losses(found: Outcome, name: str, part: str) -> tuple[float, float]:
    assert found.before and found.kept
    return score_of(found.before, name, part, "loss"), score_of(found.kept, name, part, "loss")


def _moved(before: float | None, after: float | None) -> Badge | str:
    if before is None or after is None:
        return ""
    moved = loss_change(before, after)
    return Badge("wrong", "worse") if moved > 0 else Badge("fine", "better") if moved else Badge("hint", "same")


def _of(counts: list[int] | None) -> str:
    return f"{counts[0]:,} of {counts[1]:,}" if counts else "-"


def _fixed(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"
