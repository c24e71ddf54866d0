"""Signals, and workers that die."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import pytest
import torch.utils.data._utils as loaders
from programs import PATIENCE, wait_for
from tiny_training import Training, losses_in_turn, wait_for_signals
from torch.utils.data._utils import signal_handling

from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.training import interruptions
from minimind_sft.training.interruptions import batches_of, stop_on_signals
from minimind_sft.training.loop import train_step

pytestmark = pytest.mark.slow


def kill(worker: BaseProcess) -> None:
    """Kills a worker and returns once it is dead; nobody has asked for its exit status then."""
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


def test_a_dead_worker_of_the_loader_ends_the_run_with_one_line(tmp_path):
    training = Training(tmp_path, num_workers=1)

    class Deadly(type(training.steps)):
        def __getitem__(self, step):
            if step == 5:  # without this batch the run cannot reach its state of step 6
                wait_for((tmp_path / "resume/step-00000003").exists)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(step)

    training.steps.__class__ = Deadly
    with pytest.raises(ProcessLost, match="a worker process of the loader died"):
        training.run()
    resumed = Training(tmp_path, resume=True)
    assert resumed.state.step == 3
    assert resumed.run() == 0


@pytest.mark.parametrize("late", [False, True], ids=["the signal never comes", "the signal comes last"])
def test_its_death_is_reported_even_if_another_error_comes_first(tmp_path, monkeypatch, late):
    """The connection may break before the signal of its death arrives."""
    training = Training(tmp_path, num_workers=2)
    handler = []

    class Watched:
        def __init__(self, loader):
            self.batches = batches_of(loader)

        def __enter__(self):
            return self.batches.__enter__()

        def __exit__(self, *error):
            if late:
                signal.signal(signal.SIGCHLD, handler[0])
                try:
                    signal.raise_signal(signal.SIGCHLD)
                except ProcessLost as lost:
                    self.batches.__exit__(type(lost), lost, lost.__traceback__)
                    raise
            return self.batches.__exit__(*error)

    def fail(*step):
        handler.append(signal.signal(signal.SIGCHLD, signal.SIG_DFL))
        kill(multiprocessing.active_children()[0])
        raise EOFError

    monkeypatch.setattr("minimind_sft.training.loop.batches_of", Watched)
    training.step = fail
    with pytest.raises(ProcessLost, match="a worker process of the loader died") as kept:  # its traceback holds on
        training.run()
    for child in multiprocessing.active_children():
        child.join(PATIENCE)
    assert multiprocessing.active_children() == [] and kept.value


def test_a_user_error_in_a_worker_is_its_message_alone(tmp_path):
    training = Training(tmp_path, num_workers=1)

    class Changed(type(training.steps)):
        def __getitem__(self, step):
            raise UserError("labels.bin: was changed")

    training.steps.__class__ = Changed
    with pytest.raises(UserError) as refused:
        training.run()
    assert str(refused.value) == "labels.bin: was changed"


@pytest.mark.parametrize("failure", [RuntimeError("something else"), KeyboardInterrupt()])
def test_no_worker_outlives_a_failed_run(tmp_path, failure):
    """A remaining worker would ignore the signal with which Python ends it, and the program would hang."""
    training = Training(tmp_path, num_workers=2)

    def fail(*step):
        assert len(multiprocessing.active_children()) == 2
        raise failure

    training.step = fail
    with pytest.raises(type(failure)) as kept:  # keeps the traceback alive, as at the end of a program
        training.run()
    assert kept.value is failure
    assert multiprocessing.active_children() == []


def test_a_worker_that_takes_long_to_end_does_not_outlive_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "MP_STATUS_CHECK_INTERVAL", 0.01)  # how long PyTorch waits for it
    training = Training(tmp_path, num_workers=2)

    def fail(*step):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)
        raise KeyboardInterrupt

    training.step = fail
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("with_a_lock", [False, True], ids=["", "which had a lock that all share"])
def test_the_other_workers_end_when_one_is_killed(tmp_path, monkeypatch, with_a_lock):
    training, shared_lock = Training(tmp_path, num_workers=2), []

    @contextmanager
    def watched(loader):
        with batches_of(loader) as batches:
            shared_lock.append(batches._workers_done_event._cond)
            yield batches

    def kill_one(*step):
        if with_a_lock:  # of a process that was killed, which nobody releases
            shared_lock[0].acquire()
        kill(multiprocessing.active_children()[0])

    monkeypatch.setattr("minimind_sft.training.loop.batches_of", watched)
    training.step = kill_one
    with pytest.raises(ProcessLost) as kept:
        training.run()
    assert kept.value.__cause__ is not None
    assert multiprocessing.active_children() == []


def test_signals_passed_on_by_torchrun_together_count_as_one(monkeypatch):
    monkeypatch.setattr(interruptions, "ONE_SIGNAL_SECONDS", PATIENCE)  # simultaneous on any machine
    with stop_on_signals(passed_on=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    wait_for_signals()  # and the process keeps running
    assert stop.signum == signal.SIGTERM


LONG_STEP = """
import ctypes, os, signal, sys, time
from minimind_sft.training.interruptions import stop_on_signals

with stop_on_signals(notice={notice}) as stop:
    print("in a step", flush=True)
    {step}
print("saved", stop.signum)
"""
UNTIL_SEEN = "sys.stdin.read()  # a step that lasts until the test has seen the line"
FOREVER = "while True: time.sleep(60)"
IN_NO_PYTHON_CODE = "lock = bytes(100); c = ctypes.CDLL(None); c.pthread_mutex_init(lock, None); " + (
    "[c.pthread_mutex_lock(lock) for _ in range(2)]  # like a collective that waits for another rank")


def interrupted_in_a_long_step(signum: int, notice: bool = True, stderr: int = subprocess.PIPE, step: str = UNTIL_SEEN
                               ) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", LONG_STEP.format(notice=notice, step=step)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout.readline() == "in a step\n"
    process.send_signal(signum)
    return process


@pytest.mark.parametrize(("signum", "line"), [
    (signal.SIGINT, "stopping after this step; press Ctrl-C again to quit now\n"),
    (signal.SIGTERM, "SIGTERM: stopping after this step\n"),
])
def test_a_signal_is_acknowledged_while_the_step_still_runs(signum, line):
    process = interrupted_in_a_long_step(signum)
    assert process.stderr.readline() == line
    assert process.poll() is None
    assert process.communicate("", timeout=PATIENCE) == (f"saved {int(signum)}\n", "")


def test_only_one_rank_prints_the_notice():
    process = interrupted_in_a_long_step(signal.SIGINT, notice=False)
    assert process.communicate("", timeout=PATIENCE) == ("saved 2\n", "")


def test_a_signal_stops_the_run_even_if_nobody_reads_its_line():
    receive, send = os.pipe()
    os.close(receive)
    process = interrupted_in_a_long_step(signal.SIGINT, stderr=send)
    os.close(send)
    assert process.communicate("", timeout=PATIENCE)[0] == "saved 2\n"
    assert process.returncode == 0


@pytest.mark.parametrize("step", [FOREVER, IN_NO_PYTHON_CODE], ids=["in Python", "in a library"])
def test_a_second_signal_ends_the_process_at_once(step):
    process = interrupted_in_a_long_step(signal.SIGTERM, step=step)
    assert process.stderr.readline() == "SIGTERM: stopping after this step\n"  # two at once would be one signal
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 143


def test_a_closed_terminal_stops_a_run_except_under_nohup():
    for ignored in (False, True):
        usual = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        try:
            with stop_on_signals() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
            wait_for_signals()
            assert stop.signum == (0 if ignored else signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, usual)


def test_loader_workers_ignore_stop_signals(tmp_path, monkeypatch):
    """Ctrl-C and schedulers signal every process of a job, including workers forked a moment ago."""
    # PyTorch gives a worker a handler under which SIGTERM ends it, before we can give it ours.
    theirs, signalled = signal_handling._set_worker_signal_handlers, tmp_path / "signalled"

    def signalled_in_between() -> None:
        theirs()
        (tmp_path / f"{os.getpid()}.begun").touch()
        wait_for(signalled.exists)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", signalled_in_between)

    def signal_workers():
        wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
        signalled.touch()

    measured = losses_in_turn(*[1.0] * 5)

    def evaluate():
        signal_workers()
        return measured()

    def step(*arguments):
        signal_workers()
        return train_step(*arguments)

    training = Training(tmp_path, num_workers=2, evaluate=evaluate)
    training.step = step
    assert training.run() == 0
    assert training.state.step == 16
