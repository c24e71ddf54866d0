"""Keeps matrices that several models have in common once: a base that is served with different adapters.

Matrices are compared by their values, so that it does not matter where models come from. What is shared is what each
model would have made for itself: no result changes.
"""

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor, nn

from minimind_sft.inference.packed import Pack, Product


class SharedMatrices:
    """Gives out matrices that it has given out before, as long as it lives."""

    def __init__(self) -> None:
        self._products: dict[tuple, Product] = {}
        self._embeddings: dict[tuple, nn.Embedding] = {}

    def pack_with(self, pack: Pack) -> Pack:
        """Returns `pack`, but equal matrices give the same product."""
        def packed_once(weights: Sequence[Tensor], bias_O: Tensor | None) -> Product:
            key = (pack, *map(_fingerprint, weights), None if bias_O is None else _fingerprint(bias_O))
            if key not in self._products:
                self._products[key] = pack(weights, bias_O)
            return self._products[key]

        return packed_once

    def embedding(self, own: nn.Embedding) -> nn.Embedding:
        """Returns an embedding with the values of `own`: the first one."""
        return self._embeddings.setdefault(_fingerprint(own.weight), own)


def _fingerprint(tensor: Tensor) -> tuple:
    values = tensor.detach().cpu().contiguous().view(torch.uint8)
    return tensor.dtype, tensor.device, tuple(tensor.shape), sha256(values.numpy().data).digest()
