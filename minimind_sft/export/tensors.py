"""The tensors of an export: ours under the names and in the layout of a family, in the dtype to write."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.model.families.family import Entry, Family
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import Weights


def rounded(tensor: Tensor, name: str, dtype: str) -> Tensor:
    """Returns a tensor in `dtype`.

    Raises:
        UserError: if a value is too large for it.
    """
    result = tensor.to(getattr(torch, dtype))
    if not torch.isfinite(result).all():
        raise UserError(f"--dtype {dtype}: {name} has values too large for it (up to "
                        f"{float(tensor.abs().max()):.3g}); bfloat16 and float32 hold them")
    return result


class TheirTensors:
    """The tensors of weights as a family writes them, read one at a time.

    shapes: their names and shapes, in the order of the family's entries.
    """

    def __init__(self, weights: Weights, family: Family, dtype: str):
        self._weights, self._dtype = weights, dtype
        self._entries: Mapping[str, Entry] = {entry.theirs: entry for entry in family.entries(weights.config)}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        ours = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(self._weights.config).items()}
        return {name: tuple(entry.to_theirs([ours[one] for one in entry.ours]).shape)
                for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """Reads one of theirs.

        Raises:
            UserError: if a value is too large for the dtype.
        """
        entry = self._entries[name]
        return entry.to_theirs([rounded(self._weights.tensors[one], one, self._dtype) for one in entry.ours])
