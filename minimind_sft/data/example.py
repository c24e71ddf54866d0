"""The Example: one document as the model sees it, its labels shifted once, here, and nowhere else."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minimind_sft.labels import IGNORE_INDEX


class Example(NamedTuple):
    """One document as the model sees it.

    `labels[i]` is the token that follows `input_ids[i]` where that token is supervised, else `IGNORE_INDEX`: the
    shift by one is done. Both are int32 arrays of the same length, one less than the document's tokens.
    """

    input_ids: np.ndarray
    labels: np.ndarray


def make_example(ids: Sequence[int], supervised: Sequence[bool]) -> Example:
    """The Example of a document of n >= 2 tokens; `supervised[i]` says whether token i is to be predicted."""
    ids_array = np.asarray(ids, dtype=np.int32)
    labels = ids_array[1:].copy()
    labels[~np.asarray(supervised, dtype=bool)[1:]] = IGNORE_INDEX
    return Example(ids_array[:-1], labels)
