"""Knows which tokens and lengths weights were trained on, and notes data that are strange to them."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from minimind_sft.data.dataset import Samples
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.files import peek_object
from minimind_sft.model.sidecar import sidecar_path

LARGE_SHARE = 0.1
"""To the bundled model, below 1% of the tokens and none of the lengths of the bundled conversations are new; of other
instructions, web text and tool calls 33 to 52% of the tokens are, of Russian 73%."""


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
        """Reads the sidecar of weights. Returns None without a record, empty experience if `path` is None."""
        if path is None:
            return cls.none(vocab_size)
        return cls.from_sidecar(peek_object(sidecar_path(path)), vocab_size)

    @classmethod
    def from_sidecar(cls, sidecar: dict[str, Any], vocab_size: int) -> Self | None:
        """Returns None if the sidecar does not say: those of other projects and older versions do not."""
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


def data_advice(known: Experience | None, samples: Samples, tokenizer: Tokenizer, weights: str) -> list[str]:
    """Notes how much of `samples` is new to weights with some experience, if that is much.

    Control tokens do not count: a model that has only read text learns them in every fine-tuning.
    """
    if known is None or known.longest == 0:
        return []
    counts = samples.label_counts(len(known.seen))
    control_ids = [tokenizer.token_to_id(token) for token in tokenizer.control_tokens()]
    counts[[index for index in control_ids if index is not None]] = 0
    new = counts[~known.seen].sum() / max(counts.sum(), 1)
    longer = np.mean(samples.document_lengths() > known.longest)
    facts = []
    if new > LARGE_SHARE:
        facts.append(f"{new:.0%} of the tokens to learn never occurred in what {weights} was trained on")
    if longer > LARGE_SHARE:
        facts.append(f"{longer:.0%} of the samples are longer than any that {weights} was trained on "
                     f"({known.longest} tokens)")
    if not facts:
        return []
    return [f"note        {'; '.join(facts)}: the model must learn that from your rows alone, and docs/real_run.md "
            "shows what 10,000 rows give"]
