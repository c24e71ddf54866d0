"""A run overwrites only its own files; others only with --overwrite, which keeps a copy."""

import json
import random
import re
import shutil
import signal
from hashlib import sha256
from pathlib import Path

import kill_and_resume
import pytest
import torch
from data_files import left_private_folder
from programs import NEW, PRETRAIN, REPOSITORY, SFT, TORCHRUN, final_weights, refuse, run, succeed
from safetensors.torch import save_file
from tiny import TINY

from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.weights import finish_writing, read_weights, write_weights
from minimind_sft.training.outputs import Outputs

pytestmark = pytest.mark.slow

NAMES = ("full_sft_32.pth", "full_sft_32.json", "full_sft_32_metrics.jsonl", "full_sft_32_report.html")


def sums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder except locks and prepared data."""
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".lock" and "prepared" not in path.parts}


@pytest.fixture(scope="module")
def trained(sft_data, tmp_path_factory) -> tuple[list, Path]:
    """Returns the flags of a run of three steps and its --save_dir."""
    out = tmp_path_factory.mktemp("trained")
    flags = [*NEW, "--data_path", sft_data, "--batch_size", 4, "--keep_best", 0, "--max_steps", 3]
    succeed(SFT, *flags, "--save_dir", out)
    return flags, out


@pytest.fixture
def rerun(trained, tmp_path) -> list:
    """Returns the flags of that run for a copy of its folder."""
    flags, out = trained
    shutil.copytree(out, tmp_path / "out")
    return [*flags, "--save_dir", tmp_path / "out"]


def test_a_second_run_is_refused_with_three_ways_to_continue(rerun, tmp_path):
    before = sums(tmp_path / "out")
    line = refuse(SFT, *rerun)
    assert re.search(r"full_sft_32\.pth exists already \(step 3 of 3, validation loss \d\.\d{4}\): --from_resume 1 "
                     r"continues that run, --save_weight NAME writes beside it, --overwrite moves it to "
                     r"\S*full_sft_32\.previous$", line)
    assert sums(tmp_path / "out") == before
    succeed(SFT, *rerun, "--save_weight", "other")
    assert sums(tmp_path / "out").items() >= before.items()


def test_overwrite_keeps_the_previous_files_of_one_run(rerun, tmp_path):
    out = tmp_path / "out"
    before = sums(out)
    shown = succeed(SFT, *rerun, "--overwrite", 1, "--learning_rate", "1e-3")
    assert len(re.findall(r"^overwrite .*full_sft_32\.previous$", shown, re.MULTILINE)) == 1
    after = sums(out)
    for name in NAMES:
        assert after[f"full_sft_32.previous/{name}"] == before[name] != after[name]
    states = "checkpoints/full_sft_32_resume"
    assert ({name: sum_ for name, sum_ in before.items() if name.startswith(states)}
            == {name.replace(".previous", ""): sum_ for name, sum_ in after.items()
                if name.startswith(f"{states}.previous")})
    succeed(SFT, *rerun, "--overwrite", 1)
    assert {name: sum_ for name, sum_ in sums(out).items() if name.startswith("full_sft_32.previous/")} == {
        f"full_sft_32.previous/{name}": after[name] for name in NAMES}


def test_bundled_weights_are_protected_too(sft_data, tmp_path):
    for name in ("pretrain_256.pth", "pretrain_256.json"):
        shutil.copy(REPOSITORY / "out" / name, tmp_path)
    before = sums(tmp_path)
    line = refuse(PRETRAIN, "--preset", "demo", "--data_path", sft_data, "--save_dir", tmp_path)
    assert "pretrain_256.pth exists already (step 6,024 of 6,024, validation loss 0.5516): --save_weight NAME" in line
    for flags in ([], ["--overwrite", 1]):
        line = refuse(SFT, "--from_weight", "pretrain", "--save_weight", "pretrain", "--data_path", sft_data,
                      "--save_dir", tmp_path, *flags)
        assert re.search(r"--from_weight reads \S*pretrain_256\.pth, and this run would replace it: choose ", line)
    assert sums(tmp_path) == before


def test_a_run_does_not_move_the_weights_it_starts_from(trained, sft_data, tmp_path):
    """Weights in the other format would move to .previous, where a resumed run could not find them."""
    weights = tmp_path / "full_sft_32.safetensors"
    save_file({name: tensor.clone() for name, tensor in final_weights(trained[1]).items()}, weights)
    sidecar = json.loads((trained[1] / "full_sft_32.json").read_text())
    del sidecar["sha256"]
    weights.with_suffix(".json").write_text(json.dumps(sidecar))
    line = refuse(SFT, "--from_weight", weights, "--data_path", sft_data, "--save_dir", tmp_path, "--overwrite", 1)
    assert re.search(r"--from_weight reads \S*full_sft_32\.safetensors, and this run would replace it", line)


@pytest.mark.parametrize("name", ["full_sft_32_metrics.jsonl", "full_sft_32_report.html", "full_sft_32.safetensors"])
def test_each_existing_file_alone_is_protected(trained, tmp_path, name):
    (tmp_path / name).write_text("mine")
    assert f"{name} exists already: --save_weight NAME" in refuse(SFT, *trained[0], "--save_dir", tmp_path)
    assert f"{name} exists already" in refuse(SFT, *trained[0], "--save_dir", tmp_path, "--from_resume", 1)
    assert (tmp_path / name).read_text() == "mine"


def test_resume_states_alone_are_protected(rerun, tmp_path):
    for name in NAMES:
        (tmp_path / "out" / name).unlink()
    assert "full_sft_32_resume has resume states of an earlier run: --from_resume 1 continues" in refuse(SFT, *rerun)


def test_a_folder_in_place_of_the_weights_is_never_replaced(trained, tmp_path):
    (tmp_path / "full_sft_32.pth").mkdir()
    line = refuse(SFT, *trained[0], "--save_dir", tmp_path, "--overwrite", 1)
    assert "full_sft_32.pth: is a folder, expected a file or nothing" in line


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_a_resumed_run_replaces_only_its_own_files(rerun, trained, tmp_path, with_sidecar):
    """Other weights have been put there since, with their own sidecar or under the run's."""
    rerun = [*rerun, "--max_steps", 5, "--from_resume", 1]
    theirs, model = tmp_path / "out/full_sft_32.pth", read_weights(trained[1] / "full_sft_32.pth").build_model()
    write_weights(tmp_path / "b.pth", model, "float32", {})
    (tmp_path / "b.pth").replace(theirs)
    if with_sidecar:
        (tmp_path / "b.json").replace(theirs.with_suffix(".json"))
    put_there = theirs.read_bytes()
    line = refuse(SFT, *rerun)
    assert re.search(r"full_sft_32\.pth was not written by the run that --from_resume 1 continues: --overw", line)
    assert theirs.read_bytes() == put_there
    shown = succeed(SFT, *rerun, "--overwrite", 1)
    assert "step-00000003" in shown
    assert (tmp_path / "out/full_sft_32.previous/full_sft_32.pth").read_bytes() == put_there
    assert [json.loads(line)["step"] for line in (tmp_path / "out" / NAMES[2]).open()][-1] == 5
    assert "nothing to do" in succeed(SFT, *rerun)


@pytest.mark.parametrize("gone", ["deleted", "replaced"])
def test_a_resumed_run_does_not_rely_on_better_weights_that_are_gone(rerun, tmp_path, gone):
    """The weights with the best validation loss so far are gone, so the run writes its own at its end."""
    weights, best = tmp_path / "out/full_sft_32.pth", ["--keep_best", 1, "--eval_interval", 100]
    succeed(SFT, *rerun, *best, "--overwrite", 1)
    if gone == "deleted":
        weights.unlink()
        weights.with_suffix(".json").unlink()
    else:
        shutil.copy(REPOSITORY / "out/pretrain_256.pth", weights)
    worse = ["--learning_rate", 10, "--max_steps", 6]  # no later validation loss is lower
    shown = succeed(SFT, *rerun, *best, *worse, "--from_resume", 1, "--overwrite", 1)
    assert "wrote " in shown
    assert read_weights(weights).sidecar["training"]["step"] == 6


def test_a_run_without_weights_does_not_replace_those_moved_aside_before(rerun, tmp_path):
    """The run left only metrics, say after running out of memory: --overwrite keeps the earlier weights."""
    out = tmp_path / "out"
    before = sums(out)
    succeed(SFT, *rerun, "--overwrite", 1)
    for path in (out / "full_sft_32.pth", out / "full_sft_32.json"):
        path.unlink()
    shutil.rmtree(out / "checkpoints/full_sft_32_resume")
    metrics = sums(out)[NAMES[2]]
    place = r"full_sft_32_metrics\.jsonl\.previous$"
    assert re.search(f"--overwrite moves it to .*{place}", refuse(SFT, *rerun))
    assert re.search(f"^overwrite .* moved to .*{place}", succeed(SFT, *rerun, "--overwrite", 1), re.MULTILINE)
    after = sums(out)
    assert after[f"{NAMES[2]}.previous"] == metrics
    assert {name: after[f"full_sft_32.previous/{name}"] for name in NAMES} == {name: before[name] for name in NAMES}


def test_a_run_of_an_earlier_version_continues(rerun, tmp_path):
    (tmp_path / "out/checkpoints/full_sft_32_resume/run.json").unlink()
    sidecar = json.loads((tmp_path / "out/full_sft_32.json").read_text())
    del sidecar["run"]
    (tmp_path / "out/full_sft_32.json").write_text(json.dumps(sidecar))
    for steps in (5, 7):
        assert "wrote" in succeed(SFT, *rerun, "--from_resume", 1, "--max_steps", steps)


def test_a_restart_by_torchrun_is_refused_like_the_first_start(rerun, tmp_path):
    before = sums(tmp_path / "out")
    done = run(SFT, *rerun, "--max_steps", 9, module=(*TORCHRUN, "--max-restarts", "1"))
    assert done.returncode != 0
    assert done.stderr.count("full_sft_32.pth exists already") >= 2  # torchrun repeats it in its report
    assert "resume " not in done.stdout
    assert sums(tmp_path / "out") == before


def test_ranks_replace_an_earlier_run_together(rerun, tmp_path):
    before = sums(tmp_path / "out")
    shown = succeed(SFT, *rerun, "--overwrite", 1, module=TORCHRUN)
    assert len(re.findall(r"^overwrite .*full_sft_32\.previous$", shown, re.MULTILINE)) == 1
    assert {name: sums(tmp_path / "out/full_sft_32.previous")[name] for name in NAMES} == {
        name: before[name] for name in NAMES}


def test_states_belong_to_another_run_unless_this_torchrun_wrote_them(tmp_path, monkeypatch):
    outputs = Outputs(tmp_path / "a_16.pth")
    outputs.states.mkdir(parents=True)
    assert not outputs.begun_elsewhere()
    (outputs.states / "step-00000001").mkdir()  # without a record: of an earlier version
    assert outputs.begun_elsewhere()
    (outputs.states / "step-00000001").rmdir()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my-run")
    outputs.claim(fresh=True, overwrite=False, reads=None)
    assert outputs.begin() == {} and not outputs.begun_elsewhere()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert outputs.begun_elsewhere()


@pytest.mark.parametrize("place", ["before a finished file or folder gets its name",
                                   "after a finished file or folder got its name"])
def test_a_kill_while_one_run_replaces_another_loses_neither(tmp_path, place):
    """Kills a run at one of its first renames and resumes it: the old weights are kept, the new ones unchanged."""
    data, out, log = tmp_path / "data.jsonl", tmp_path / "out", tmp_path / "log.txt"
    kill_and_resume.write_conversations(data)
    flags = [*kill_and_resume.COMMON, "--dtype", "float32", "--data_path", str(data), "--save_dir", str(out)]
    train = kill_and_resume.train
    assert kill_and_resume.run(train, [*flags, "--seed", "7"], None, 0, None, log=log) == 0, log.read_text()
    old = {name: (out / name).read_bytes() for name in NAMES}
    shutil.copytree(out, tmp_path / "old")
    anew = [*flags, "--overwrite", "1", "--from_resume", "0"]
    assert kill_and_resume.run(train, anew, None, 0, None, log=log) == 0, log.read_text()
    expected = kill_and_resume.outcome(out)
    for nth in random.Random(1).sample(range(2, 14), 3):
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "old", out)
        assert kill_and_resume.run(train, anew, place, nth, None, log=log) == -signal.SIGKILL, log.read_text()
        assert {path.read_bytes() for path in out.rglob("*") if path.name in NAMES} >= set(old.values())
        status = kill_and_resume.run(train, [*flags, "--overwrite", "1"], None, 0, None, log=log)
        assert status == 0, log.read_text()
        assert kill_and_resume.outcome(out) == expected, nth
        assert {name: (out / "full_sft_32.previous" / name).read_bytes() for name in NAMES} == old


def test_a_sidecar_left_in_a_private_folder_is_found(tmp_path):
    def killed_before_the_sidecar() -> None:
        path.with_suffix(".json").replace(left_private_folder(tmp_path) / "a_16.json")

    torch.manual_seed(0)
    path = tmp_path / "a_16.pth"
    write_weights(path, MiniMindForCausalLM(TINY), "float32", {"stage": "first"})
    first = path.read_bytes()
    write_weights(path, MiniMindForCausalLM(TINY), "float32", {"stage": "second"})
    killed_before_the_sidecar()
    finish_writing(path)
    assert read_weights(path).sidecar["stage"] == "second"
    killed_before_the_sidecar()
    path.write_bytes(first)  # the sidecar describes weights that were never renamed
    finish_writing(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a_16.pth"]


def test_an_unwritable_run_record_is_reported_in_one_line(tmp_path):
    outputs = Outputs(tmp_path / "a_16.pth")
    outputs.claim(fresh=True, overwrite=False, reads=None)
    with pytest.raises(UserError, match=r"run\.json: cannot be written \(No such file or directory\)"):
        outputs.begin()
