"""Fixtures for all rooms."""

from pathlib import Path

import pytest
import torch
from programs import questions, write_rows

torch.set_num_threads(1)  # the tensors are tiny, and other processes of the tests want the cores too

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
