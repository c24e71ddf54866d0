"""The resume state: whole, or recognised as damaged."""

import json
import shutil

import pytest
import torch
from tiny import TINY, TINY_MOE, random_documents

from minimind_sft.data.batching import TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import (
    PARTS,
    TrainState,
    find_resume_state,
    load_resume_state,
    read_train_state,
    save_resume_state,
)
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)


@pytest.fixture(params=[TINY, TINY_MOE], ids=["dense", "moe"])
def trained(request):
    """A model and an optimizer after one step."""
    torch.manual_seed(3)
    model = MiniMindForCausalLM(request.param)
    optimizer = build_optimizer(model, 1e-2, 0.1)
    batch = TrainingSteps(random_documents(4), epochs=1, samples_per_step=4, micro_batch_tokens=64, seed=1)[0]
    train_step(model, batch, optimizer, torch.amp.GradScaler("cpu", enabled=False),
               Ranks(0, 1, torch.device("cpu")), torch.float32, 1.0)
    return model, optimizer


def save(folder, trained, step, keep=9):
    return save_resume_state(folder, TrainState(step=step, samples_per_step=4, run={"seed": 5}), *trained, scaler(),
                             keep)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, trained):
    path = save(tmp_path, trained, 7)
    assert path.name == "step-00000007"
    model = MiniMindForCausalLM(trained[0].config)
    optimizer, other_scaler = build_optimizer(model, 1e-2, 0.1), torch.amp.GradScaler("cpu", enabled=True)
    load_resume_state(path, model, optimizer, other_scaler)
    for one, other in zip(trained[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert set(optimizer.state[other]) == {"step", "exp_avg", "exp_avg_sq"}
        for kind, value in trained[1].state[one].items():
            assert torch.equal(value, optimizer.state[other][kind])
    assert other_scaler.get_scale() == 8.0
    assert read_train_state(path) == TrainState(step=7, samples_per_step=4, run={"seed": 5})


def test_the_newest_states_are_kept(tmp_path, trained):
    for step in (1, 2, 3):
        save(tmp_path, trained, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("part", PARTS)
def test_one_flipped_bit_is_recognised_and_the_state_before_is_used(tmp_path, trained, part):
    good, bad = save(tmp_path, trained, 1), save(tmp_path, trained, 2)
    content = bytearray((bad / part).read_bytes())
    content[len(content) // 2] ^= 1
    (bad / part).write_bytes(content)
    found, refused = find_resume_state(tmp_path)
    assert found == good
    assert refused == [f"{bad}: {part} was damaged: its SHA-256 is not the one in manifest.json"]


@pytest.mark.parametrize("part", [*PARTS, "manifest.json"])
def test_a_missing_file_is_recognised(tmp_path, trained, part):
    good, bad = save(tmp_path, trained, 1), save(tmp_path, trained, 2)
    (bad / part).unlink()
    found, refused = find_resume_state(tmp_path)
    assert found == good
    assert part in refused[0]


def test_files_of_two_steps_are_not_mixed(tmp_path, trained):
    save(tmp_path, trained, 1)
    bad = save(tmp_path, trained, 2)
    shutil.copy(tmp_path / "step-00000001/state.json", bad / "state.json")
    assert find_resume_state(tmp_path)[0] == tmp_path / "step-00000001"


def test_a_half_written_state_is_not_seen(tmp_path, trained):
    good = save(tmp_path, trained, 1)
    shutil.copytree(good, tmp_path / ".step-00000002.99.tmp")
    assert find_resume_state(tmp_path) == (good, [])


def test_without_any_state_there_is_none(tmp_path):
    assert find_resume_state(tmp_path / "nowhere") == (None, [])


def test_another_models_state_is_refused_by_the_parameters_name(tmp_path):
    model = MiniMindForCausalLM(TINY)
    path = save(tmp_path, (model, build_optimizer(model, 1e-2, 0.1)), 1)
    moe = MiniMindForCausalLM(TINY_MOE)
    with pytest.raises(UserError, match=r"weights\.safetensors: not this model's parameters: model\.layers\.0\.mlp"):
        load_resume_state(path, moe, build_optimizer(moe, 1e-2, 0.1), scaler())


def test_nothing_in_a_state_is_a_pickle(tmp_path, trained):
    path = save(tmp_path, trained, 1)
    assert sorted(file.name for file in path.iterdir()) == sorted([*PARTS, "manifest.json"])
    json.loads((path / "state.json").read_text())
