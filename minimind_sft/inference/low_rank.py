"""The changes that adapters make to packed matrices.

A base whose weights float16 can hold stays packed at two bytes per weight. Merged with a change, which float16 cannot
hold, it would take four, and decoding one token reads all of them. The change itself is small.

Local letter: R ranks of several changes together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind_sft.inference.packed import Pack, Product
from minimind_sft.model.adapters.adapter import Change
from minimind_sft.model.precision import at_least_float32


class ChangedProduct:
    """Adds the changes of several matrices that read the same input to their packed product.

    Two products compute them all: A x, then B times its own part of that.

    Args:
        outputs: how many outputs each matrix has.
        changes: that of each matrix; None: none.
    """

    def __init__(self, product: Product, outputs: Sequence[int], changes: Sequence[Change | None], pack: Pack):
        present = [change for change in changes if change is not None]
        a_RI = torch.cat([at_least_float32(change.a.detach()) for change in present])
        b_OR = a_RI.new_zeros(sum(outputs), len(a_RI))
        output = rank = 0
        for count, change in zip(outputs, changes, strict=True):
            if change is not None:
                ranks = slice(rank, rank + len(change.a))
                b_OR[output:output + count, ranks] = at_least_float32(change.b.detach()) * change.scale
                rank = ranks.stop
            output += count
        self._product, self._down, self._up = product, pack([a_RI], None), pack([b_OR], None)

    def __call__(self, x_TI: Tensor) -> Tensor:
        change_TO = self._up(self._down(at_least_float32(x_TI)))
        return change_TO.add_(self._product(x_TI))
