"""Fixtures for all tests."""

import os
import random
import runpy
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_pages import chat_server, open_chat  # noqa: F401
from hypothesis import HealthCheck, settings
from programs import PATIENCE, questions, write_rows
from tqdm import tqdm

from minimind_sft.data import bounded_tokenizer
from minimind_sft.processes import STOP_SIGNALS

# Shells ignore these in what they run in the background, and programs that tests start and interrupt would inherit it.
for _signal in STOP_SIGNALS:
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, lambda *_: None)

for _name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # all servers of the tests are on this machine
    os.environ.pop(_name, None)
    os.environ.pop(_name.lower(), None)

torch.set_num_threads(1)  # the tensors are tiny, and other test processes need the cores
# The death of a worker raises in a signal handler at any point of the program. While tqdm takes its lock, this leaves
# the lock taken, and processes forked later share tqdm's own lock: they would wait for it forever.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread may hold the lock while a process is forked

bounded_tokenizer.SECONDS = PATIENCE  # a machine may stand still for longer than a hostile expression may take

# The same examples in every run, however slow the machine is: a failure means that the code has changed.
settings.register_profile("suite", derandomize=True, database=None, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Makes pytest-xdist start the files in the order below, instead of those with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with slow tests first: otherwise one process might be alone with some of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Gives each test and its fixtures the same random numbers, whatever ran before in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Returns the folder with real data and reference values beside a developer's checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "REFERENCE.md").exists():
        pytest.skip("the reference folder ../shared is not here; this test compares with it")
    return folder


@pytest.fixture(scope="session")
def sft_data(tmp_path_factory) -> Path:
    """Writes forty short conversations to a file and returns its path."""
    return write_rows(tmp_path_factory.mktemp("data") / "sft.jsonl", questions(40))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Starts Chromium and returns it as Playwright's `Browser`; skips the test where one of the two is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=PATIENCE * 1000)
        yield started
        started.close()


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a program in this process and returns what it prints."""

    def call(program, *flags) -> str:
        monkeypatch.setattr(sys, "argv", [program, *map(str, flags)])
        capsys.readouterr()
        assert not runpy.run_path(str(REPOSITORY / program))["main"]()
        return capsys.readouterr().out

    return call
