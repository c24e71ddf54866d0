"""Loggers show what the metrics file holds, with the real packages, and never stop or change a run."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kill_and_resume import repeatable_lines
from programs import PATIENCE, REPOSITORY
from tiny_training import Training

from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.loggers import background, to_wandb
from minimind_sft.training.loggers.background import BackgroundLogger
from minimind_sft.training.loggers.loggers import Loggers, start_loggers
from minimind_sft.training.loggers.to_tensorboard import TensorBoardLogger, markdown_table

ANSWER = {"kind": "calls", "question": "Say | hi\n<b>*now*", "expected": "hi", "answer": "ho", "exact": False}
STEPS = [{"step": 0, "run": {"id": "x", "total_steps": 3}},
         {"step": 1, "loss": 2.5, "epoch": 0, "grad_norm": None},
         {"step": 2, "loss": 1.5, "skipped": "no supervised token in it"},
         {"step": 2, "eval_loss": 2.0, "by_kind": {"a/b": {"loss": 0.5, "tokens": 3}},
          "exact_by_kind": {"calls": [1, 4], "none": [0, 0]}, "answers": [ANSWER]},
         {"step": 3, "warning": "The validation loss rises.", "name": "validation_rises"},
         {"step": 3, "end": "finished", "seconds": 1.5}]
NUMBERS = {"loss": [(1, 2.5), (2, 1.5)], "epoch": [(1, 0)], "eval_loss": [(2, 2.0)], "by_kind/a/b/loss": [(2, 0.5)],
           "by_kind/a/b/tokens": [(2, 3)], "exact_by_kind/calls": [(2, 0.25)], "seconds": [(3, 1.5)]}
TABLES = [(2, "warnings", [{"warning": "no supervised token in it"}]), (2, "answers", [ANSWER]),
          (3, "warnings", [{"warning": "The validation loss rises."}])]


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Lets loggers take as long as they need, unless a test says otherwise."""
    for module, name in ((background, "START_SECONDS"), (background, "FINISH_SECONDS"), (to_wandb, "INIT_SECONDS"),
                         (to_wandb, "FINISH_SECONDS")):
        monkeypatch.setattr(module, name, PATIENCE)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the real loggers, which have neither keys nor a network."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SWANLAB_"))]:
        monkeypatch.delenv(name)
    for name, value in {"HOME": tmp_path, "NETRC": tmp_path / "netrc", "WANDB_MODE": "offline",
                        "SWANLAB_MODE": "offline", "WANDB__SERVICE_WAIT": PATIENCE}.items():
        monkeypatch.setenv(name, str(value))

    def call(*names: str, first_step: int = 0) -> Loggers:
        settings = changed(SFTSettings(), loggers=names, save_dir=str(tmp_path / "out"))
        return start_loggers(settings, "full_sft_32", "0123456789abcdef" * 2, first_step, is_main=True)

    yield call
    end_wandb()  # or it keeps the environment of the first test


def end_wandb() -> None:
    """Ends the process that writes wandb's files."""
    if hasattr(sys.modules.get("wandb"), "teardown"):
        sys.modules["wandb"].teardown()


def send_all(to: Loggers, sent=STEPS) -> str:
    """Sends metrics lines and returns what the user sees."""
    for line in sent:
        to.send(line)
    to.finish(0)
    return "\n".join(to.notices())


class Recorder:
    """A logger that remembers its calls, and raises `error` when it is to log step 2."""

    where = "in memory"

    def __init__(self, error: BaseException | None = None):
        self.error, self.numbers, self.tables, self.exit_code = error, [], [], None

    def log(self, step, numbers):
        if step == 2 and self.error:
            raise self.error
        self.numbers.append((step, numbers))

    def log_table(self, step, name, rows):
        self.tables.append((step, name, rows))

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_a_logger_gets_numbers_answers_and_warnings():
    recorder = Recorder()
    assert send_all(Loggers([BackgroundLogger("memory", lambda: recorder, "")])) == "memory      in memory"
    found = {}
    for step, numbers in recorder.numbers:
        for name, value in numbers.items():
            found.setdefault(name, []).append((step, value))
    assert (found, recorder.tables, recorder.exit_code) == (NUMBERS, TABLES, 0)


def read_tensorboard(folder: Path):
    """Returns numbers and texts as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()
    numbers = {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    texts = {tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in accumulator.Tensors(tag)]
             for tag in tags["tensors"]}
    return numbers, texts


def test_tensorboard_shows_numbers_and_tables(start, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "out/tensorboard"
    assert send_all(start("tensorboard")) == f"tensorboard tensorboard --logdir {folder}"
    numbers, texts = read_tensorboard(folder / "full_sft_32-01234567")
    assert numbers == NUMBERS
    assert [step for step, _ in texts["warnings/text_summary"]] == [2, 3]
    assert texts["answers/text_summary"] == [(2, markdown_table([ANSWER]))]
    assert "| learning_rate | 0&#46;0005 |" in texts["settings/text_summary"][0][1]


def test_a_resumed_run_replaces_the_steps_that_it_repeats_in_tensorboard(start, tmp_path):
    pytest.importorskip("tensorboard")
    send_all(start("tensorboard"), [{"step": step, "loss": 9.0} for step in (1, 2, 3)])
    send_all(start("tensorboard", first_step=1), [{"step": step, "loss": 1.0} for step in (2, 3, 4)])
    numbers, _ = read_tensorboard(tmp_path / "out/tensorboard/full_sft_32-01234567")
    assert numbers["loss"] == [(1, 9.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_cells_of_a_table_are_text_and_nothing_else():
    assert markdown_table([{"answer": "a|b\n<b>*x*"}]) == (
        "| answer |\n| --- |\n| a&#124;b<br>&#60;b&#62;&#42;x&#42; |")


def wandb_records(data: bytes):
    """Yields the records of a .wandb file, which is a LevelDB log: pieces in blocks of 32 KiB, after 7 other bytes."""
    at, record = 7, b""
    while at < len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_keeps_a_run_offline(start, tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    shown = send_all(start("wandb"))
    end_wandb()
    (folder,) = (tmp_path / "out/wandb").glob("offline-run-*-0123456789abcdef0123456789abcdef")
    assert shown == f"wandb       wandb sync {folder} sends this run"
    records = [Record.FromString(data) for data in wandb_records(next(folder.glob("*.wandb")).read_bytes())]
    found: dict = {}
    for record in records:
        step = record.history.step.num
        for item in record.history.item:
            name, value = item.key or "/".join(item.nested_key), json.loads(item.value_json)
            if isinstance(value, int | float) and not name.startswith("_"):
                found.setdefault(name, []).append((step, value))
    of_tables = ("answers/", "warnings/")
    assert {name: values for name, values in found.items() if not name.startswith(of_tables)} == NUMBERS
    tables = sorted((folder / "files/media/table").iterdir())
    assert [(table.name.split("_")[0], json.loads(table.read_text())["data"]) for table in tables] == [
        ("answers", [list(ANSWER.values())]), ("warnings", [["no supervised token in it"]]),
        ("warnings", [["The validation loss rises."]])]
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name) == ("MiniMind-SFT", "full_sft_32")
    assert ["learning_rate", "0.0005"] in [[item.key, item.value_json] for item in run.config.update]


@pytest.mark.slow
def test_swanlab_keeps_a_run_offline(start, tmp_path):
    pytest.importorskip("swanlab")
    shown = send_all(start("swanlab"))
    (folder,) = (tmp_path / "out/swanlog").glob("run-*-0123456789abcdef0123456789abcdef")
    assert shown == f"swanlab     swanlab sync {folder} sends this run"
    stored = next(folder.glob("*.swanlab")).read_bytes()
    assert all(name.encode() in stored for name in NUMBERS)
    tables = [json.loads(path.read_text()) for path in sorted((folder / "media/echarts").iterdir())]
    assert [table["rowData"] for table in tables] == [
        [{"warning": "no supervised token in it"}], [{**ANSWER, "exact": "False"}],
        [{"warning": "The validation loss rises."}]]
    assert "learning_rate" in (folder / "files/config.yaml").read_text()


@pytest.mark.slow
def test_a_missing_key_costs_one_line(start, monkeypatch, capfd):
    pytest.importorskip("wandb"), pytest.importorskip("swanlab")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("SWANLAB_MODE")
    wandb, swanlab = send_all(start("wandb", "swanlab")).splitlines()
    assert wandb == ("wandb: No API key configured. Use `wandb login` to log in; the run goes on without it; "
                     "WANDB_MODE=offline in the environment keeps the log on this machine, and wandb sync sends it "
                     "later")
    assert swanlab.startswith("swanlab: Failed to initialize SwanLab in online mode: no API key was provided")
    assert "SWANLAB_MODE=offline in the environment keeps the log on this machine" in swanlab
    assert capfd.readouterr() == ("", "")


def test_a_package_that_cannot_be_imported_costs_one_line(start, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ImportError('no such thing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert send_all(start("wandb")).startswith("wandb: no such thing; the run goes on without it; WANDB_MODE=offline")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file on a disk that is always full")
def test_a_full_disk_costs_one_line(start, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    logger = start("tensorboard")
    logger.send(STEPS[1])
    (running,) = logger._running

    def fill(to: TensorBoardLogger) -> None:
        to._records._writer = Path("/dev/full").open("wb")  # noqa: SIM115

    running.call(fill)
    first, second = send_all(logger).splitlines()
    assert first.startswith("tensorboard tensorboard --logdir ")
    assert second == "tensorboard: [Errno 28] No space left on device; the run goes on without it"


@pytest.mark.slow
def test_an_error_that_swanlab_handles_itself_costs_one_line(start, monkeypatch, capfd):
    """Only its console and its own log file would say that the log is incomplete."""
    pytest.importorskip("swanlab")
    from swanlab.sdk.internal.core_python import core

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    logger = start("swanlab")
    monkeypatch.setattr(core.CorePython, "_store_records", fail)
    first, second = send_all(logger).splitlines()
    assert first.startswith("swanlab     swanlab sync ")
    assert re.fullmatch(r"swanlab: .*\[Errno 28\] No space left on device; the run goes on without it", second)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_disk_that_became_full_is_reported_for_wandb(start, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(to_wandb, "disk_usage", lambda _: SimpleNamespace(free=1000))
    first, second = send_all(start("wandb")).splitlines()
    assert (first, second.partition(";")[0]) == (
        "wandb       disabled", f"wandb: no room on the disk of {tmp_path / 'out'}, so some of the log may be missing")


def test_a_folder_that_cannot_be_written_costs_one_line(start, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tensorboard").touch()
    (line,) = send_all(start("tensorboard")).splitlines()
    assert line.startswith("tensorboard: [Errno 20] Not a directory") or line.startswith("tensorboard: [Errno 17]")


@pytest.mark.parametrize("error", [ValueError("lost\nthe server\x1b[2J."), SystemExit(3)], ids=str)
def test_a_failure_in_the_middle_costs_one_line(error):
    recorder, other = Recorder(error), Recorder()
    shown = send_all(Loggers([BackgroundLogger(name, lambda one=one: one, "Try again")
                              for name, one in (("one", recorder), ("two", other))]))
    reason = "3" if isinstance(error, SystemExit) else "lost"
    assert shown.splitlines() == ["one         in memory", f"one: {reason}; the run goes on without it",
                                  "two         in memory"]
    assert recorder.numbers == [(1, {"loss": 2.5, "epoch": 0})]
    assert (recorder.exit_code, other.exit_code) == (1, 0)


def test_a_logger_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(background, "START_SECONDS", 0.01)
    monkeypatch.setattr(background, "FINISH_SECONDS", 0.01)
    monkeypatch.setattr(background, "MAX_WAITING", 5)
    go_on = threading.Event()
    slow = BackgroundLogger("slow", lambda: go_on.wait(PATIENCE) and Recorder(), "")
    assert send_all(Loggers([slow]), STEPS[:2]) == (
        "slow: not finished after 0 seconds, so some of the log is missing there; the run goes on without it")
    full = BackgroundLogger("full", lambda: go_on.wait(PATIENCE) and Recorder(), "")
    shown = send_all(Loggers([full]), STEPS)
    assert shown == "full: 5 calls wait for it; the run goes on without it"
    go_on.set()


def test_a_logger_that_starts_late_catches_up(monkeypatch):
    monkeypatch.setattr(background, "START_SECONDS", 0.01)
    monkeypatch.setattr(background, "FINISH_SECONDS", PATIENCE)
    go_on, recorder = threading.Event(), Recorder()
    late = Loggers([BackgroundLogger("late", lambda: go_on.wait(PATIENCE) and recorder, "")])
    for line in STEPS:
        late.send(line)
    assert not recorder.numbers
    go_on.set()
    late.finish(1)
    late.finish(0)
    assert [step for step, _ in recorder.numbers] == [1, 2, 2, 3] and recorder.exit_code == 1


def test_other_ranks_have_no_loggers(tmp_path):
    settings = changed(SFTSettings(), loggers=("tensorboard",), save_dir=str(tmp_path / "out"))
    start_loggers(settings, "full_sft_32", "0" * 32, 0, is_main=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [None, OSError("the disk is full")], ids=["a good logger", "a failing logger"])
def test_loggers_change_nothing(tmp_path, monkeypatch, error):
    """The same weights and metrics come out with no logger, with loggers, and with one that fails at step 2."""
    recorder = Recorder(error)
    plain, logged = Training(tmp_path / "plain"), Training(tmp_path / "logged")
    logged.progress._loggers = logged.progress._metrics._loggers = Loggers(
        [BackgroundLogger("memory", lambda: recorder, "")])
    assert (plain.run(), logged.run()) == (0, 0)
    for one, other in zip(plain.model.state_dict().values(), logged.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    metrics = repeatable_lines(tmp_path / "plain/metrics.jsonl")
    assert repeatable_lines(tmp_path / "logged/metrics.jsonl") == metrics
    if not error:
        assert [(step, numbers["loss"]) for step, numbers in recorder.numbers if "loss" in numbers] == [
            (line["step"], line["loss"]) for line in metrics if "loss" in line]


def test_a_run_that_fails_is_marked_as_failed(tmp_path):
    recorder = Recorder()
    run = Training(tmp_path / "run")
    run.progress._loggers = Loggers([BackgroundLogger("memory", lambda: recorder, "")])
    run.step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert recorder.exit_code == 1


@pytest.mark.slow
def test_an_unreachable_server_costs_one_line_of_wandb(start, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(to_wandb, "INIT_SECONDS", 0.5)
    (line,) = send_all(start("wandb")).splitlines()
    assert line.startswith("wandb: Failed to get resume status for run 0123456789abcdef")
    assert capfd.readouterr() == ("", "")


SWANLAB = """
import os, sys
import swanlab
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.loggers import background
from minimind_sft.training.loggers.loggers import start_loggers

background.START_SECONDS = background.FINISH_SECONDS = 0.1
settings = changed(SFTSettings(), loggers=("swanlab",), save_dir=sys.argv[1])
loggers = start_loggers(settings, "full_sft_32", "0123456789abcdef" * 2, 0, is_main=True)
loggers.finish(0)
print(*loggers.notices(), sep="\\n", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_an_unreachable_server_costs_one_line_of_swanlab(start, tmp_path):
    """In a process of its own: its thread goes on trying for 15 seconds, beside the tests that follow."""
    pytest.importorskip("swanlab")
    done = subprocess.run([sys.executable, "-c", SWANLAB, str(tmp_path / "out")], capture_output=True, text=True,
                          timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SWANLAB_MODE": "online",
                                                 "SWANLAB_API_KEY": "0" * 21,
                                                 "SWANLAB_API_HOST": "http://127.0.0.1:9"})
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("swanlab: not finished after 0 seconds, so some of the log is missing there; the run goes ")
