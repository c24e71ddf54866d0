"""The description of a run in its metrics file."""

import json
import socket

import torch
from test_loading import load, texts
from tiny import TINY
from tiny_training import CPU, NO_SCALER

from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.paths import REPOSITORY
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.learner import Learner
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.outputs import Outputs
from minimind_sft.training.run_facts import data_facts, run_facts, settings_facts


def facts_of(tmp_path, *data_path: str, **settings) -> list[dict]:
    train_set, eval_set, _ = load(tmp_path, *data_path, **settings)
    return data_facts(changed(SFTSettings(), data_path=data_path, **settings).data, train_set, eval_set)


def test_a_run_is_described_in_json_without_the_name_of_the_machine(tmp_path):
    model = MiniMindForCausalLM(TINY)
    learner = Learner(model, model, build_optimizer(model, 1e-3, 0.1), NO_SCALER, CPU, torch.float32)
    file = texts(tmp_path / "a.jsonl", 10)
    settings = changed(SFTSettings(), data_path=(file,))
    sets = load(tmp_path, file, eval_share=0)[:2]
    facts = json.loads(json.dumps(
        run_facts("full_sft", Outputs(tmp_path / "mine_16.pth"), settings, learner, 7, sets), allow_nan=False))
    assert (facts["name"], facts["stage"], facts["total_steps"]) == ("mine_16", "full_sft", 7)
    assert facts["started"].endswith("+00:00")
    assert facts["model"]["parameters"] == facts["model"]["trained_parameters"] == sum(
        parameter.numel() for parameter in model.parameters())
    assert facts["model"]["from_weight"] == "pretrain" and facts["model"]["hidden_size"] == 16
    machine = facts["machine"]
    assert (machine["device"], machine["ranks"], machine["dtype"]) == ("cpu", 1, "float32")
    assert socket.gethostname() not in map(str, machine.values())
    assert facts["versions"]["torch"] == str(torch.__version__)


def test_settings_are_those_typed_and_paths_in_the_repository_are_relative(monkeypatch):
    monkeypatch.chdir(REPOSITORY / "trainer")
    settings = changed(SFTSettings(), data_path=(str(REPOSITORY / "dataset/sft_demo.jsonl"), "/x/y.jsonl:0.5"),
                       save_dir="/tmp/out", use_wandb=True)
    facts = settings_facts(settings)
    assert facts["data_path"] == ["dataset/sft_demo.jsonl", "/x/y.jsonl:0.5"]
    assert (facts["from_weight"], facts["save_dir"], facts["tokenizer_path"]) == ("pretrain", "/tmp/out", None)
    assert (facts["use_wandb"], facts["learning_rate"]) == (1, 5e-4)


def test_data_are_described_by_source(tmp_path):
    one, other = texts(tmp_path / "a.jsonl", 60), texts(tmp_path / "b.jsonl", 40)
    first, second, held = facts_of(tmp_path, f"{one}:0.9", f"{other}:0.1", eval_share=0.1)
    assert (first["name"], first["role"], first["rows"], first["samples"]) == (one, "training", 60, 54)
    assert (second["rows"], second["samples"], second["samples_per_epoch"]) == (40, 36, 9)
    assert held == {"name": "--eval_share 0.1 of the training rows", "role": "evaluation", "samples": 10}
    both, held = facts_of(tmp_path, one, other, eval_data_path=(other,))
    assert (both["name"], both["samples"], both["dropped_rows"]) == (f"{one}, {other}", 100, 0)
    assert (held["name"], held["role"], held["rows"]) == (other, "evaluation", 40)
    assert both["tokens"] == both["supervised"] > 100  # all of a text is learned
    assert facts_of(tmp_path, one, eval_share=0)[0]["rows"] == 60
