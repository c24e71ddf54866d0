"""Which weights are kept as the best, and when a run stops early."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_training import Training, losses_in_turn

from minimind_sft.evaluation.during_training import Answer, Evaluation
from minimind_sft.evaluation.losses import ValidationLoss
from minimind_sft.files import sha256_of_file
from minimind_sft.manifest import MANIFEST
from minimind_sft.settings.evaluation import EvaluationSettings
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.best import has_stalled, note_scores
from minimind_sft.training.identity import run_settings
from minimind_sft.training.resume import compare_with_run, end_of_run
from minimind_sft.training.resume_state import ADDED_LATER, TrainState, read_state


def scores(loss: float, right: int | None = None, asked: int = 4) -> Evaluation:
    answers = [Answer("all", "q", "a", "a", index < right) for index in range(asked)] if right is not None else []
    return Evaluation(ValidationLoss(loss, token_accuracy=0.5, tokens=10), answers)


def noted(settings: EvaluationSettings, *evaluations: Evaluation, first_step: int = 1) -> list[tuple[bool, int]]:
    """Returns for each evaluation in turn whether it is the best so far, and how many in a row brought no gain."""
    state, found = TrainState(step=first_step), []
    for evaluation in evaluations:
        found.append((note_scores(state, evaluation, settings), state.evaluations_without_gain))
        state.step += 1
    return found


def test_by_loss_the_lowest_is_best():
    assert noted(EvaluationSettings(), scores(3.0), scores(2.0), scores(2.0), scores(2.5), scores(1.0)) == [
        (True, 0), (True, 0), (False, 1), (False, 2), (True, 0)]


def test_a_loss_that_is_not_a_number_is_no_gain():
    assert noted(EvaluationSettings(), scores(3.0), scores(float("nan")), scores(float("inf")), scores(2.0)) == [
        (True, 0), (False, 1), (False, 2), (True, 0)]


def test_by_exact_match_the_lower_loss_decides_between_equals_but_is_no_gain():
    settings = EvaluationSettings(best_by="exact_match")
    assert noted(settings, scores(2.0, 1), scores(1.0, 0), scores(1.9, 1), scores(2.5, 3), scores(2.6, 3)) == [
        (True, 0), (False, 1), (True, 2), (True, 0), (False, 1)]


def test_the_weights_before_training_are_not_kept_but_must_be_improved_on():
    assert noted(EvaluationSettings(), scores(1.0), scores(3.0), scores(2.0), first_step=0) == [
        (False, 0), (True, 1), (True, 2)]


@pytest.mark.parametrize(("patience", "without_gain", "stalled"), [(0, 9, False), (2, 1, False), (2, 2, True)])
def test_patience_counts_evaluations_without_gain(patience, without_gain, stalled):
    state = TrainState(evaluations_without_gain=without_gain)
    assert has_stalled(state, EvaluationSettings(early_stop_patience=patience)) == stalled


LOSSES = (3.0, 2.0, 2.5, 2.2, 1.0)
"""At steps 0, 4, 8, 12 and 16."""


def same_weights(one: Training, other: Training) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_run_stops_early_and_a_larger_patience_continues_it_to_the_same_weights(tmp_path, capsys):
    whole = Training(tmp_path / "whole", evaluate=losses_in_turn(*LOSSES))
    whole.run()
    stopped = Training(tmp_path / "run", evaluate=losses_in_turn(*LOSSES), early_stop_patience=2)
    assert stopped.run() == 0
    assert (stopped.state.step, stopped.state.finished) == (12, True)
    assert "stopped early after step 12: 2 evaluations in a row without a lower validation loss" in \
        capsys.readouterr().out
    assert '"end": "stopped early"' in (tmp_path / "run/metrics.jsonl").read_text()

    rest = Training(tmp_path / "run", resume=True, evaluate=losses_in_turn(1.0))
    rest.state.finished = False  # as the recipes do
    assert rest.run() == 0 and rest.state.step == 16
    assert same_weights(whole, rest) and asdict(rest.state) == asdict(whole.state)


@pytest.mark.parametrize("interrupt_at", [9, 11, 12])
def test_an_interrupted_run_stops_early_where_it_would_have_anyway(tmp_path, interrupt_at):
    straight = Training(tmp_path / "a", evaluate=losses_in_turn(*LOSSES), early_stop_patience=2)
    straight.run()
    Training(tmp_path / "b", evaluate=losses_in_turn(*LOSSES), early_stop_patience=2).run(interrupt_at)
    again = Training(tmp_path / "b", resume=True, evaluate=losses_in_turn(2.2), early_stop_patience=2)
    if interrupt_at < 12:  # the signal at step 12 comes when the run has stopped
        assert again.state.evaluations_without_gain == 1 and again.run() == 0
    assert asdict(again.state) == asdict(straight.state) and same_weights(straight, again)


def test_a_run_that_stopped_early_has_ended_until_the_patience_grows(tmp_path):
    weights = tmp_path / "full_sft_16.pth"
    weights.touch()
    state = TrainState(step=12, finished=True, evaluations_without_gain=2)
    assert end_of_run(state, 16, weights, EvaluationSettings(early_stop_patience=2)) == (
        f"{weights}: that run stopped early (12 of 16 steps); --early_stop_patience 0 continues it")
    for patience in (0, 3):
        assert end_of_run(state, 16, weights, EvaluationSettings(early_stop_patience=patience)) is None
    assert end_of_run(state, 12, weights, EvaluationSettings()) == (
        f"{weights}: that run is finished (12 steps); nothing to do")
    assert end_of_run(state, 16, Path("gone.pth"), EvaluationSettings()) is None


@pytest.mark.parametrize(("flags", "now", "forgotten"), [
    ({"best_by": "exact_match"}, {"best_by": "exact_match"}, False),
    ({"best_by": "exact_match"}, {"best_by": "exact_match", "eval_samples": 8}, True),
    ({"best_by": "exact_match"}, {"best_by": "exact_match", "eval_max_new_tokens": 8}, True),
    ({"best_by": "exact_match"}, {}, True),
    ({}, {"best_by": "exact_match"}, True),
    ({}, {"eval_samples": 8, "eval_max_new_tokens": 8}, False),
])
def test_a_resumed_run_forgets_the_best_scores_if_its_own_measure_something_else(flags, now, forgotten):
    before, after = (TrainState(settings=run_settings(changed(SFTSettings(), **one), torch.float32))
                     for one in (flags, now))
    before.best_eval_loss, before.best_exact_match, before.best_value = 2.0, 0.5, -0.5
    said: list[str] = []
    compare_with_run(before, after, Path("step-00000001"), False, said.append)
    assert (before.best_eval_loss is None) == (before.best_value is None) == forgotten
    assert bool(said) == forgotten


def test_the_best_loss_of_a_state_of_version_0_1_must_be_improved_on(tmp_path):
    Training(tmp_path, evaluate=losses_in_turn(*LOSSES)).run()
    (folder,) = tmp_path.rglob("step-00000016")
    record = json.loads((folder / "state.json").read_text())
    for name in ADDED_LATER:
        del record["state"][name]
    (folder / "state.json").write_text(json.dumps(record))
    sums = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(sums | {"state.json": sha256_of_file(folder / "state.json")}))
    state = read_state(folder)
    assert (state.best_eval_loss, state.best_value, state.evaluations_without_gain) == (1.0, 1.0, 0)
    assert not note_scores(state, scores(1.5), EvaluationSettings()) and state.evaluations_without_gain == 1
