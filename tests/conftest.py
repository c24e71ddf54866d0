"""Fixtures for all rooms."""

import threading
from pathlib import Path

import pytest
import torch
from programs import questions, write_rows
from tqdm import tqdm

torch.set_num_threads(1)  # the tensors are tiny, and other processes of the tests want the cores too
# A worker's death raises in a signal handler, wherever the program is. While tqdm takes its lock, that leaves the lock
# taken, and tqdm's own is shared with every process that is forked later: they would wait for it for ever.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread that could hold it while a process is forked

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and reference values that lies beside a developer's checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "REFERENCE.md").exists():
        pytest.skip("the reference folder ../shared is not here; this test compares with it")
    return folder


@pytest.fixture(scope="session")
def sft_data(tmp_path_factory) -> Path:
    """Forty short conversations."""
    return write_rows(tmp_path_factory.mktemp("data") / "sft.jsonl", questions(40))
