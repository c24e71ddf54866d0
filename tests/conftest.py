"""Fixtures for all tests."""

import threading
from pathlib import Path

import pytest
import torch
from programs import questions, write_rows
from tqdm import tqdm

torch.set_num_threads(1)  # the tensors are tiny, and other test processes need the cores
# The death of a worker raises in a signal handler at any point of the program. While tqdm takes its lock, this leaves
# the lock taken, and processes forked later share tqdm's own lock: they would wait for it forever.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread may hold the lock while a process is forked

REPOSITORY = Path(__file__).resolve().parent.parent


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
