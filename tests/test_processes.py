"""How many workers start, and how, on other systems."""

import multiprocessing
import os
import signal
import sys

import pytest

from minimind_sft.processes import STOP_SIGNALS, signals_wait, take_signals, usable_cores, worker_context


@pytest.mark.parametrize(("platform", "methods", "method"), [
    ("linux", ["fork", "spawn", "forkserver"], "fork"),
    ("linux", ["forkserver", "spawn", "fork"], "fork"),  # the order of Python 3.14, which makes the first its default
    ("darwin", ["spawn", "fork", "forkserver"], "spawn"),
    ("win32", ["spawn"], "spawn"),
])
def test_only_linux_forks_workers(monkeypatch, platform, methods, method):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: methods)
    monkeypatch.setattr(sys, "platform", platform)
    assert worker_context().get_start_method() == method


def test_usable_cores_are_those_of_this_process_or_all(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert usable_cores() == cores


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows cannot hold signals back")
def test_signals_are_delayed_until_they_are_taken():
    came = []
    usual = signal.signal(signal.SIGTERM, lambda *_: came.append("SIGTERM"))
    try:
        with signals_wait():
            signal.raise_signal(signal.SIGTERM)  # to this thread; other threads do not delay signals
            assert came == []
            take_signals()
            assert came == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert signal.SIGINT in STOP_SIGNALS and signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
