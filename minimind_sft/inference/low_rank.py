"""The changes that adapters make to packed matrices.

A base whose weights float16 can hold stays packed at two bytes per weight. Merged with a change, which float16 cannot
hold, it would take four, and decoding one token reads all of them. The change itself is small.

Local letter: R ranks of several changes together.
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

    All changes together are one: y + B A x, where A stacks theirs, and B has theirs, scaled, in blocks along the
    diagonal.
    """

    def __init__(self, product: Product, outputs: Sequence[int], changes: Sequence[Change | None]):
        self._product = product
        self._a_RI = torch.cat([at_least_float32(change.a.detach()) for change in changes if change is not None])
        self._b_RO = torch.block_diag(*(
            self._a_RI.new_zeros(0, size) if change is None else at_least_float32(change.b.detach()).T * change.scale
            for size, change in zip(outputs, changes, strict=True)))

    def __call__(self, x_TI: Tensor) -> Tensor:
        low_TR = F.linear(x_TI.to(self._a_RI.dtype), self._a_RI)
        return self._product(x_TI).to(low_TR.dtype).addmm_(low_TR, self._b_RO)
