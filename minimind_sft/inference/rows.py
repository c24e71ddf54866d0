"""Computes rows in numbers at which a row's result does not depend on the rows beside it.

Local letter: M rows with those that fill up.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.inference.lowering import LanguageModel, LoweredModel
from minimind_sft.inference.row_invariance import is_row_invariant
from minimind_sft.model.attention import Context

T = TypeVar("T")


class Counts(NamedTuple):
    """Numbers of rows: multiples of `multiple` up to `most`. More are hardly faster on a CPU, and were not looked at.
    """

    multiple: int
    most: int


CANDIDATES = (Counts(1, 128), Counts(4, 64), Counts(16, 16))
"""From the fastest on. Matrix products of CPUs often agree for multiples of 4, others for one number of rows only."""
ONE = Counts(1, 1)


class Rows:
    """A model that computes rows in certain numbers; it fills up with rows that nobody reads."""

    def __init__(self, model: LanguageModel, counts: Counts):
        self.config, self.embed_tokens, self.counts = model.config, model.embed_tokens, counts
        self._model = model

    @property
    def pages_together(self) -> int:
        """Up to how many tokens the pages of a pass may have together; 1: each needs a pass of its own."""
        return self.counts.most if self.counts.multiple == 1 else 1

    def groups(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yields as many items as may be computed together, until all were there."""
        for start in range(0, len(items), self.counts.most):
            yield items[start:start + self.counts.most]

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        """Returns what the head reads (T, D), for at most `counts.most` rows."""
        missing = self._missing(input_ids_T)
        if not missing:
            return self._model.hidden_states(input_ids_T, positions_T, context)
        filled = _Filled(context, len(input_ids_T), missing)
        ids_M, positions_M = F.pad(input_ids_T, (0, missing)), F.pad(positions_T, (0, missing))
        hidden_MD = self._model.hidden_states(ids_M, positions_M, filled)
        return hidden_MD[:len(input_ids_T)]

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Returns the scores of the next token (T, V), for any number of rows."""
        return joined([self._model.logits(F.pad(rows, (0, 0, 0, self._missing(rows))))[:len(rows)]
                       for rows in hidden_TD.split(self.counts.most)])

    def _missing(self, rows: Tensor) -> int:
        return -len(rows) % self.counts.multiple


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Returns the rows of all parts, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Filled:
    """The context of a pass over T tokens and some that fill up, which read nothing."""

    def __init__(self, context: Context, tokens: int, missing: int):
        self._context, self._tokens, self._missing = context, tokens, missing

    @property
    def length_T(self) -> Tensor:
        return F.pad(self._context.length_T, (0, self._missing), value=1)

    def attend(self, layer_index: int, q_MHK: Tensor, k_MGK: Tensor, v_MGK: Tensor, window: int | None) -> Tensor:
        q_THK, k_TGK, v_TGK = (x[:self._tokens] for x in (q_MHK, k_MGK, v_MGK))
        out_THK = self._context.attend(layer_index, q_THK, k_TGK, v_TGK, window)
        return F.pad(out_THK, (0, 0, 0, 0, 0, self._missing))


_known: WeakKeyDictionary[object, dict[tuple, Counts]] = WeakKeyDictionary()


def exact_rows(model: LanguageModel) -> Rows:
    """Returns the model with the largest choice of numbers at which it is exact, as a look at its results says.

    A model that says in `row_counts` how many to compute is not looked at.
    """
    counts = getattr(model, "row_counts", None)
    if counts is None:
        weight = model.embed_tokens.weight
        device = weight.device.type
        circumstances = device, weight.dtype, torch.get_num_threads(), torch.is_autocast_enabled(device)
        known = _known.setdefault(model, {})
        if circumstances not in known:
            known[circumstances] = _exact_counts(model)
        counts = known[circumstances]
    return Rows(model, counts)


def _exact_counts(model: LanguageModel) -> Counts:
    weight = model.embed_tokens.weight
    if not isinstance(model, LoweredModel) and weight.device.type == "cpu" and weight.dtype.itemsize == 2:
        return ONE  # rounding hides nearly all differences from a look, but not from every request
    for counts in CANDIDATES:
        if is_row_invariant(cast(LanguageModel, Rows(model, counts)), counts.most):
            return counts
    return ONE
