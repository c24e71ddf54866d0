"""A resume state is complete, or its damage is detected."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import checkpoint_faults
import pytest
import torch
from data_files import left_private_folder
from programs import PATIENCE
from safetensors.torch import load_file, save_file
from tiny import TINY, TINY_MOE, random_documents

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.manifest import Damaged
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.resume_state import TrainState, load_tensors, read_state, write_shard
from minimind_sft.writing import MARKER

CPU = Ranks(0, 1, torch.device("cpu"))
WEIGHTS, OPTIMIZER = "weights-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)


@pytest.fixture(params=[TINY, TINY_MOE], ids=["dense", "moe"])
def trained(request):
    """Returns a model and an optimizer after one step."""
    torch.manual_seed(3)
    model = MiniMindForCausalLM(request.param)
    optimizer = build_optimizer(model, 1e-2, 0.1)
    batch = TrainingSteps(random_documents(4), BatchLayout(64), epochs=1, samples_per_step=4, seed=1)[0]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_step(Learner(model, model, optimizer, scaler, CPU, torch.float32), batch, 1.0)
    return model, optimizer


@pytest.fixture
def small():
    """Returns a one-parameter model with its optimizer, whose states are small."""
    torch.manual_seed(3)
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, 1e-2, 0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


def checkpoints(folder: Path, keep: int = 9, fresh: bool = False) -> Checkpoints:
    return Checkpoints(folder, keep=keep, ranks=CPU, fresh=fresh)


def save(folder: Path, trained, step: int, keep: int = 9) -> Path:
    state = TrainState(step=step, updates=step, samples_per_step=4, identity={"seed": 5})
    checkpoints(folder, keep).save(state, *trained, scaler())
    return folder / f"step-{step:08d}"


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    path, _, refused = checkpoints(folder).newest()
    return path, refused


def test_a_saved_state_loads_bit_for_bit(tmp_path, trained):
    path = save(tmp_path, trained, 7)
    assert path.name == "step-00000007"
    model = MiniMindForCausalLM(trained[0].config)
    optimizer, other_scaler = build_optimizer(model, 1e-2, 0.1), torch.amp.GradScaler("cpu", enabled=True)
    load_tensors(path, model, optimizer, other_scaler, CPU)
    for one, other in zip(trained[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert set(optimizer.state[other]) == {"step", "exp_avg", "exp_avg_sq"}
        for kind, value in trained[1].state[one].items():
            assert torch.equal(value, optimizer.state[other][kind])
    assert other_scaler.get_scale() == 8.0
    assert read_state(path) == TrainState(step=7, updates=7, samples_per_step=4, identity={"seed": 5})


@pytest.fixture
def slow_disk(monkeypatch):
    """Returns an event; no file of a state is written before it is set."""
    disk = threading.Event()

    def wait_and_write(*arguments):
        assert disk.wait(PATIENCE)
        return write_shard(*arguments)

    monkeypatch.setattr("minimind_sft.training.checkpoint.write_shard", wait_and_write)
    return disk


def test_a_background_save_writes_the_state_of_its_start(tmp_path, trained, slow_disk):
    model, optimizer = trained
    before = [(parameter.detach().clone(), {kind: value.clone() for kind, value in optimizer.state[parameter].items()})
              for parameter in model.parameters()]
    state, own, scale = TrainState(step=7, updates=7), checkpoints(tmp_path), scaler()
    own.save(state, model, optimizer, scale, wait=False)
    state.step = 8
    scale.load_state_dict({**scale.state_dict(), "scale": 4.0})
    for parameter in model.parameters():
        for changing in (parameter.detach(), *optimizer.state[parameter].values()):
            changing.add_(1.0)
    assert own.is_writing and newest(tmp_path) == (None, [])
    slow_disk.set()
    while own.is_writing:
        pass
    assert own.advance() and not own.advance()

    other, other_scale = MiniMindForCausalLM(model.config), torch.amp.GradScaler("cpu", enabled=True)
    other_optimizer = build_optimizer(other, 1e-2, 0.1)
    load_tensors(newest(tmp_path)[0], other, other_optimizer, other_scale, CPU)
    assert read_state(tmp_path / "step-00000007").step == 7 and other_scale.get_scale() == 8.0
    for one, (wanted, moments) in zip(other.parameters(), before, strict=True):
        assert torch.equal(one, wanted)
        for kind, moment in moments.items():
            assert torch.equal(other_optimizer.state[one][kind], moment)


def test_a_save_waits_for_the_one_before(tmp_path, small, slow_disk, monkeypatch):
    own = checkpoints(tmp_path)
    own.save(TrainState(step=1), *small, scaler(), wait=False)
    advance = own.advance
    monkeypatch.setattr(own, "advance", lambda: slow_disk.set() or advance())  # it is slow until somebody waits
    own.save(TrainState(step=2), *small, scaler(), wait=False)
    assert (tmp_path / "step-00000001").exists()
    own.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_advance_raises_errors_of_a_background_save(tmp_path, small):
    good, own = save(tmp_path, small, 1), checkpoints(tmp_path)
    small[0].weight.data[0, 0] = torch.nan
    own.save(TrainState(step=2), *small, scaler(), wait=False)
    with pytest.raises(UserError, match=r"step-00000002: this resume state cannot be written \(weight is not finite\)"):
        own.advance()
    assert not own.is_writing and not own.advance()
    assert newest(tmp_path) == (good, []) and list(tmp_path.iterdir()) == [good]


def test_whatever_ends_a_run_its_last_state_is_completed(tmp_path, small, slow_disk, monkeypatch):
    shutdown = ThreadPoolExecutor.shutdown
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", lambda *own: slow_disk.set() or shutdown(*own))
    with pytest.raises(ZeroDivisionError), checkpoints(tmp_path / "resume") as own:
        own.begin()
        own.save(TrainState(step=2), *small, scaler(), wait=False)
        raise ZeroDivisionError
    assert newest(tmp_path / "resume") == (tmp_path / "resume/step-00000002", [])
    assert len(list((tmp_path / "resume").iterdir())) == 1


def test_only_the_newest_states_are_kept(tmp_path, trained):
    for step in (1, 2, 3):
        save(tmp_path, trained, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_damaged_state_does_not_count_as_kept(tmp_path, small):
    for step in (1, 2):
        save(tmp_path, small, step)
    (tmp_path / "step-00000002" / WEIGHTS).write_bytes(b"")
    save(tmp_path, small, 3, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002", "step-00000003"}
    save(tmp_path, small, 4, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000003", "step-00000004"}


@pytest.mark.parametrize("name", checkpoint_faults.DAMAGES)
def test_damage_is_recognised_and_the_previous_state_is_used(tmp_path, name):
    pristine = tmp_path / "pristine"
    checkpoint_faults.write_states(pristine)
    damage = checkpoint_faults.DAMAGES[name]
    if damage is checkpoint_faults.flip:
        damage = partial(damage, every=9)  # the script itself flips every bit
    row = checkpoint_faults.try_damage(tmp_path, pristine, name, damage)
    assert row["tried"] >= 2
    assert row["missed"] == []


@pytest.mark.parametrize(("change", "reason"), [
    (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes() + b"?"),
     f"{WEIGHTS} was damaged: its SHA-256 is not the one in manifest.json"),
    (lambda path: (path / OPTIMIZER).unlink(), f"{OPTIMIZER} is missing"),
    (lambda path: ((path / OPTIMIZER).unlink(), (path / OPTIMIZER).symlink_to("/dev/null")),
     f"{OPTIMIZER} is a symbolic link"),
    (lambda path: (path / "manifest.json").write_text('{"../x": "0"}'),
     "manifest.json lists '../x', which is no part of it"),
    (lambda path: path.rename(path.with_name("step-00000003")), "state.json is that of step 2"),
])
def test_the_reason_for_refusing_a_state_names_the_file(tmp_path, small, change, reason):
    good, bad = save(tmp_path, small, 1), save(tmp_path, small, 2)
    change(bad)
    found, refused = newest(tmp_path)
    assert found == good
    assert [line.split(": ", 1)[1] for line in refused] == [reason]


@pytest.mark.parametrize("content", ["[1]", "null", '"x"', "[" * 100_000, '{"state.json": null}', "{}"])
def test_a_manifest_with_other_content_is_refused(tmp_path, small, content):
    good, bad = save(tmp_path, small, 1), save(tmp_path, small, 2)
    (bad / "manifest.json").write_text(content)
    found, refused = newest(tmp_path)
    assert found == good and len(refused) == 1


def test_a_state_of_another_version_is_refused(tmp_path, small):
    good, bad = save(tmp_path, small, 1), save(tmp_path, small, 2)
    record = json.loads((bad / "state.json").read_text())
    (bad / "state.json").write_text(json.dumps(record | {"format": 99}))
    checkpoint_faults.vouch(bad, "state.json")
    assert newest(tmp_path) == (good, [f"{bad}: state.json was written by another version of this project"])


def test_a_half_written_state_is_ignored_and_removed(tmp_path, small):
    good = save(tmp_path, small, 1)
    half = left_private_folder(tmp_path)
    shutil.copytree(good, half / "step-00000002")
    assert newest(tmp_path) == (good, [])
    with checkpoints(tmp_path):
        assert not half.exists()
    assert good.exists()


def test_an_empty_folder_has_no_newest_state(tmp_path):
    assert newest(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weights", "moments"])
def test_non_finite_numbers_are_never_saved(tmp_path, small, value, where):
    good = save(tmp_path, small, 1)
    weight = small[0].weight
    with torch.no_grad():
        (weight if where == "weights" else small[1].state[weight]["exp_avg"])[0, 0] = value
    with pytest.raises(UserError, match=r"step-00000002: this resume state cannot be written \(.*weight is not finite"):
        save(tmp_path, small, 2)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_the_state_of_another_model_is_refused_naming_a_parameter(tmp_path):
    model = MiniMindForCausalLM(TINY)
    path = save(tmp_path, (model, build_optimizer(model, 1e-2, 0.1)), 1)
    moe = MiniMindForCausalLM(TINY_MOE)
    with pytest.raises(UserError, match=r"not the parameters of this model: model\.layers\.0\.mlp"):
        load_tensors(path, moe, build_optimizer(moe, 1e-2, 0.1), scaler(), CPU)


def test_nothing_in_a_state_is_a_pickle(tmp_path, trained):
    path = save(tmp_path, trained, 1)
    assert sorted(file.name for file in path.iterdir()) == sorted(checkpoint_faults.PARTS)
    json.loads((path / "state.json").read_text())


def test_shards_are_read_as_one_state(tmp_path, trained):
    """A state of one shard, cut in three along the first dimension, as ranks write it."""
    path = save(tmp_path, trained, 1)
    for kind, whole_file, count in (("weights", WEIGHTS, 3), ("optimizer", OPTIMIZER, 3)):
        tensors = load_file(path / whole_file)
        for shard in range(count):
            save_file({name: (tensor if tensor.dim() == 0 else torch.tensor_split(tensor, count)[shard].clone())
                       for name, tensor in tensors.items()},
                      path / f"{kind}-{shard + 1:05d}-of-{count:05d}.safetensors")
        (path / whole_file).unlink()
    names = [file.name for file in path.iterdir() if file.name != "manifest.json"]
    (path / "manifest.json").write_text(json.dumps({name: sha256_of_file(path / name) for name in names}))
    model = MiniMindForCausalLM(trained[0].config)
    optimizer = build_optimizer(model, 1e-2, 0.1)
    assert read_state(path).step == 1
    load_tensors(path, model, optimizer, scaler(), CPU)
    for one, other in zip(trained[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(value, optimizer.state[other][kind]) for kind, value in trained[1].state[one].items())
    (path / "weights-00002-of-00003.safetensors").unlink()
    with pytest.raises(Damaged, match=r"weights-00002-of-00003\.safetensors is missing"):
        read_state(path)


def test_a_new_run_moves_the_states_of_an_earlier_run_aside(tmp_path, small):
    folder = tmp_path / "resume"
    save(folder, small, 5)
    with checkpoints(folder, fresh=True) as own:
        assert own.was_set_aside and own.newest().path is None
        own.begin()
        own.save(TrainState(step=1), *small, scaler())
    assert newest(folder)[0] == folder / "step-00000001"
    assert newest(tmp_path / "resume.previous")[0] == tmp_path / "resume.previous/step-00000005"


def test_a_new_run_that_fails_before_its_first_state_puts_earlier_states_back(tmp_path, small):
    folder, previous = tmp_path / "resume", tmp_path / "resume.previous"
    save(folder, small, 5)
    for _ in range(2):  # the second time .previous exists already
        with pytest.raises(UserError, match="no such data"), checkpoints(folder, fresh=True):
            raise UserError("no such data")
        assert newest(folder)[0] == folder / "step-00000005"
        assert [path.name for path in tmp_path.glob("*previous/*")] == ["step-00000002"] * previous.exists()
        save(previous, small, 2)
    with checkpoints(folder, fresh=True) as own:
        own.begin()
    assert [path.name for path in tmp_path.glob("*resume.previous*/step-*")] == ["step-00000005"]


def test_a_kill_while_states_move_aside_loses_none(tmp_path, small):
    """Killed after the older .previous had moved out of the way, before anything else moved."""
    save(tmp_path / "resume", small, 5)
    save(tmp_path / ".resume.previous.older.tmp", small, 2)
    (tmp_path / ".resume.previous.older.tmp" / MARKER).touch()
    with checkpoints(tmp_path / "resume"):
        pass
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/step-*")) == [
        "resume.previous/step-00000002", "resume/step-00000005"]


HOLDER = """
import sys, torch
from pathlib import Path
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
with Checkpoints(Path(sys.argv[1]), keep=1, ranks=Ranks(0, 1, torch.device("cpu")), fresh=False):
    print("taken", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_cannot_use_one_folder(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "resume")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "taken\n"
    message = (rf"resume\.lock: another run is writing there \(process {holder.pid} on .*, "
               r"since \d+-\d+-\d+ \d+:\d+\).*choose another --save_weight")
    with pytest.raises(UserError, match=message):
        checkpoints(tmp_path / "resume").__enter__()
    holder.kill()
    holder.wait()
    with checkpoints(tmp_path / "resume"):
        pass


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny import TINY
from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.optim import build_optimizer
model = MiniMindForCausalLM(TINY)
optimizer = build_optimizer(model, 1e-2, 0.1)
scaler = torch.amp.GradScaler("cpu", enabled=False)
with Checkpoints(Path(sys.argv[1]), keep=1, ranks=Ranks(0, 1, torch.device("cpu")), fresh=False) as checkpoints:
    checkpoints.save(TrainState(step=1), model, optimizer, scaler)
    for limit in (0, 1, 100, 5000, 20000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoints.save(TrainState(step=2), model, optimizer, scaler)
        except UserError as error:
            print(error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_earlier_states_untouched(tmp_path):
    shown = subprocess.check_output([sys.executable, "-B", "-c", FULL_DISK, tmp_path / "resume", Path(__file__).parent],
                                    text=True)
    assert shown.count("step-00000002: this resume state cannot be written") == 5
    assert shown.count("the ones before it are untouched") == 5
    assert newest(tmp_path / "resume") == (tmp_path / "resume/step-00000001", [])
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-00000001"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_what_others_put_among_the_states_stays(tmp_path, small):
    os.mkfifo(tmp_path / ".step-00000001.replaced")
    (tmp_path / ".step-00000002.replaced").mkdir()
    (tmp_path / ".step-00000002.replaced" / "file").write_text("mine")
    (tmp_path / ".step-00000003.tmp").mkdir()
    names = {path.name for path in tmp_path.iterdir()}
    for step in (1, 2):
        save(tmp_path, small, step)
    assert {path.name for path in tmp_path.glob(".*")} == names
    assert (tmp_path / ".step-00000002.replaced" / "file").read_text() == "mine"
