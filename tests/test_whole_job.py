"""The programs as people run them: in a process of their own, on small data, with good and bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAIN, SFT, CHAT = "trainer/train_pretrain.py", "trainer/train_full_sft.py", "eval_llm.py"
NEW = ["--from_weight", "none", "--hidden_size", "32", "--num_hidden_layers", "2"]


def program(script: str, *arguments: object, module: tuple[str, ...] = (), **environment: str) -> list:
    return [[sys.executable, *module, str(REPOSITORY / script), *map(str, arguments)],
            {"cwd": REPOSITORY, "text": True, "encoding": "utf-8",
             "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "COLUMNS": "100", **environment}}]


def run(script: str, *arguments: object, typed: str = "", **keywords) -> subprocess.CompletedProcess:
    command, options = program(script, *arguments, **keywords)
    return subprocess.run(command, capture_output=True, input=typed, timeout=300, **options)


def succeed(script: str, *arguments: object, **keywords) -> str:
    done = run(script, *arguments, **keywords)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuse(script: str, *arguments: object, **keywords) -> str:
    """The one line that a bad input gets."""
    done = run(script, *arguments, **keywords)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    return errors[0]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int) -> list[dict]:
    return [{"conversations": [{"role": "user", "content": f"Say {i}."},
                               {"role": "assistant", "content": f"It is {i}."}],
             "kind": "even" if i % 2 == 0 else "odd"} for i in range(count)]


@pytest.fixture(scope="module")
def sft_data(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "sft.jsonl", questions(40))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A folder with out/pretrain_32.pth, made by the recipe."""
    folder = tmp_path_factory.mktemp("out")
    data = write_rows(folder / "text.jsonl", [{"text": f"The number {i} comes before {i + 1}."} for i in range(60)])
    shown = succeed(PRETRAIN, "--data_path", data, "--save_dir", folder, "--hidden_size", 32, "--num_hidden_layers", 2,
                    "--batch_size", 8, "--accumulation_steps", 2, "--max_seq_len", 64)
    assert "wrote" in shown
    return folder


def test_pretrain_then_sft_then_chat(pretrained, sft_data, tmp_path):
    shown = succeed(SFT, "--from_weight", pretrained / "pretrain_32.pth", "--data_path", sft_data, "--save_dir",
                    tmp_path, "--batch_size", 4, "--learning_rate", "3e-3", "--epochs", 30, "--eval_share", "0.1")
    losses = [float(x) for x in re.findall(r"validation loss ([\d.]+)", shown)]
    assert len(losses) >= 10 and min(losses) < 0.5 * losses[0], "the validation loss falls"
    assert "perplexity" in shown

    sidecar = json.loads((tmp_path / "full_sft_32.json").read_text())
    assert sidecar["stage"] == "full_sft"
    assert sidecar["model"]["hidden_size"] == 32
    assert "trainer/train_full_sft.py" in sidecar["training"]["command"]
    best = min(json.loads(line)["eval_loss"] for line in (tmp_path / "full_sft_32_metrics.jsonl").open()
               if "eval_loss" in json.loads(line))
    assert sidecar["training"]["eval_loss"] == pytest.approx(best)
    tensors = torch.load(tmp_path / "full_sft_32.pth", weights_only=True)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}

    chatted = succeed(CHAT, "--save_dir", tmp_path, "--temperature", 0, "--show_speed", 0, "--max_new_tokens", 12,
                      typed="Say 2.\nSay 3.\n\n")
    assert "It is" in chatted
    scored = succeed(CHAT, "--save_dir", tmp_path, "--score", sft_data, "--max_new_tokens", 12)
    rows = scored.strip().splitlines()
    assert rows[0].split() == ["kind", "questions", "exact", "match"]
    assert [row.split()[:2] for row in rows[1:3]] == [["even", "20"], ["odd", "20"]]
    assert re.fullmatch(r"exact match: \d+\.\d% \(40 questions\)", rows[-1])


def test_pretrained_weights_continue_text(pretrained):
    shown = succeed(CHAT, "--save_dir", pretrained, "--weight", "pretrain", "--prompt", "The number",
                    "--temperature", 0, "--max_new_tokens", 5)
    assert shown.startswith("> The number\n")
    assert "tokens/s" in shown


def test_sampled_answers_depend_on_the_seed_alone(pretrained):
    answer = [succeed(CHAT, "--save_dir", pretrained, "--weight", "pretrain", "--prompt", "The", "--show_speed", 0,
                      "--max_new_tokens", 20, "--temperature", 1.5, "--top_k", 50, "--top_p", 0.95,
                      "--repetition_penalty", 1.2, "--seed", seed) for seed in (1, 1, 2)]
    assert answer[0] == answer[1] != answer[2]


def test_mixture_of_experts_has_its_own_file(sft_data, tmp_path):
    succeed(SFT, *NEW, "--use_moe", 1, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 3)
    tensors = torch.load(tmp_path / "full_sft_32_moe.pth", weights_only=True)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in tensors
    metrics = [json.loads(line) for line in (tmp_path / "full_sft_32_moe_metrics.jsonl").open()]
    assert any("aux_loss" in line for line in metrics)
    assert "exact match" in succeed(CHAT, "--save_dir", tmp_path, "--score", sft_data, "--max_new_tokens", 3)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "full_sft_32.pth", weights_only=True)


def test_ctrl_c_saves_after_the_step_in_hand_and_resume_ends_with_the_same_weights(sft_data, tmp_path):
    common = ["--data_path", sft_data, "--batch_size", 2, "--epochs", 8, "--dropout", 0.1, "--keep_best", 0,
              "--log_interval", 1, "--save_dtype", "float32", *NEW]
    succeed(SFT, *common, "--save_dir", tmp_path / "whole")

    command, options = program(SFT, *common, "--save_dir", tmp_path / "cut")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    metrics = tmp_path / "cut/full_sft_32_metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 15, process)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "stopped by SIGINT after step" in shown
    assert (tmp_path / "cut/full_sft_32.pth").exists()

    shown = succeed(SFT, *common, "--save_dir", tmp_path / "cut", "--from_resume", 1)
    assert re.search(r"resume +\S*step-\d{8}", shown)
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

    shown = succeed(SFT, *common, "--save_dir", tmp_path / "cut", "--from_resume", 1)
    assert "is finished" in shown


def test_resume_without_a_state_says_so_and_starts(sft_data, tmp_path):
    shown = succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2, "--from_resume", 1)
    assert "no resume state in" in shown and "starting from the beginning" in shown


def test_resume_with_other_data_is_refused_by_name(sft_data, tmp_path):
    succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2)
    other = write_rows(tmp_path / "other.jsonl", questions(41))
    line = refuse(SFT, *NEW, "--data_path", other, "--save_dir", tmp_path, "--max_steps", 2, "--from_resume", 1)
    assert re.search(r"--from_resume 1: data was \w{64} in .*step-00000002, now it is \w{64}; --allow_changed_data 1",
                     line)


def test_changed_data_is_allowed_to_those_who_mean_it(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--from_resume", 1]
    other = write_rows(tmp_path / "other.jsonl", questions(80))
    stop_after_a_step(common, sft_data, tmp_path)
    shown = succeed(SFT, *common, "--data_path", other, "--allow_changed_data", 1)
    assert re.search(r"data was \w{64}, now it is \w{64} \(--allow_changed_data 1\)", shown)
    assert "wrote" in shown


def test_settings_that_a_resumed_run_changes_are_told(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--from_resume", 1]
    stop_after_a_step(common, sft_data, tmp_path)
    shown = succeed(SFT, *common, "--data_path", sft_data, "--learning_rate", "1e-3", "--epochs", 3)
    assert "--learning_rate was 0.0005, now it is 0.001" in shown
    assert "--epochs was 2, now it is 3" in shown
    assert "weight_decay was" not in shown


def test_another_template_is_refused_even_so(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--from_resume", 1, "--data_path", sft_data, "--allow_changed_data", 1]
    stop_after_a_step(common, sft_data, tmp_path)
    (path,) = (tmp_path / "checkpoints/full_sft_32_resume").iterdir()
    record = json.loads((path / "state.json").read_text())
    record["state"]["identity"]["chat_template"] = "another"
    (path / "state.json").write_text(json.dumps(record))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert f"--from_resume 1: chat_template was another in {path}, now it is " in refuse(SFT, *common)


def test_a_training_that_starts_anew_sets_the_earlier_one_s_states_aside(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data]
    stop_after_a_step(common, sft_data, tmp_path)
    shown = succeed(SFT, *common, "--max_steps", 2)
    assert "resume      an earlier training's states are now in" in shown and "full_sft_32_resume.previous" in shown
    assert "is finished (2 steps)" in succeed(SFT, *common, "--max_steps", 2, "--from_resume", 1)


def test_a_finished_training_goes_on_where_more_is_asked_for_and_refuses_less(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data, "--batch_size", 4, "--keep_best", 0]
    succeed(SFT, *common, "--max_steps", 4)
    assert "--max_steps was 4, now it is 7" in succeed(SFT, *common, "--max_steps", 7, "--from_resume", 1)
    sidecar = json.loads((tmp_path / "full_sft_32.json").read_text())
    assert sidecar["training"]["step"] == 7
    assert "is finished (7 steps); nothing to do" in succeed(SFT, *common, "--max_steps", 5, "--from_resume", 1)
    (tmp_path / "full_sft_32.pth").unlink()
    assert "full_sft_32.pth is gone" in refuse(SFT, *common, "--max_steps", 7, "--from_resume", 1)


def test_an_unfinished_training_is_not_ended_by_asking_for_less(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--from_resume", 1]
    stop_after_a_step([*common, "--max_steps", 70], sft_data, tmp_path, after=3)
    line = refuse(SFT, *common, "--data_path", sft_data, "--max_steps", 2)
    assert re.search(r"--from_resume 1: \d+ steps are taken already, more than the 2 that --epochs and", line)


def test_states_that_cannot_be_used_are_no_reason_to_start_over(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data]
    succeed(SFT, *common, "--max_steps", 2)
    (state,) = (tmp_path / "checkpoints/full_sft_32_resume").iterdir()
    (state / "state.json").write_text("{}")
    weights = (tmp_path / "full_sft_32.pth").read_bytes()
    line = refuse(SFT, *common, "--max_steps", 2, "--from_resume", 1)
    assert re.search(r"none of the resume states in .* can be used \(the newest: .*state\.json was damaged", line)
    assert (tmp_path / "full_sft_32.pth").read_bytes() == weights


def test_a_state_without_a_scaler_goes_on_in_float16(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data, "--batch_size", 4]
    succeed(SFT, *common, "--max_steps", 2, "--dtype", "float32")
    shown = succeed(SFT, *common, "--max_steps", 4, "--dtype", "float16", "--from_resume", 1)
    assert "--dtype was float32, now it is float16" in shown and "wrote" in shown


def test_a_disk_that_is_full_when_weights_are_written_is_one_line(sft_data, tmp_path):
    code = ("import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY));"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    command, options = program(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2)
    done = subprocess.run([command[0], "-c", code, *command[1:]], capture_output=True, timeout=100, **options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"full_sft_32\.pth: cannot be written", done.stderr)


def test_a_pipe_that_nobody_reads_any_more_does_not_end_a_training(sft_data, tmp_path):
    command, options = program(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 8,
                               "--eval_interval", 1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
    assert "model" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(100) == 0
    assert (tmp_path / "full_sft_32.pth").exists()


def stop_after_a_step(flags: list, data: Path, out: Path, after: int = 1) -> None:
    """Leaves the resume state of a training that a signal stopped, `after` so many steps or a few more."""
    metrics = out / "full_sft_32_metrics.jsonl"
    command, options = program(SFT, *flags, "--data_path", data, "--batch_size", 1, "--log_interval", 1)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    wait_for(lambda: metrics.exists() and f'"step": {after}, "epoch"' in metrics.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143


def wait_for(happened: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_a_second_training_in_the_same_place_is_refused(sft_data, tmp_path):
    common = [*NEW, "--save_dir", tmp_path, "--data_path", sft_data]
    command, options = program(SFT, *common, "--batch_size", 1, "--epochs", 1000)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for((tmp_path / "full_sft_32_metrics.jsonl").exists, process)
        line = refuse(SFT, *common)
        assert re.search(rf"full_sft_32_resume\.lock: another training is writing there .*{process.pid}", line)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert "wrote" in succeed(SFT, *common, "--max_steps", 1)


def test_ctrl_c_before_the_training_starts_is_one_line(tmp_path):
    rows = write_rows(tmp_path / "long.jsonl", questions(40_000))
    command, options = program(SFT, *NEW, "--data_path", rows, "--save_dir", tmp_path / "out")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert "model" in process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_precisions_train(sft_data, tmp_path, dtype):
    shown = succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 6, "--dtype", dtype)
    assert f"{dtype} on cpu" in shown
    assert all(torch.isfinite(tensor).all() for tensor in final_weights(tmp_path).values())


def test_two_ranks_end_with_the_weights_of_one(sft_data, tmp_path):
    common = [*NEW, "--data_path", sft_data, "--max_steps", 6, "--save_dtype", "float32", "--dtype", "float32"]
    succeed(SFT, *common, "--batch_size", 4, "--save_dir", tmp_path / "one")
    succeed(SFT, *common, "--batch_size", 2, "--save_dir", tmp_path / "two",
            module=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-5)


def test_wandb_logs_offline(sft_data, tmp_path):
    succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2, "--use_wandb", 1,
            "--log_interval", 1, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    (run_folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert b"learning_rate" in next(run_folder.glob("*.wandb")).read_bytes()


def test_torch_compile_trains_to_the_same_losses(sft_data, tmp_path):
    common = [*NEW, "--data_path", sft_data, "--max_steps", 2, "--log_interval", 1, "--dtype", "float32"]
    losses = []
    for compiled in (0, 1):
        folder = tmp_path / str(compiled)
        succeed(SFT, *common, "--save_dir", folder, "--use_compile", compiled)
        losses.append([line["loss"] for line in map(json.loads, (folder / "full_sft_32_metrics.jsonl").open())
                       if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


GOOD_ROW = json.dumps(questions(1)[0]).encode() + b"\n"
BAD_DATA = {
    "broken JSON": (GOOD_ROW + b'{"conversations": [\n', r"bad\.jsonl:2: "),
    "invalid UTF-8": (GOOD_ROW + b'{"conversations": "\xff"}\n', r"bad\.jsonl:2: .*UTF-8"),
    "unknown role": (b'{"conversations": [{"role": "robot", "content": "x"}]}\n',
                     r"bad\.jsonl:1: conversations\[0\]\.role: expected system, user, assistant or tool"),
    "no assistant": (GOOD_ROW + b'{"conversations": [{"role": "user", "content": "x"}]}\n',
                     r"bad\.jsonl:2: conversations: expected at least one assistant turn"),
    "empty file": (b"", r"bad\.jsonl: the file has no rows"),
    "content is a number": (b'{"conversations": [{"role": "user", "content": 3}]}\n',
                            r"bad\.jsonl:1: conversations\[0\]\.content: expected a string"),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_data_is_named_in_one_line(tmp_path, fault):
    content, message = BAD_DATA[fault]
    out = tmp_path / "out"
    assert re.search(message, refuse(SFT, *NEW, "--data_path", damaged(tmp_path / "bad.jsonl", content),
                                     "--save_dir", out))
    assert not list(tmp_path.rglob("*.pth"))


def test_a_file_in_which_every_row_is_dropped_is_an_error(tmp_path):
    rows = [{"conversations": [{"role": "user", "content": "long " * 100}, {"role": "assistant", "content": "x"}]}]
    line = refuse(SFT, *NEW, "--data_path", write_rows(tmp_path / "a.jsonl", rows), "--save_dir", tmp_path,
                  "--max_seq_len", 32)
    assert "no row of 1 keeps a supervised token within --max_seq_len 32" in line


BAD_FLAGS = {
    "missing data": (["--data_path", "nowhere.jsonl"], r"nowhere\.jsonl"),
    "missing weights": (["--from_weight", "nobody"],
                        r"--from_weight nobody: no nobody_32\[_moe\]\.pth or \.safetensors in .*; there is "),
    "unknown dtype": (["--dtype", "int4"], r"--dtype: invalid choice: 'int4'"),
    "unknown device": (["--device", "abacus"], r"--device abacus: expected auto, cpu, cuda"),
    "unwritable folder": (["--save_dir", "/proc/out"], r"--save_dir /proc/out.*: cannot write there"),
}


@pytest.mark.parametrize("fault", BAD_FLAGS)
def test_a_bad_flag_is_named_in_one_line(sft_data, tmp_path, fault):
    flags, message = BAD_FLAGS[fault]
    given = [*NEW, "--data_path", sft_data, "--save_dir", tmp_path, *flags]
    assert re.search(message, refuse(SFT, *given))


def test_flags_that_disagree_with_the_sidecar_are_named_with_both_values(pretrained, sft_data, tmp_path):
    line = refuse(SFT, "--from_weight", pretrained / "pretrain_32.pth", "--num_hidden_layers", 8,
                  "--data_path", sft_data, "--save_dir", tmp_path)
    assert re.search(r"--num_hidden_layers is 8, but .*pretrain_32\.pth has num_hidden_layers 2", line)


def test_another_tokenizer_is_refused(pretrained, sft_data, tmp_path):
    other = tmp_path / "tokenizer"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((REPOSITORY / "model" / name).read_text(encoding="utf-8"), encoding="utf-8")
    state = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    state["added_tokens"][30]["content"] = "<|renamed|>"
    state["model"]["vocab"]["<|renamed|>"] = state["model"]["vocab"].pop("<|buffer4|>")
    (other / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    line = refuse(SFT, "--from_weight", pretrained / "pretrain_32.pth", "--data_path", sft_data,
                  "--save_dir", tmp_path, "--tokenizer_path", other)
    assert re.search(r"pretrain_32\.json: tokenizer is \w{64}, here it is \w{64}", line)


def test_a_vocabulary_that_does_not_fit_is_named(shared, sft_data, tmp_path):
    weights = shared / "reference/minimind/dense/weights.pth"
    line = refuse(SFT, "--from_weight", weights, "--data_path", sft_data, "--save_dir", tmp_path)
    assert re.search(r"weights\.pth: vocab_size is 512, the tokenizer model has 6400", line)
    line = refuse(CHAT, "--weight", weights, "--prompt", "x")
    assert "vocab_size is 512" in line


def test_chat_with_missing_weights_says_what_makes_them(tmp_path):
    line = refuse(CHAT, "--save_dir", tmp_path, "--weight", "full_sft", "--hidden_size", 31)
    assert "python trainer/train_full_sft.py makes it" in line
