"""Defines what a family is: how others write the configuration and the tensors of a model that the decoder can compute.

Local letters: as in the legend of the package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimind_sft.model.config import ModelConfig


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs, and the tensors of ours that it holds.

    theirs, ours: names. Several of ours are joined along their first dimension.
    transposed: theirs is (inputs, outputs), as GPT-2's Conv1D keeps it.
    stacked: ours become one tensor with a new first dimension: the experts in a GGUF file.
    rotary_heads: number of heads if theirs pairs neighbours 2i and 2i + 1 for RoPE, as GGUF's Llama does. Ours pairs
        the two halves of a head.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    stacked: bool = False
    rotary_heads: int = 0

    def to_ours(self, tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Returns our tensors; `rows` are their sizes along the first dimension."""
        if self.stacked:
            return list(tensor.unbind())
        if self.transposed:
            tensor = tensor.T
        if self.rotary_heads:
            tensor = tensor.unflatten(0, (self.rotary_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return list(tensor.split(list(rows)))

    def to_theirs(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns their tensor."""
        if self.stacked:
            return torch.stack(list(tensors))
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
        if self.rotary_heads:
            tensor = tensor.unflatten(0, (self.rotary_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return tensor.T.contiguous() if self.transposed else tensor


@dataclass(frozen=True)
class Family:
    """One family's way of writing a model.

    name: its `model_type` in config.json, or `general.architecture` in a GGUF file.
    read_config: their configuration -> ours. Refuses by name what the decoder cannot compute and what it does not know.
    write_config: ours -> theirs, without special tokens: those belong to the tokenizer.
    entries: the tensors of a model, ours and theirs, for a configuration; every one of ours exactly once.
    no_weights: patterns (for `re.fullmatch`) of tensors in their files that hold no weights, such as RoPE's tables.
    prefix: what begins the name of every tensor but the head's. Files that were saved without the head lack it.
    """

    name: str
    read_config: Callable[[Any], ModelConfig]
    write_config: Callable[[ModelConfig], Any]
    entries: Callable[[ModelConfig], list[Entry]]
    no_weights: tuple[str, ...] = ()
    prefix: str = ""
