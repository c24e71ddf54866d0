"""Judges a run: whether the weights that it left are better than those it started from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from minimind_sft.report.formats import number, pair
from minimind_sft.report.page import Weight
from minimind_sft.report.run_files import Run
from minimind_sft.terminal import counted

Evaluation = Mapping[str, Any]

MIN_CHANGE = 0.005
"""A loss that changes by less counts as unchanged: half a percent of the perplexity."""
AVERAGED = 10
"""Training losses averaged at the beginning and at the end, at most."""

HOW = {"stopped early": "Stopped early", "interrupted": "Interrupted", "failed": "Failed"}


class Outcome(NamedTuple):
    """The evaluations that a reader compares; None where there was none.

    before: of the weights that the run started from.
    kept: of the weights that it left.
    last: of the weights after its last evaluated step.
    """

    before: Evaluation | None
    kept: Evaluation | None
    last: Evaluation | None


class Change(NamedTuple):
    """A score before and after; `better` is 1 if it improved, -1 if it got worse, 0 if it stayed."""

    words: str
    better: int


class Verdict(NamedTuple):
    weight: Weight
    sentence: str


def outcome(run: Run) -> Outcome:
    """Finds the evaluations before and after the run."""
    before = next((one for one in run.evaluations if one["step"] == 0), None)
    later = [one for one in run.evaluations if one["step"] > 0]
    if not later:
        return Outcome(before, None, None)
    return Outcome(before, best(later, run) if run.settings.get("keep_best", 1) else later[-1], later[-1])


def best(evaluations: list[dict[str, Any]], run: Run) -> Evaluation:
    """Returns the evaluation that `--best_by` finds best; of equal exact match, the lower loss decides."""
    by_answers = run.settings.get("best_by") == "exact_match"

    def rank(one: Evaluation) -> tuple[bool, float, float]:
        loss = one["eval_loss"]
        return loss is None, -(one.get("exact_match") or 0.0) if by_answers else 0.0, 0.0 if loss is None else loss

    return min(evaluations, key=rank)


def judge(run: Run) -> Verdict:
    """Returns the verdict on a run, in one sentence."""
    found = outcome(run)
    start = _ending(run)
    if found.kept is None:
        weight, words = _without_evaluation(run)
    elif found.before is None:
        weight, words = "hint", _only_after(found.kept)
    else:
        weight, words = _compared(found.before, found.kept)
        words += _since(run, found)
        if weight == "fine" and (forgotten := rose(found, "by_source")):
            weight, words = "warning", f"{words}; but the loss rose on {', '.join(forgotten)}"
    if run.end and run.end.how == "failed":
        weight = "wrong"
    elif weight == "fine" and any(warning.name == "leaked_rows" for warning in run.warnings):
        weight = "warning"  # the evaluation data say little about new questions
    words = start + words if start else words[0].upper() + words[1:]
    warnings = f"; see the {'warning' if len(run.warnings) == 1 else 'warnings'} below" if run.warnings else ""
    return Verdict(weight, f"{words}{warnings}.")


def changes(before: Evaluation, after: Evaluation) -> list[Change]:
    """Returns the change of exact match, if the model was asked, and of the loss."""
    found = []
    was, now = exact_counts(before), exact_counts(after)
    if was and now and was[1] == now[1]:
        found.append(Change(f"exact match {_moved(now[0] - was[0], str(was[0]), str(now[0]))} of "
                            f"{counted(now[1], 'answer')}", _sign(now[0] - was[0])))
    if before["eval_loss"] is not None and after["eval_loss"] is not None:
        moved = loss_change(before["eval_loss"], after["eval_loss"])
        texts = pair(before["eval_loss"], after["eval_loss"])
        found.append(Change(f"the validation loss {_moved(moved, *texts)}", -moved))
    return found


def loss_change(before: float, after: float) -> int:
    """Returns 1 if a loss rose, -1 if it fell, 0 if it hardly changed."""
    return _sign(after - before) if abs(after - before) > MIN_CHANGE else 0


def rose(found: Outcome, name: str) -> list[str]:
    """Lists the parts of the evaluation data whose loss rose; `name` is "by_source" or "by_kind"."""
    if not (found.before and found.kept):
        return []
    losses = {part: (score_of(found.before, name, part, "loss"), score_of(found.kept, name, part, "loss"))
              for part in found.kept.get(name) or {}}
    return [part for part, (before, after) in losses.items()
            if before is not None and after is not None and loss_change(before, after) > 0]


def score_of(evaluation: Evaluation, name: str, part: str, score: str) -> Any:
    """Returns a score of one file or kind, or None if there is none."""
    return ((evaluation.get(name) or {}).get(part) or {}).get(score)


def exact_counts(evaluation: Evaluation | None) -> tuple[int, int] | None:
    """Returns (right, asked) over all kinds; None if nothing was asked."""
    counts = list(((evaluation or {}).get("exact_by_kind") or {}).values())
    asked = sum(one[1] for one in counts)
    return (sum(one[0] for one in counts), asked) if asked else None


def _ending(run: Run) -> str:
    """Says how far the run came, unless it came to its end."""
    if (run.end and run.end.how == "finished") or not run.total_steps or run.last_step >= run.total_steps:
        return ""
    how = HOW[run.end.how] if run.end else "Not finished"
    at = f"at step {run.last_step:,} of {run.total_steps:,}"
    return f"{how} {at}; "


def _compared(before: Evaluation, after: Evaluation) -> tuple[Weight, str]:
    found = changes(before, after)
    signs = {change.better for change in found}
    weight: Weight
    if 1 in signs and -1 in signs:
        weight, word = "warning", "mixed"
    elif 1 in signs:
        weight, word = "fine", "better"
    elif -1 in signs:
        weight, word = "wrong", "worse"
    elif found:
        weight, word = "warning", "no better"
    else:
        return "wrong", "the validation loss is not finite"
    return weight, f"{word}: {', and '.join(change.words for change in found)}"


def _since(run: Run, found: Outcome) -> str:
    """Says that later weights were worse, or that better ones were passed by."""
    kept, last = found.kept, found.last
    assert kept and last
    if kept is not last:
        rose = kept["eval_loss"] and last["eval_loss"] and loss_change(kept["eval_loss"], last["eval_loss"]) > 0
        after = f", and rose to {pair(kept['eval_loss'], last['eval_loss'])[1]} afterwards" if rose else ""
        return f" at step {kept['step']:,}, whose weights were kept{after}"
    top = best([one for one in run.evaluations if one["step"] > 0], run)
    if top["eval_loss"] and last["eval_loss"] and loss_change(top["eval_loss"], last["eval_loss"]) > 0:
        return f"; at step {top['step']:,} it was lower, {pair(top['eval_loss'], last['eval_loss'])[0]}"
    return ""


def _only_after(after: Evaluation) -> str:
    asked = exact_counts(after)
    exact = f" and {asked[0]:,} of {counted(asked[1], 'answer')} exact" if asked else ""
    loss = "not finite" if after["eval_loss"] is None else number(after["eval_loss"])
    return f"validation loss {loss}{exact}; nothing was measured before the first step to compare with"


def _without_evaluation(run: Run) -> tuple[Weight, str]:
    losses = [value for _, value in run.curve("loss")]
    if not losses:
        return "hint", "no step was made"
    several = min(AVERAGED, len(losses) // 2 or 1)
    first, last = (sum(some) / several for some in (losses[:several], losses[-several:]))
    moved = f"the training loss {_moved(_sign(last - first), *pair(first, last))}" if len(losses) > 1 else (
        f"the training loss was {number(first)}")
    missing = "there was no evaluation after the first step" if run.evaluations else "there were no evaluation data"
    return "hint", f"not known to be better: {missing}; {moved}"


def _moved(change: float, before: str, after: str) -> str:
    return f"{'rose' if change > 0 else 'fell'} from {before} to {after}" if change else f"stayed at {after}"


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
