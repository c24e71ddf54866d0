"""The Example, one document as the model sees it. Labels are shifted here and nowhere else."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from minimind_sft.labels import IGNORE_INDEX


class Example(NamedTuple):
    """One document as the model sees it.

    `labels[i]` is the token after `input_ids[i]` if that token is supervised, else `IGNORE_INDEX`: the labels are
    shifted already. Both are int32 arrays, one shorter than the document.
    """

    input_ids: np.ndarray
    labels: np.ndarray


def make_example(ids: ArrayLike, supervised: ArrayLike) -> Example:
    """Makes an Example of a document of at least 2 tokens; `supervised[i]` tells whether token i is learned."""
    ids_array = np.asarray(ids, dtype=np.int32)
    labels = ids_array[1:].copy()
    labels[~np.asarray(supervised, dtype=bool)[1:]] = IGNORE_INDEX
    return Example(ids_array[:-1], labels)
