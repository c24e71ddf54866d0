"""The programs without names that Windows lacks (tests/without_posix/sitecustomize.py), with spawned workers."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import (
    CHAT,
    NEW,
    PATIENCE,
    PRETRAIN,
    REPOSITORY,
    SFT,
    program,
    questions,
    refuse,
    run,
    succeed,
    wait_for,
    write_rows,
)

from minimind_sft.data.workers import CHUNK_BYTES, MAX_SPAWNED

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="nothing to take away")]
WITHOUT_POSIX = {"PYTHONPATH": os.pathsep.join([
    str(Path(__file__).parent / "without_posix"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory) -> Path:
    """Writes enough long texts for several worker processes."""
    workers = min(os.cpu_count(), MAX_SPAWNED)
    text = "Say it again, and then say it once more. " * 500
    return write_rows(tmp_path_factory.mktemp("many") / "many.jsonl",
                      [{"text": f"{number}: {text}"} for number in range(4 * workers * CHUNK_BYTES // len(text) + 30)])


def spawned(log: Path) -> int:
    """Returns how many worker processes were started since the last call."""
    count = log.read_text(encoding="utf-8").count("--multiprocessing-fork")
    log.unlink()
    return count


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core works alone")
def test_workers_are_spawned_for_data_and_for_batches(many_rows, tmp_path):
    environment = {**WITHOUT_POSIX, "WITHOUT_POSIX_LOG": str(tmp_path / "log")}
    common = [*NEW, "--data_path", many_rows, "--max_seq_len", 64, "--batch_size", 2, "--eval_share", 0,
              "--num_workers", 1, "--save_dtype", "float32", "--save_dir"]
    shown = succeed(PRETRAIN, *common, tmp_path / "there", "--max_steps", 4, **environment)
    workers = min(os.cpu_count(), MAX_SPAWNED)
    assert "wrote" in shown and spawned(tmp_path / "log") == workers + 1

    succeed(PRETRAIN, *common, tmp_path / "here", "--max_steps", 4)
    for name in ("pretrain_32.pth", "checkpoints/pretrain_32_resume/step-00000004/weights-00001-of-00001.safetensors"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()

    done = run("scripts/inspect_data.py", many_rows, "--rows", "text", "--max_seq_len", 64, **environment)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert spawned(tmp_path / "log") == workers


ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    print("\\n== next ==", flush=True)
"""


def said_by(*commands: list, typed: str = "") -> list[str]:
    """Runs programs in one process, as starting it takes longer than most of them; returns what each one prints."""
    given = json.dumps([[str(REPOSITORY / script), *map(str, arguments)] for script, *arguments in commands])
    command, options = program(SFT, **WITHOUT_POSIX)
    done = subprocess.run([command[0], "-c", ONE_AFTER_THE_OTHER, given], input=typed, capture_output=True,
                          timeout=PATIENCE, **options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout.split("\n== next ==\n")[:-1]


def test_converting_training_resuming_chatting_inspecting_and_learning_a_tokenizer(sft_data, tmp_path):
    converted, out = tmp_path / "sft.jsonl", ["--save_dir", tmp_path / "out"]
    training = [SFT, *NEW, *out, "--data_path", converted, "--eval_share", 0]
    text = write_rows(tmp_path / "text.jsonl", [{"text": " ".join(f"word{i}" for i in range(40))}] * 3)
    _, trained, resumed, _, inspected, estimated, learned = said_by(
        ["scripts/convert_data.py", sft_data, "--out", converted],
        [*training, "--max_steps", 2],
        [*training, "--max_steps", 3, "--from_resume", 1],
        [CHAT, *out, "--weight", "full_sft", "--hidden_size", 32, "--max_new_tokens", 3],
        ["scripts/inspect_data.py", converted, "--html", tmp_path / "page.html"],
        ["scripts/estimate_memory.py", "--preset", "demo", "--device", "cpu"],
        ["trainer/train_tokenizer.py", "--data_path", text, "--vocab_size", 300, "--save_dir", tmp_path / "tokenizer"],
        typed="Say 1.\n\n")
    assert "40 of 40 rows" in trained
    assert re.search(r"resume +\S*step-00000002", resumed) and "wrote" in resumed
    assert "40" in inspected and (tmp_path / "page.html").exists()
    assert "peak" in estimated
    assert "with 300 tokens" in learned


def test_a_bad_row_is_reported_in_one_line(tmp_path):
    data = write_rows(tmp_path / "bad.jsonl", [*questions(3), {"conversations": 5}])
    assert "bad.jsonl:4: " in refuse(SFT, *NEW, "--data_path", data, "--save_dir", tmp_path / "out", **WITHOUT_POSIX)


def test_a_running_run_locks_its_folder_until_it_ends(sft_data, tmp_path):
    common = [*NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--batch_size", 1, "--log_interval", 1]
    metrics = tmp_path / "full_sft_32_metrics.jsonl"
    command, options = program(SFT, *common, "--epochs", 10_000, **WITHOUT_POSIX)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for_steps(metrics, process)
        line = refuse(SFT, *common, **WITHOUT_POSIX)
        assert re.search(rf"full_sft_32_resume\.lock: another run is writing there \(process {process.pid} on .*, "
                         r"since \d+-\d+-\d+ \d+:\d+\)", line)
    finally:
        process.kill()
        process.wait()

    metrics.unlink()
    process = subprocess.Popen([*command, "--overwrite"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    wait_for_steps(metrics, process)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate()
    assert process.returncode == 130 and "stopped by SIGINT after step" in shown, shown


def wait_for_steps(metrics: Path, process: subprocess.Popen) -> None:
    wait_for(lambda: metrics.exists() and '"loss"' in metrics.read_text(encoding="utf-8"), process)
