"""Tests the lines that a run prints before it starts and when it ends."""

import pytest
from tiny import random_documents

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import PretrainSettings, SFTSettings
from minimind_sft.training.advice import (
    describe_length,
    evaluation_advice,
    opening_warnings,
    rate_advice,
    warmup_advice,
)


def sft(**flags) -> SFTSettings:
    return changed(SFTSettings(), **flags)


@pytest.mark.parametrize(("flags", "line"), [
    ({}, "200 steps of 16 samples, learning rate 0.0005; 2 epochs"),
    ({"epochs": 1}, "100 steps of 16 samples, learning rate 0.0005; 1 epoch"),
    ({"max_steps": 50}, "50 steps of 16 samples, learning rate 0.0005; 0.5 epochs: --max_steps 50 ends the run before "
                        "--epochs 2, which would be 200 steps"),
    ({"max_steps": 500}, "200 steps of 16 samples, learning rate 0.0005; 2 epochs, which end the run before "
                         "--max_steps 500"),
    ({"epochs": 1, "max_steps": 500}, "100 steps of 16 samples, learning rate 0.0005; 1 epoch, which ends the run "
                                      "before --max_steps 500"),
    ({"epochs": 300, "max_steps": 12_345}, "12,345 steps of 16 samples, learning rate 0.0005; 123 epochs: --max_steps "
                                           "12345 ends the run before --epochs 300, which would be 30,000 steps"),
    ({"max_steps": 100}, "100 steps of 16 samples, learning rate 0.0005; 1 epoch: --max_steps 100 ends the run before "
                         "--epochs 2, which would be 200 steps"),
    ({"max_steps": 200}, "200 steps of 16 samples, learning rate 0.0005; 2 epochs"),
    ({"schedule": "wsd"}, "200 steps of 16 samples, learning rate 0.0005 (wsd); 2 epochs"),
])
def test_the_length_says_which_of_max_steps_and_epochs_ends_the_run(flags, line):
    optimizer = sft(**flags).optimizer
    steps = TrainingSteps(ExampleDataset([[]] * 1600), BatchLayout(768), epochs=optimizer.epochs, samples_per_step=16,
                          seed=1, max_steps=optimizer.max_steps)
    assert describe_length(optimizer, steps) == f"training    {line}"


@pytest.mark.parametrize(("warmup", "line"), [
    (0, None), (30, None),
    (31, "note        --warmup_steps 31 is 31% of the run's 100 steps"),
    (99, "note        --warmup_steps 99 is 99% of the run's 100 steps"),
    (100, None),  # a warning, not a note
])
def test_a_warmup_that_takes_much_of_the_run_is_noted(warmup, line):
    assert warmup_advice(sft(warmup_steps=warmup).optimizer, 100) == ([line] if line else [])


def test_best_weights_chosen_on_a_handful_of_samples_are_noted():
    (line,) = evaluation_advice(sft(), 10)
    assert line.startswith("note        the best weights are chosen on 10 samples, ")
    assert "a larger --eval_share or an --eval_data_path" in line and "--keep_best 0" in line
    (line,) = evaluation_advice(sft(eval_data_path=("eval.jsonl",)), 1)
    assert "on 1 sample, " in line and "more rows in --eval_data_path" in line
    assert evaluation_advice(sft(), 50) == evaluation_advice(sft(), None) == []
    assert evaluation_advice(sft(keep_best=False), 3) == []


def test_flags_about_evaluations_have_no_effect_without_samples():
    assert evaluation_advice(sft(best_by="exact_match", early_stop_patience=2), None) == [
        "note        no effect without evaluation samples: --best_by exact_match, --early_stop_patience 2"]


def test_best_weights_chosen_by_a_handful_of_answers_are_noted():
    by_answers = sft(best_by="exact_match")
    assert evaluation_advice(by_answers, 500) == [
        "note        the best weights are chosen by 4 answers, so chance plays a large part; more --eval_samples make "
        "the choice more reliable"]
    assert "by 1 answer, " in evaluation_advice(by_answers, 1)[0]
    assert evaluation_advice(sft(best_by="exact_match", eval_samples=50), 500) == []


SETTINGS = {"epochs": 1, "max_steps": 0, "learning_rate": 1e-3, "min_lr_ratio": 0.1, "warmup_steps": 0}


@pytest.mark.parametrize(("changed", "was", "now"), [
    ({"epochs": 2}, "0.0001", "0.000546"),  # from the end of one cosine to the middle of the next
    ({"learning_rate": 3e-3}, "0.0001", "0.0003"),
    ({"min_lr_ratio": 0.5}, "0.0001", "0.0005"),
    ({"schedule": "constant"}, "0.0001", "0.001"),
])
def test_a_learning_rate_that_jumps_on_resume_is_noted(changed, was, now):
    (line,) = rate_advice(SETTINGS, {**SETTINGS, **changed}, 100, steps_per_epoch=100)
    assert line == f"note        the learning rate jumps: {was} with the previous settings, {now} with these"


def test_a_learning_rate_that_continues_smoothly_is_not_noted():
    assert rate_advice(SETTINGS, SETTINGS, 50, 100) == []
    assert rate_advice(SETTINGS, {**SETTINGS, "warmup_steps": 5}, 90, 100) == []


def test_more_epochs_move_no_rate_while_a_wsd_run_has_not_begun_to_decay():
    stable = {**SETTINGS, "schedule": "wsd", "decay_share": 0.2}
    assert rate_advice(stable, {**stable, "epochs": 3}, 79, 100) == []
    assert len(rate_advice(stable, {**stable, "epochs": 3}, 99, 100)) == 1


@pytest.mark.parametrize(("settings", "shared", "warns"), [
    (sft(eval_data_path=("held.jsonl",)), 1, True),
    (sft(), 2, False),  # some rows of most files are equal
    (sft(), 3, True),
    (PretrainSettings(), 3, True),
])
def test_evaluation_samples_that_are_trained_on(settings, shared, warns):
    documents = list(random_documents(60, longest=40))
    train_set, eval_set = ExampleDataset(documents[:20 + shared]), ExampleDataset(documents[20:])
    found = [one for one in opening_warnings(settings, 100, train_set, eval_set) if one.name == "leaked_rows"]
    assert len(found) == warns
    if warns:
        assert f"the run also trains on {shared} of the 40 evaluation samples" in found[0].text
        flag = "--drop_in FILES" if settings.data.eval_data_path else "--drop_duplicates"
        assert (flag in found[0].text) == isinstance(settings, SFTSettings)
