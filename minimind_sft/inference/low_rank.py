"""The changes that adapters make to packed matrices.

A base whose weights float16 can hold stays packed at two bytes per weight. Merged with a change, which float16 cannot
hold, it would take four, and decoding one token reads all of them. The change itself is small.

Local letters: r rank of a change, R ranks of several changes together.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.inference.packed import Product
from minimind_sft.model.adapters.adapter import Change
from minimind_sft.model.precision import at_least_float32


class ChangedProduct:
    """Adds the changes of several matrices that read the same input to their packed product.

    One product computes A x for all of them.
    """

    def __init__(self, product: Product, outputs: Sequence[int], changes: Sequence[Change | None]):
        self._product, self._outputs = product, list(outputs)
        self._a_RI = torch.cat([at_least_float32(change.a.detach()) for change in changes if change is not None])
        self._ranks = [0 if change is None else len(change.a) for change in changes]
        self._b_rO = [None if change is None else (at_least_float32(change.b.detach()) * change.scale).T.contiguous()
                      for change in changes]

    def __call__(self, x_TI: Tensor) -> Tensor:
        low_TR = F.linear(x_TI.to(self._a_RI.dtype), self._a_RI)
        y_TO = self._product(x_TI).to(low_TR.dtype)
        parts = zip(y_TO.split(self._outputs, -1), low_TR.split(self._ranks, -1), self._b_rO, strict=True)
        for part_TO, low_Tr, b_rO in parts:
            if b_rO is not None:
                part_TO.addmm_(low_Tr, b_rO)
        return y_TO
