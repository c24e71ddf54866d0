"""Counters, scores and settings of a resume state: those that this project writes pass, all others are named."""

from dataclasses import asdict

import pytest
import torch

from minimind_sft.manifest import Damaged
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import LoraSFTSettings, PretrainSettings, SFTSettings
from minimind_sft.training.identity import run_settings
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.state_fields import check_scaler, check_state

STATE = {**asdict(TrainState(step=5, updates=4, bad_steps=1, samples_per_step=8, eval_loss=2.5)),
         "settings": run_settings(SFTSettings(), torch.float32)}
SCALER = torch.amp.GradScaler("cpu", enabled=True).state_dict()


@pytest.mark.parametrize("settings", [
    PretrainSettings(), changed(SFTSettings(), freeze=("embed_tokens", "norm"), max_steps=7, schedule="wsd"),
    changed(SFTSettings(), best_by="exact_match", eval_samples=9), LoraSFTSettings()])
def test_what_runs_write_passes(settings):
    check_state({**STATE, "settings": run_settings(settings, torch.bfloat16)})
    check_scaler(SCALER)
    check_scaler({})


@pytest.mark.parametrize("changes", [
    {"eval_loss": None, "best_value": -0.5, "best_eval_loss": 3}, {"settings": {}}, {"settings": {"later": [1]}},
    {"bad_steps_in_a_row": 1}, {"finished": True}, {"identity": {"data": ["a", {"b": None}]}}])
def test_other_values_that_a_run_may_have(changes):
    check_state(STATE | changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"step": -1}, "step: expected a whole number from 0, found -1"),
    ({"step": "5"}, 'step: expected a whole number from 0, found "5"'),
    ({"updates": True}, "updates: expected a whole number from 0, found true"),
    ({"updates": 4.0}, "updates: expected a whole number from 0, found 4.0"),
    ({"supervised_tokens": 2**53}, "supervised_tokens: expected a whole number from 0, found 9007199254740992"),
    ({"samples_per_step": 0}, "samples_per_step: expected a whole number from 1, found 0"),
    ({"evaluations_without_gain": None}, "evaluations_without_gain: expected a whole number from 0, found null"),
    ({"updates": 6}, "updates is 6, more than step, which is 5"),
    ({"bad_steps_in_a_row": 2}, "bad_steps_in_a_row is 2, more than bad_steps, which is 1"),
    ({"eval_loss": "low"}, 'eval_loss: expected a finite number or null, found "low"'),
    ({"eval_loss": float("nan")}, "eval_loss: expected a finite number or null, found NaN"),
    ({"best_value": 10**400}, "best_value: expected a finite number or null, found 1000"),
    ({"best_exact_match": False}, "best_exact_match: expected a finite number or null, found false"),
    ({"finished": 1}, "finished: expected true or false, found 1"),
    ({"identity": []}, "identity: expected an object, found an empty list"),
    ({"settings": None}, "settings: expected an object, found null"),
    ({"settings": {"learning_rate": "x"}}, 'settings: learning_rate: expected a finite number, found "x"'),
    ({"settings": {"learning_rate": 0}}, "settings: learning_rate: expected more than 0, found 0"),
    ({"settings": {"epochs": 0}}, "settings: epochs: expected 1 to 1,000,000,000, found 0"),
    ({"settings": {"warmup_steps": 10**400}}, "settings: warmup_steps: expected a whole number, found 1000"),
    ({"settings": {"schedule": "up"}}, 'settings: schedule: expected cosine, linear, constant, wsd, found "up"'),
    ({"settings": {"keep_best": True}}, "settings: keep_best: expected 0 or 1, found true"),
    ({"settings": {"freeze": "all"}}, 'settings: freeze: expected a list of texts, found "all"'),
    ({"settings": {"dtype": ["float32"]}}, "settings: dtype: expected one of auto, float32, bfloat16, float16, "),
])
def test_a_field_that_is_not_as_expected_is_named(changes, message):
    with pytest.raises(Damaged) as refused:
        check_state(STATE | changes)
    assert str(refused.value).startswith(message) and len(str(refused.value)) < 200


@pytest.mark.parametrize(("scaler", "message"), [
    ([], "scaler: expected an object, found an empty list"),
    ({"scale": 2.0}, 'scaler: expected the fields of a GradScaler, found "scale"'),
    (SCALER | {"scale": 0.0}, "scaler: scale: expected a number between 0 and 3.4e+38, found 0.0"),
    (SCALER | {"scale": float("inf")}, "scaler: scale: expected a number between"),
    (SCALER | {"growth_interval": 0}, "scaler: growth_interval: expected a whole number from 1, found 0"),
    (SCALER | {"_growth_tracker": 2**31}, "scaler: _growth_tracker: expected a whole number from 0, found 2147483648"),
])
def test_a_scaler_that_is_not_as_pytorch_writes_it_is_refused(scaler, message):
    with pytest.raises(Damaged) as refused:
        check_scaler(scaler)
    assert str(refused.value).startswith(message)
