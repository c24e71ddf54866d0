"""Loads the tokenizer that `--tokenizer_path` asks for."""

import os

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.paths import REPOSITORY

BUNDLED = "bundled"


def load_tokenizer(choice: str | None) -> Tokenizer:
    """The tokenizer that `--tokenizer_path` asks for: a folder, or `bundled` or None for the repository's own.

    Raises:
        UserError: as `Tokenizer.from_folder`.
    """
    return Tokenizer.from_folder(REPOSITORY / "model" if tokenizer_name(choice) == BUNDLED else choice)


def tokenizer_name(choice: str | None) -> str:
    """`bundled`, however the repository's own tokenizer was named; else the folder as it was typed."""
    if choice in (None, BUNDLED) or os.path.realpath(choice) == str(REPOSITORY / "model"):
        return BUNDLED
    return choice
