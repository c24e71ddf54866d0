"""Every tensor of a resume state is checked before any is used: name, shape, dtype and values."""

import json
from dataclasses import replace
from pathlib import Path

import checkpoint_faults
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import Training

from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.resume_state import load_tensors, read_state

CPU = Ranks(0, 1, torch.device("cpu"))
WEIGHTS, OPTIMIZER = "weights-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Returns the folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("run")
    assert Training(folder, max_steps=3).run() == 0
    return folder


@pytest.fixture
def state(run, tmp_path) -> Path:
    """Returns a copy of its resume state."""
    path = tmp_path / "step-00000003"
    path.mkdir()
    for file in (run / "resume" / path.name).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def change(state: Path, file: str, edit) -> None:
    """Replaces the tensors of a file by what `edit` makes of them, with a manifest that lists the new checksum."""
    save_file({name: tensor.contiguous() for name, tensor in edit(load_file(state / file)).items()}, state / file)
    checkpoint_faults.vouch(state, file)


def refusal(state: Path) -> str:
    """Returns why the state is refused; neither model nor optimizer may have changed by then."""
    training = Training(state.parent / "other", max_steps=3)
    model, optimizer = training.model, training.optimizer
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read_state(state)
    with pytest.raises(UserError) as refused:
        load_tensors(state, model, optimizer, training.learner.scaler, CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not optimizer.state
    return str(refused.value)


@pytest.mark.parametrize(("file", "name", "new", "message"), [
    (WEIGHTS, EMBEDDING, lambda t: t[1:], "weights: model.embed_tokens.weight has shape (63, 16), expected (64, 16)"),
    (WEIGHTS, NORM, lambda t: t[None], "weights: model.norm.weight has shape (1, 16), expected (16,)"),
    (WEIGHTS, NORM, lambda t: t.half(), "model.norm.weight has the type F16, expected F32 or F64"),
    (WEIGHTS, NORM, lambda t: t.long(), "model.norm.weight has the type I64, expected F32 or F64"),
    (WEIGHTS, NORM, lambda t: t.double(), "weights: model.norm.weight is float64 (16,), expected float32 (16,)"),
    (WEIGHTS, NORM, lambda t: t * torch.nan, "weights: model.norm.weight is not finite"),
    (OPTIMIZER, f"exp_avg|{EMBEDDING}", lambda t: t.T,
     "optimizer: exp_avg|model.embed_tokens.weight has shape (16, 64), expected (64, 16)"),
    (OPTIMIZER, f"exp_avg_sq|{NORM}", lambda t: t[:0], "exp_avg_sq|model.norm.weight has shape (0,), expected (16,)"),
    (OPTIMIZER, f"exp_avg_sq|{NORM}", lambda t: -1 - t, "optimizer: exp_avg_sq|model.norm.weight is negative"),
    (OPTIMIZER, f"exp_avg|{NORM}", lambda t: t - torch.inf, "optimizer: exp_avg|model.norm.weight is not finite"),
    (OPTIMIZER, f"step|{NORM}", lambda t: t[None], "optimizer: step|model.norm.weight has shape (1,), expected ()"),
    (OPTIMIZER, f"step|{NORM}", lambda t: t + 0.5,
     "optimizer: step|model.norm.weight is 3.5, expected a whole number up to the run's 3 updates"),
    (OPTIMIZER, f"step|{NORM}", lambda t: t + 1, "step|model.norm.weight is 4, expected a whole number up to the"),
    (OPTIMIZER, f"step|{NORM}", lambda t: -t, "optimizer: step|model.norm.weight is negative"),
])
def test_a_tensor_that_does_not_fit_is_named(state, file, name, new, message):
    change(state, file, lambda found: {**found, name: new(found[name])})
    assert message in refusal(state)


@pytest.mark.parametrize(("file", "edit", "message"), [
    (OPTIMIZER, lambda found: {}, "optimizer: step|model.embed_tokens.weight is missing"),
    (OPTIMIZER, lambda found: {name: t for name, t in found.items() if name != f"exp_avg|{NORM}"},
     "optimizer: exp_avg|model.norm.weight is missing"),
    (OPTIMIZER, lambda found: {name: t for name, t in found.items() if not name.endswith(NORM)},
     "optimizer: step|model.norm.weight is missing"),
    (OPTIMIZER, lambda found: {**found, "exp_avg|x\x1b[2J": torch.zeros(1)},
     r"optimizer: exp_avg|x\x1b[2J is no moment of a parameter of this model"),
    (OPTIMIZER, lambda found: {**found, f"max_exp_avg_sq|{NORM}": torch.zeros(16)},
     "optimizer: max_exp_avg_sq|model.norm.weight is no moment of a parameter of this model"),
    (WEIGHTS, lambda found: {**found, "model.extra": torch.zeros(1)},
     "weights: not the parameters of this model: model.extra is on one side only"),
    (WEIGHTS, lambda found: {}, "weights: not the parameters of this model: "),
])
def test_tensors_that_are_missing_or_unknown_are_named(state, file, edit, message):
    change(state, file, edit)
    assert message in refusal(state)


@pytest.mark.parametrize(("second", "message"), [
    (lambda name, t: t[:, :1] if t.dim() > 1 else t, "does not continue the shard before: float32 (32, 1) after "),
    (lambda name, t: t + 1 if name.startswith("step|") else t, ", expected a whole number up to the run's 3 updates"),
    (lambda name, t: None if name.endswith(NORM) else t, "model.norm.weight is not in every shard"),
    (lambda name, t: t[None] if not t.dim() else t, "does not continue the shard before: float32 (1,) after "),
])
def test_shards_that_do_not_fit_together_are_named(state, second, message):
    for file, part in ((WEIGHTS, "weights"), (OPTIMIZER, "optimizer")):
        tensors = load_file(state / file)
        for shard in range(2):
            halves = {name: t.tensor_split(2)[shard] if t.dim() else t for name, t in tensors.items()}
            changed = {name: second(name, t) if shard else t for name, t in halves.items()}
            save_file({name: t.clone() for name, t in changed.items() if t is not None},
                      state / f"{part}-{shard + 1:05d}-of-00002.safetensors")
        (state / file).unlink()
    (state / "manifest.json").write_text("{}", encoding="utf-8")
    for file in [path.name for path in state.iterdir() if path.name != "manifest.json"]:
        checkpoint_faults.vouch(state, file)
    assert message in refusal(state)


def test_a_setting_that_names_no_parameter_is_refused(state):
    record = json.loads((state / "state.json").read_text(encoding="utf-8"))
    record["state"]["settings"]["freeze"] = ["layers.9"]
    (state / "state.json").write_text(json.dumps(record), encoding="utf-8")
    checkpoint_faults.vouch(state, "state.json")
    assert "state.json: settings: --freeze layers.9: no '9' here" in refusal(state)


def test_a_state_from_before_the_first_update_needs_no_moments(state, run):
    record = json.loads((state / "state.json").read_text(encoding="utf-8"))
    record["state"] |= {"updates": 0, "bad_steps": 3}
    (state / "state.json").write_text(json.dumps(record), encoding="utf-8")
    change(state, OPTIMIZER, lambda found: {})
    checkpoint_faults.vouch(state, "state.json")
    training = Training(state.parent / "other", max_steps=3)
    load_tensors(state, training.model, training.optimizer, training.learner.scaler, CPU)
    assert not any(moment.any() for moments in training.optimizer.state.values() for moment in moments.values())


def test_other_optimizers_keep_other_moments(tmp_path):
    """Whatever the optimizer keeps is checked, and comes back bit for bit."""
    training = Training(tmp_path / "a", max_steps=2)
    model = training.model
    training.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training.learner = replace(training.learner, optimizer=training.optimizer)
    assert training.run() == 0
    state = tmp_path / "a/resume/step-00000002"
    other = MiniMindForCausalLM(model.config)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    load_tensors(state, other, optimizer, training.learner.scaler, CPU)
    for one, parameter in zip(model.parameters(), other.parameters(), strict=True):
        found = optimizer.state[parameter]
        assert found.keys() == {"momentum_buffer"}
        assert torch.equal(found["momentum_buffer"], training.optimizer.state[one]["momentum_buffer"])
    adamw = build_optimizer(other, 0.1, 0.0)
    with pytest.raises(UserError, match=r"optimizer: momentum_buffer\|.* is no moment of a parameter of this model"):
        load_tensors(state, other, adamw, training.learner.scaler, CPU)
