"""Loads the tokenizer that `--tokenizer_path` asks for, or the one that belongs to the weights in use."""

import os
from pathlib import Path

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.files import path_exists, peek_object
from minimind_sft.gguf_file import is_gguf
from minimind_sft.paths import CLONE, REPOSITORY, shown

BUNDLED = "bundled"
FOLDER = CLONE / "model" if CLONE else Path(__file__).with_name("bundled_tokenizer")
"""The bundled tokenizer: in the clone, or where `pip install .` put a copy (setup.py)."""


def load_tokenizer(choice: str | None, base: Path | None = None) -> Tokenizer:
    """Loads the tokenizer that `--tokenizer_path` asks for, or without one that of the weights at `base`.

    A Hugging Face folder and a GGUF file bring their own. The sidecar of a weights file names the tokenizer that they
    were trained with. In all other cases the bundled one is loaded; `matching.check_tokenizer` then refuses weights
    without a sidecar, because nothing says which tokenizer is theirs.

    Args:
        choice: a folder, a GGUF file or `bundled`.

    Raises:
        UserError: if there is no tokenizer, as `Tokenizer.from_folder` and `Tokenizer.from_gguf`.
    """
    if choice is not None:
        return read_tokenizer(choice)
    if base is None:
        return read_tokenizer(BUNDLED)
    if not brings_tokenizer(base):
        return read_tokenizer(BUNDLED) if base.is_dir() else _recorded(base)
    try:
        tokenizer = read_tokenizer(base)
    except UserError as error:
        raise UserError(f"{error} (the base model brings the tokenizer, unless --tokenizer_path names one)") from error
    tokenizer.notices = (f"that of {shown(base)}, {tokenizer.vocab_size:,} tokens", *tokenizer.notices)
    return tokenizer


def read_tokenizer(place: str | Path) -> Tokenizer:
    """Reads the tokenizer of a folder or a GGUF file, or the bundled one.

    Raises:
        UserError: as `Tokenizer.from_folder` and `Tokenizer.from_gguf`.
    """
    name = tokenizer_name(str(place))
    if name == BUNDLED:
        tokenizer = Tokenizer.from_folder(FOLDER)
    else:
        tokenizer = Tokenizer.from_gguf(name) if is_gguf(Path(name)) else Tokenizer.from_folder(name)
    tokenizer.name = name
    return tokenizer


def brings_tokenizer(weights: Path) -> bool:
    """Whether weights come with a tokenizer: a Hugging Face folder or a GGUF file."""
    return path_exists(weights / "config.json") or is_gguf(weights)


def tokenizer_name(choice: str | None) -> str:
    """Returns `bundled` for the repository's own tokenizer, however it was named; else the folder or file as typed."""
    if choice in (None, BUNDLED) or os.path.realpath(choice) == os.path.realpath(FOLDER):
        return BUNDLED
    return choice


def recorded_name(name: str) -> str:
    """Returns the name for a sidecar, which finds the tokenizer from any working directory: absolute, or relative to
    the repository inside it."""
    return name if name == BUNDLED else shown(os.path.normpath(Path(name).absolute()))


def _recorded(weights: Path) -> Tokenizer:
    """Loads the tokenizer that the sidecar of a weights file names; the bundled one if it names none.

    One that has changed since is returned as it is: `matching.check_tokenizer` describes the difference.
    """
    described_by = weights.with_suffix(".json")
    sidecar = peek_object(described_by)  # what is wrong with it is reported when the weights are read
    facts = sidecar.get("tokenizer_facts")
    name = facts.get("name") if isinstance(facts, dict) else None
    if not isinstance(name, str) or name == BUNDLED or sidecar.get("tokenizer") is None:
        return read_tokenizer(BUNDLED)
    places = [place for place in (Path(name), REPOSITORY / name, weights.parent / name) if place.exists()]
    if not places:
        raise UserError(f"{described_by}: the weights were trained with the tokenizer {name}, which is no longer "
                        "there: give --tokenizer_path FOLDER, with the folder or GGUF file where it is now")
    found = [read_tokenizer(place) for place in places]
    tokenizer = next((one for one in found if one.fingerprint == sidecar["tokenizer"]), found[0])
    tokenizer.notices = (f"that of {tokenizer.name}, as {shown(described_by)} says", *tokenizer.notices)
    return tokenizer
