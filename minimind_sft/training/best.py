"""Compares evaluations: which weights are the best so far, and when a run should stop because none get better."""

import math
from typing import Protocol

from minimind_sft.settings.evaluation import EvaluationSettings
from minimind_sft.training.resume_state import TrainState


class Scores(Protocol):
    """The scores that evaluations are compared by."""

    @property
    def loss(self) -> float:
        """The validation loss."""

    @property
    def exact_match(self) -> float | None:
        """The share of exact answers."""


def note_scores(state: TrainState, scores: Scores, settings: EvaluationSettings) -> bool:
    """Notes the scores of an evaluation in the state; returns whether its weights are the best to keep so far.

    The weights that a run starts with are never kept, but their scores count: an evaluation that does not improve on
    them is one without gain.
    """
    state.eval_loss = scores.loss if math.isfinite(scores.loss) else None
    value = state.eval_loss if settings.best_by == "eval_loss" else _negated(scores.exact_match)
    if value is not None and (state.best_value is None or value < state.best_value):
        state.best_value, state.evaluations_without_gain = value, 0
    else:
        state.evaluations_without_gain += 1
    if state.step == 0 or state.eval_loss is None or not _is_best(state, scores, settings.best_by):
        return False
    state.best_eval_loss, state.best_exact_match = state.eval_loss, scores.exact_match
    return True


def has_stalled(state: TrainState, settings: EvaluationSettings) -> bool:
    """Whether so many evaluations in a row brought no gain that the run should stop."""
    return 0 < settings.early_stop_patience <= state.evaluations_without_gain


def stall_note(state: TrainState, settings: EvaluationSettings) -> str:
    """Says why a run stopped early."""
    better = "lower validation loss" if settings.best_by == "eval_loss" else "larger share of exact answers"
    return (f"stopped early after step {state.step}: {state.evaluations_without_gain} evaluation"
            f"{'s' * (state.evaluations_without_gain != 1)} in a row without a "
            f"{better} (--early_stop_patience {settings.early_stop_patience})")


def _is_best(state: TrainState, scores: Scores, best_by: str) -> bool:
    """Whether scores with a finite loss beat those of the weights on disk; of equal exact match, the lower loss does.
    """
    if state.best_eval_loss is None:
        return True
    if best_by == "exact_match" and scores.exact_match != state.best_exact_match:
        return (scores.exact_match or 0.0) > (state.best_exact_match or 0.0)
    return scores.loss < state.best_eval_loss


def _negated(share: float | None) -> float | None:
    return None if share is None else -share
