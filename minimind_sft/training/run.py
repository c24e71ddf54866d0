"""The run: its settings, ranks and data encoding, and how it talks to the user."""

import sys
from contextlib import suppress
from dataclasses import dataclass

import torch

from minimind_sft.data.samples import RowEncoder
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.device import resolve_dtype
from minimind_sft.errors import harmless
from minimind_sft.settings.training import TrainSettings
from minimind_sft.terminal import fitted
from minimind_sft.training.distributed import Ranks


@dataclass(frozen=True)
class Run:
    """One run of a recipe: its settings, the ranks it runs on, how it encodes rows."""

    stage: str
    """"pretrain" or "full_sft", as the sidecar says."""
    settings: TrainSettings
    ranks: Ranks
    rows: RowEncoder
    """Turns a row into training samples."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.rows.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The chat template's fingerprint; None where there is none in play."""
        return self.rows.settings.get("chat_template")

    @property
    def dtype(self) -> torch.dtype:
        return resolve_dtype(self.settings.runtime.dtype, self.ranks.device)

    def say(self, line: str) -> None:
        if self.ranks.is_main:
            with suppress(OSError):  # a closed terminal or a full disk under the log must not stop the run
                print(fitted(harmless(line), sys.stdout), flush=True)
