"""Tokens and lengths that weights were trained on, to tell which data are strange to them."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from minimind_sft.data.dataset import Samples

STRANGE_SHARE = 0.1
"""The bundled conversations are below 1% (tokens) and 0% (lengths) for the bundled model; instructions, web text and
tool calls from elsewhere are at 33 to 52%, Russian is at 73%."""


@dataclass(frozen=True)
class Experience:
    """The tokens that some weights have learned to predict, and the longest document they were trained on."""

    seen: np.ndarray
    """[vocab_size], whether a token was ever a label."""
    longest: int

    @classmethod
    def none(cls, vocab_size: int) -> Self:
        return cls(np.zeros(vocab_size, bool), 0)

    @classmethod
    def from_sidecar(cls, sidecar: dict[str, Any], vocab_size: int) -> Self | None:
        """None where the sidecar does not say, as those of other projects and of older versions do not."""
        try:
            record = sidecar["training"]["experience"]
            bits = np.frombuffer(base64.b64decode(record["tokens"], validate=True), np.uint8)
            seen = np.unpackbits(bits, count=vocab_size).astype(bool)
            return cls(seen, int(record["longest"])) if len(bits) == -(-vocab_size // 8) else None
        except (KeyError, TypeError, ValueError, binascii.Error):
            return None

    def for_sidecar(self) -> dict[str, Any]:
        """Encodes one bit per token, in base64, and the longest document in tokens."""
        return {"tokens": base64.b64encode(np.packbits(self.seen).tobytes()).decode("ascii"), "longest": self.longest}

    def after(self, samples: Samples) -> Self:
        """Adds the tokens and lengths of `samples`."""
        return type(self)(self.seen | (samples.label_counts(len(self.seen)) > 0),
                          max(self.longest, int(samples.document_lengths().max(initial=0))))


def strangeness(known: Experience, samples: Samples, control_ids: Iterable[int], weights: str) -> list[str]:
    """Says how much of `samples` the weights have never met; no line where that is little.

    Control tokens do not count: a model that has only read text learns them in every fine-tuning.
    """
    counts = samples.label_counts(len(known.seen))
    counts[list(control_ids)] = 0
    new = counts[~known.seen].sum() / max(counts.sum(), 1)
    longer = np.mean(samples.document_lengths() > known.longest)
    facts = []
    if new > STRANGE_SHARE:
        facts.append(f"{new:.0%} of the tokens to learn never occurred in what {weights} was trained on")
    if longer > STRANGE_SHARE:
        facts.append(f"{longer:.0%} of the samples are longer than any that {weights} was trained on "
                     f"({known.longest} tokens)")
    if not facts:
        return []
    return [f"note        {'; '.join(facts)}: the model must learn that from your rows alone, and docs/real_run.md "
            "shows what 10,000 rows give"]
