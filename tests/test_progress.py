"""The bar, the plain lines of a log, and the rate that both and the metrics file show."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from programs import NEW, PATIENCE, SFT, program, run_here

from minimind_sft.terminal import columns
from minimind_sft.training import progress
from minimind_sft.training.loggers.loggers import Loggers
from minimind_sft.training.peak import Work
from minimind_sft.training.progress import Effort, Progress


def test_the_rate_excludes_pauses(tmp_path, monkeypatch):
    """Steps take 0.2 s for 50 tokens; after every second step a validation takes 30 s."""
    now, rates = 100.0, []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=12, step=0, is_main=True) as shown:
        for step in range(1, 13):
            now += 0.2
            shown.advance(step, 1.0, 1e-3, Work(80, 50))
            rates.append(shown.rate.supervised_tokens)
            if step % 2 == 0:
                with shown.doing("eval"):
                    now += 30.0
    assert rates == pytest.approx([250.0] * 12)


def test_the_rate_is_that_of_the_last_second(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=3, step=0, is_main=True) as shown:
        for step, seconds in enumerate([2.0, 4.0, 0.5], 1):
            now += seconds
            shown.advance(step, 1.0, 1e-3, Work(400, 100, peak_seconds=0.5))
            shown.log(step, loss=float("nan"), **shown.performance())
        shown.end("finished")
    *lines, end = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert lines == [
        {"step": step, "loss": None, "supervised_tokens_per_second": rate, "tokens_per_second": 4 * rate,
         "peak_share": share, "data_seconds": 0.0, "step_seconds": seconds, "eval_seconds": 0.0, "save_seconds": 0.0}
        for step, rate, share, seconds in ((1, 50.0, 0.25, 2.0), (2, 25.0, 0.125, 6.0), (3, 25.0, 0.125, 6.5))]
    assert end == {"step": 3, "end": "finished", "seconds": 6.5}


def test_loggers_that_finish_slowly_do_not_count_as_evaluating_or_saving(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)

    class Slow(Loggers):
        def finish(self, exit_code: int) -> None:
            nonlocal now
            now += 50.0

    with Progress(tmp_path / "metrics.jsonl", total_steps=1, step=0, is_main=True, loggers=Slow()) as shown:
        now += 2.0
        shown.advance(1, 1.0, 1e-3, Work(80, 50))
        with shown.doing("save"):
            now += 3.0
    assert shown.effort(1) == Effort(steps=1, supervised_tokens=50, training_seconds=2.0, all_seconds=5.0)


def test_a_slow_first_step_does_not_count_in_later_rates(tmp_path, monkeypatch, capsys):
    """The first step sets up kernels and takes 9 s, the others 0.2 s; each has 50 tokens."""
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=103, step=0, is_main=True) as shown:
        for step in range(1, 4):
            now += 9.0 if step == 1 else 0.2
            shown.advance(step, 1.0, 1e-3, Work(80, 50))
    assert [line.split("0.001, ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "6 supervised tokens/s, 15:18 left", "250 supervised tokens/s, 0:20 left", "250 supervised tokens/s, 0:20 left"]


def advance(shown: Progress, steps: int, first: int = 1) -> None:
    for step in range(first, first + steps):
        shown.advance(step, 8.0 / step, 1e-3 * step, Work(80, 50))


def test_a_log_has_a_line_every_log_interval(tmp_path, monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=5, step=0, is_main=True, log_interval=2) as shown:
        for step in range(1, 6):
            now += 0.5
            shown.advance(step, 8.0 / step, 1e-3 * step, Work(80, 50))
    written = capsys.readouterr()
    assert written.out == (
        "step      1/5: loss 8.0000, learning rate 0.001, 100 supervised tokens/s, 0:02 left\n"
        "step      2/5: loss 4.0000, learning rate 0.002, 100 supervised tokens/s, 0:01 left\n"
        "step      4/5: loss 2.0000, learning rate 0.004, 100 supervised tokens/s, 0:00 left\n"
        "step      5/5: loss 1.6000, learning rate 0.005, 100 supervised tokens/s, 0:00 left\n")
    assert written.err == ""


def test_with_slow_steps_a_log_has_a_line_every_half_minute(tmp_path, monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=100, step=20, is_main=True, log_interval=100) as shown:
        for step in range(21, 29):
            now += 11.0
            shown.advance(step, 2.0, 1e-3, Work(80, 50))
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [21, 24, 27]
    assert lines[1].endswith("13:56 left")  # 76 steps of 11 seconds


@pytest.mark.parametrize(("activity", "word"), [("eval", "evaluating"), ("save", "saving")])
def test_the_bar_says_that_the_run_evaluates_or_saves(activity, word, tmp_path, monkeypatch, capsys):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with Progress(tmp_path / "metrics.jsonl", total_steps=2, step=0, is_main=True) as shown:
        shown.advance(1, 1.5, 1e-3, Work(80, 50))
        capsys.readouterr()
        with shown.doing(activity):
            assert f"1/2, {word} [" in capsys.readouterr().err
        assert "1/2, loss 1.500" in capsys.readouterr().err


def test_other_ranks_write_nothing(tmp_path, capsys):
    with Progress(tmp_path / "metrics.jsonl", total_steps=5, step=0, is_main=False) as shown:
        advance(shown, 5)
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (65, "1:05"), (754, "12:34"), (3725, "1:02:05")])
def test_a_clock_has_no_leading_zero(seconds, shown):
    assert progress.clock(seconds) == shown


def in_terminal(width: int, *arguments: object) -> str:
    """Returns what a program writes to a terminal of `width` columns."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, width))
    command, options = program(*arguments)
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower,
                               **{**options, "text": False, "encoding": None})
    os.close(follower)
    written = b""
    try:
        while chunk := os.read(leader, 4096):
            written += chunk
    except OSError:  # Linux reports the closed other end this way
        pass
    os.close(leader)
    assert process.wait(PATIENCE) == 0, written.decode()
    return written.decode()


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 100])
def test_in_a_terminal_the_bar_and_all_lines_fit_the_width(sft_data, tmp_path, width):
    shown = in_terminal(width, SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 3)
    own = [line for line in re.split(r"[\r\n]+", shown) if str(tmp_path.parent) not in line]  # a path is never cut
    assert max(map(columns, own)) <= width
    bars = [line for line in own if re.match(r" *\d+%", line)]
    assert bars and all("/3" in line for line in bars)
    assert any("loss" in line for line in bars)
    assert "learning rate 0.0005, " not in shown  # the plain lines of a log


@pytest.mark.slow
def test_a_redirected_log_has_plain_lines(sft_data, tmp_path):
    done = run_here(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 3, "--log_interval", 1)
    assert done.returncode == 0 and done.stderr == "" and "\r" not in done.stdout and "%|" not in done.stdout
    assert re.search(r"step +3/3: loss \d+\.\d{4}, learning rate [\de.-]+, [\d,]+ supervised tokens/s, 0:00 left",
                     done.stdout)
