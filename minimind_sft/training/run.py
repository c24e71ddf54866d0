"""One training, as every part of it knows it."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from minimind_sft.config import REPOSITORY, TrainConfig
from minimind_sft.data.rows import RowEncoder
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.device import resolve_dtype
from minimind_sft.errors import harmless
from minimind_sft.terminal import fitted
from minimind_sft.training.distributed import Ranks


@dataclass(frozen=True)
class Run:
    """One training: what it is of, and on what."""

    stage: str
    """"pretrain" or "full_sft", as the sidecar says."""
    config: TrainConfig
    ranks: Ranks
    rows: RowEncoder
    """What becomes of a row of data."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.rows.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The chat template's fingerprint; None where there is none in play."""
        return self.rows.settings.get("chat_template")

    @property
    def dtype(self) -> torch.dtype:
        return resolve_dtype(self.config.dtype, self.ranks.device)

    def say(self, line: str) -> None:
        if self.ranks.is_main:
            with suppress(OSError):  # a closed terminal or a full disk under the log must not stop the run
                print(fitted(harmless(line), sys.stdout), flush=True)


def shown(path: str | Path) -> str:
    """A path as people want to read it: relative to the repository where it lies inside."""
    path = Path(path)
    absolute = Path(os.path.normpath(path.absolute()))  # without the `..` of a path typed in trainer/
    return str(absolute.relative_to(REPOSITORY)) if absolute.is_relative_to(REPOSITORY) else str(path)
