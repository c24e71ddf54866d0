"""Loads the tokenizer that `--tokenizer_path` asks for."""

import os
from pathlib import Path

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.paths import CLONE

BUNDLED = "bundled"
FOLDER = CLONE / "model" if CLONE else Path(__file__).with_name("bundled_tokenizer")
"""The bundled tokenizer: in the clone, or where `pip install .` put a copy (setup.py)."""


def load_tokenizer(choice: str | None) -> Tokenizer:
    """Loads the tokenizer that `--tokenizer_path` asks for: a folder, or `bundled` or None for the repository's own.

    Raises:
        UserError: as `Tokenizer.from_folder`.
    """
    return Tokenizer.from_folder(FOLDER if choice is None or tokenizer_name(choice) == BUNDLED else choice)


def tokenizer_name(choice: str | None) -> str:
    """Returns `bundled` for the repository's own tokenizer, however it was named; else the folder as typed."""
    if choice in (None, BUNDLED) or os.path.realpath(choice) == os.path.realpath(FOLDER):
        return BUNDLED
    return choice
