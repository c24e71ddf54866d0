"""Knows which tokens and lengths weights were trained on."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from minimind_sft.data.dataset import Samples
from minimind_sft.files import peek_object
from minimind_sft.model.finding import SUFFIXES
from minimind_sft.model.sidecar import sidecar_path


@dataclass(frozen=True)
class Experience:
    """The tokens that some weights have learned to predict, and the longest document they were trained on."""

    seen: np.ndarray
    """(V,), whether a token was ever a label."""
    longest: int

    @classmethod
    def none(cls, vocab_size: int) -> Self:
        return cls(np.zeros(vocab_size, bool), 0)

    @classmethod
    def of_weights(cls, path: Path | None, vocab_size: int) -> Self | None:
        """Reads the sidecar of weights.

        Returns None if the sidecar has no record, as for base models, which have no sidecar, and empty experience if
        `path` is None (a new model).
        """
        if path is None:
            return cls.none(vocab_size)
        if path.suffix not in SUFFIXES:
            return None
        return cls.from_sidecar(peek_object(sidecar_path(path)), vocab_size)

    @classmethod
    def from_sidecar(cls, sidecar: dict[str, Any], vocab_size: int) -> Self | None:
        """Returns None if the sidecar has no record; those of other projects and older versions have none."""
        try:
            record = sidecar["training"]["experience"]
            bits = np.frombuffer(base64.b64decode(record["tokens"], validate=True), np.uint8)
            seen = np.unpackbits(bits, count=vocab_size).astype(bool)
            return cls(seen, int(record["longest"])) if len(bits) == -(-vocab_size // 8) else None
        except (KeyError, TypeError, ValueError, binascii.Error):
            return None

    def for_sidecar(self) -> dict[str, Any]:
        """Encodes one bit per token in base64, and the longest document in tokens."""
        return {"tokens": base64.b64encode(np.packbits(self.seen).tobytes()).decode("ascii"), "longest": self.longest}

    def after(self, samples: Samples) -> Self:
        """Adds the tokens and lengths of `samples`."""
        return type(self)(self.seen | (samples.label_counts(len(self.seen)) > 0),
                          max(self.longest, int(samples.document_lengths().max(initial=0))))
