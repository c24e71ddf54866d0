"""Runs the programs as people do: stopped, killed, restarted, with the same or other settings."""

import json
import re
import shutil
import signal
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from programs import (
    NEW,
    PATIENCE,
    SFT,
    final_weights,
    program,
    questions,
    refuse,
    run_without_room,
    stopped_after,
    succeed,
    wait_for,
    write_rows,
)

from minimind_sft.errors import UserError
from minimind_sft.settings.spec import changed, recorded
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.resume import compare_with_run
from minimind_sft.training.resume_state import TrainState

pytestmark = pytest.mark.slow


def test_ctrl_c_saves_after_the_current_step_and_resuming_gives_the_same_weights(sft_data, tmp_path):
    common = ["--data_path", sft_data, "--batch_size", 2, "--epochs", 8, "--dropout", 0.1, "--keep_best", 0,
              "--log_interval", 1, "--save_dtype", "float32", *NEW]
    succeed(SFT, *common, "--save_dir", tmp_path / "whole")

    command, options = program(SFT, *common, "--save_dir", tmp_path / "cut")
    status, shown = stopped_after(12, signal.SIGINT, tmp_path / "cut/full_sft_32_metrics.jsonl", command, **options)
    assert status == 130, shown
    assert "stopping after this step; press Ctrl-C again to quit now" in shown
    assert "stopped by SIGINT after step 13" in shown
    assert [line.split()[0] for line in shown.splitlines()[-8:]] == [
        "time", "loss", "validation", "wrote", "report", "chat", "score", "curves"]
    assert (tmp_path / "cut/full_sft_32.pth").exists()
    report = tmp_path / "cut/full_sft_32_report.html"
    assert "Interrupted at step" in report.read_text(encoding="utf-8")

    shown = succeed(SFT, *common, "--save_dir", tmp_path / "cut", "--from_resume", 1)
    assert re.search(r"resume +\S*step-\d{8}", shown) and "Interrupted" not in report.read_text(encoding="utf-8")
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

    shown = succeed(SFT, *common, "--save_dir", tmp_path / "cut", "--from_resume", 1)
    assert "is finished" in shown


def test_resuming_without_a_state_starts_a_new_run(sft_data, tmp_path):
    shown = succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2, "--from_resume", 1)
    assert "no resume state in" in shown and "starting from the beginning" in shown


def test_resuming_with_other_data_is_refused(sft_data, tmp_path):
    succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2)
    other = write_rows(tmp_path / "other.jsonl", questions(41))
    line = refuse(SFT, *NEW, "--data_path", other, "--save_dir", tmp_path, "--max_steps", 2, "--from_resume", 1)
    assert re.search(r"--from_resume 1: data \(--data_path\) was \w{64} in .*step-00000002, now it is \w{64}; "
                     "--allow_changed_data 1", line)


@pytest.fixture(scope="module")
def stopped_run(sft_data, tmp_path_factory) -> Path:
    """Returns the --save_dir of a run on `sft_data` that a signal stopped after four steps, evaluated after each."""
    out = tmp_path_factory.mktemp("stopped")
    command, options = program(SFT, *NEW, "--save_dir", out, "--data_path", sft_data, "--batch_size", 1,
                               "--log_interval", 1, "--keep_best", 0, "--eval_interval", 1)
    status, shown = stopped_after(3, signal.SIGTERM, out / "full_sft_32_metrics.jsonl", command, **options)
    assert status == 143, shown
    return out


@pytest.fixture
def stopped(stopped_run, tmp_path) -> list:
    """Returns the flags that resume it in a copy of its folder, `tmp_path`; the data are to be added."""
    shutil.copytree(stopped_run, tmp_path, dirs_exist_ok=True)
    return [*NEW, "--save_dir", tmp_path, "--keep_best", 0, "--eval_interval", 1, "--from_resume", 1]


def test_changed_data_is_allowed_on_request(stopped, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", questions(80))
    shown = succeed(SFT, *stopped, "--data_path", other, "--allow_changed_data", 1)
    assert re.search(r"data \(--data_path\) was \w{64}, now it is \w{64} \(--allow_changed_data 1\)", shown)
    assert "wrote" in shown


def test_a_resumed_run_reports_changed_settings(stopped, sft_data):
    shown = succeed(SFT, *stopped, "--data_path", sft_data, "--learning_rate", "1e-3", "--epochs", 3)
    assert "--learning_rate was 0.0005, now it is 0.001" in shown
    assert "--epochs was 2, now it is 3" in shown
    assert re.search(r"note        the learning rate jumps: [\d.e-]+ with the previous settings, [\d.e-]+ with", shown)
    assert "weight_decay was" not in shown


def test_another_template_is_refused_even_then(stopped, sft_data, tmp_path):
    (path,) = (tmp_path / "checkpoints/full_sft_32_resume").glob("step-*")
    record = json.loads((path / "state.json").read_text())
    record["state"]["identity"]["chat_template"] = "another"
    (path / "state.json").write_text(json.dumps(record))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert f"--from_resume 1: chat_template was another in {path}, now it is " in refuse(
        SFT, *stopped, "--data_path", sft_data, "--allow_changed_data", 1)


def test_a_new_run_sets_the_states_of_the_earlier_one_aside(stopped, sft_data):
    common = [*stopped, "--data_path", sft_data]
    shown = succeed(SFT, *common, "--max_steps", 2, "--from_resume", 0, "--overwrite", 1)
    assert re.search(r"overwrite +the earlier run's resume states moved to .*full_sft_32_resume\.previous\n", shown)
    assert "is finished (2 steps)" in succeed(SFT, *common, "--max_steps", 2)


def test_a_finished_run_continues_to_more_steps_and_refuses_fewer(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data, "--batch_size", 4, "--keep_best", 0]
    succeed(SFT, *common, "--max_steps", 4)
    assert "--max_steps was 4, now it is 7" in succeed(SFT, *common, "--max_steps", 7, "--from_resume", 1)
    sidecar = json.loads((tmp_path / "full_sft_32.json").read_text())
    assert sidecar["training"]["step"] == 7
    assert "is finished (7 steps); nothing to do" in succeed(SFT, *common, "--max_steps", 5, "--from_resume", 1)
    (tmp_path / "full_sft_32.pth").unlink()
    assert "full_sft_32.pth is gone" in refuse(SFT, *common, "--max_steps", 7, "--from_resume", 1)


def test_asking_for_fewer_steps_does_not_end_an_unfinished_run(stopped, sft_data):
    line = refuse(SFT, *stopped, "--data_path", sft_data, "--max_steps", 2)
    assert re.search(r"--from_resume 1: the run has taken .* steps already, more than the 2 that --epochs and", line)


def test_asking_for_exactly_the_steps_made_ends_the_run(stopped, sft_data, tmp_path):
    (state,) = (tmp_path / "checkpoints/full_sft_32_resume").glob("step-*")
    steps = int(state.name[5:])
    metrics = [json.loads(line) for line in (tmp_path / "full_sft_32_metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in line and line["step"] == steps for line in metrics)
    shown = succeed(SFT, *stopped, "--data_path", sft_data, "--max_steps", steps)
    (wrote,) = (line for line in shown.splitlines() if line.startswith("wrote"))
    assert "validation loss" not in wrote  # it is that of the last weights, not of the best ones


def test_unusable_states_do_not_make_a_run_start_over(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data]
    succeed(SFT, *common, "--max_steps", 2)
    (state,) = (tmp_path / "checkpoints/full_sft_32_resume").glob("step-*")
    (state / "state.json").write_text("{}")
    weights = (tmp_path / "full_sft_32.pth").read_bytes()
    line = refuse(SFT, *common, "--max_steps", 2, "--from_resume", 1)
    assert re.search(r"none of the resume states in .* can be used \(the newest: .*state\.json was damaged", line)
    assert (tmp_path / "full_sft_32.pth").read_bytes() == weights


def test_a_state_without_a_scaler_continues_in_float16(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data, "--batch_size", 4]
    succeed(SFT, *common, "--max_steps", 2, "--dtype", "float32")
    shown = succeed(SFT, *common, "--max_steps", 4, "--dtype", "float16", "--from_resume", 1)
    assert "--dtype was float32, now it is float16" in shown and "wrote" in shown


def test_a_full_disk_when_weights_are_written_is_reported_in_one_line(sft_data, tmp_path):
    done = run_without_room(100_000, SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2)
    assert re.search(r"full_sft_32\.pth: cannot be written", done.stderr)


def test_a_broken_pipe_does_not_stop_a_run(sft_data, tmp_path):
    command, options = program(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 8,
                               "--eval_interval", 1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
    assert "model" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert (tmp_path / "full_sft_32.pth").exists()


def test_a_second_run_in_the_same_folder_is_refused(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data]
    command, options = program(SFT, *common, "--batch_size", 1, "--epochs", 1000)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for((tmp_path / "full_sft_32_metrics.jsonl").exists, process)
        line = refuse(SFT, *common)
        assert re.search(rf"full_sft_32_resume\.lock: another run is writing there \(process {process.pid} on .*, "
                         r"since \d+-\d+-\d+ \d+:\d+\)", line)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert "wrote" in succeed(SFT, *common, "--max_steps", 1, "--overwrite", 1)


READS_FOR_EVER = """
import runpy, sys, time
from pathlib import Path
from minimind_sft.data.samples import SFTEncoder
begun, *sys.argv = sys.argv[1:]
SFTEncoder.encode = lambda *_: (Path(begun).touch(), time.sleep(3600))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ctrl_c_before_training_starts_is_one_line(tmp_path):
    rows, begun = write_rows(tmp_path / "long.jsonl", questions(40_000)), tmp_path / "begun"
    command, options = program(SFT, *NEW, "--data_path", rows, "--save_dir", tmp_path / "out")
    command = [command[0], "-c", READS_FOR_EVER, str(begun), *command[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    wait_for(begun.exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.splitlines()[-1] == "interrupted"


def test_a_state_without_a_setting_that_was_added_later_means_its_default():
    settings, said = SFTSettings(), []
    fresh = TrainState(identity={**recorded(settings, "samples"), "data": "a", "model.aux_loss_scope": "document"},
                       settings=recorded(settings, "weights"))
    earlier = TrainState(identity={"data": "a"}, settings={})
    compare_with_run(earlier, fresh, Path("step-00000001"), False, said.append)
    assert said == []

    fresh.settings["grad_clip"] = 2.0
    compare_with_run(earlier, fresh, Path("step-00000001"), False, said.append)
    assert said == ["resume      --grad_clip was 1.0, now it is 2.0"]

    fresh.identity["model.aux_loss_scope"] = "batch"
    with pytest.raises(UserError, match=r"model.aux_loss_scope was document in step-00000001, now it is batch"):
        compare_with_run(earlier, fresh, Path("step-00000001"), False, said.append)


@pytest.mark.parametrize(("change", "message"), [
    ({"train_on_prompt": True}, "supervised_prompt (--train_on_prompt) was 0 in x, now it is 1"),
    ({"train_turns": "last"}, "supervised_turns (--train_turns) was all in x, now it is last"),
    ({"max_seq_len": 9}, "max_seq_len was 768 in x, now it is 9"),
])
def test_a_resumed_run_with_other_samples_names_the_flag(change, message):
    before, after = (TrainState(identity=recorded(settings, "samples"))
                     for settings in (SFTSettings(), changed(SFTSettings(), **change)))
    with pytest.raises(UserError) as error:
        compare_with_run(before, after, Path("x"), False, print)
    assert str(error.value) == f"--from_resume 1: {message}; --allow_changed_data 1 continues anyway"
