"""The parts of a model under the names that PEFT gives them, and changes of matrices that others keep joined.

Local letters: r rank, I inputs, O outputs, E experts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind_sft.model.adapters.adapter import Change
from minimind_sft.model.adapters.checking import parameter_shapes, projection_shapes
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Entry, Family
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.families.tensor_shapes import tensor_shapes

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)")
"""A projection of one expert, as transformers 4 and files of weights name it."""
STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The stacks of all experts in transformers 5, in their order there, and ours that each holds."""


@dataclass(frozen=True)
class Layout:
    """The names of one family.

    modules: the linear modules, each with our projections that it holds, joined along their outputs.
    stacks: the parameters that hold the matrices of all experts, each with our stacks that it holds.
    transposed: the modules that keep (inputs, outputs).
    tensors: their other parameters, each with ours that it holds.
    """

    family: Family
    modules: dict[str, tuple[str, ...]]
    stacks: dict[str, tuple[str, ...]]
    transposed: frozenset[str]
    tensors: dict[str, Entry]

    @property
    def leaves(self) -> list[str]:
        """The names of all modules that hold parameters."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in [*self.tensors, *self.stacks]))


def layout_of(family: Family, config: ModelConfig) -> Layout | None:
    """Returns the names of a model in a family, or None if the family does not hold all of its tensors."""
    shapes, projections = tensor_shapes(config), projection_shapes(config)
    entries = family.entries(config)
    if {name for entry in entries for name in entry.ours} != shapes.keys():
        return None
    modules = {}
    for entry in entries:
        ours = tuple(name.removesuffix(".weight") for name in entry.ours)
        module = entry.theirs.removesuffix(".weight")
        if all(name in projections or EXPERT.fullmatch(name) for name in ours):
            modules[module] = ours
    parents = [name.removesuffix(".gate_proj") for name in projections if name.endswith(".experts.gate_proj")]
    stacks = {f"{parent}.{theirs}": tuple(f"{parent}.{one}" for one in ours)
              for parent in parents for theirs, ours in STACKS.items()}
    tensors = {entry.theirs: entry for entry in entries if not EXPERT.fullmatch(entry.ours[0].removesuffix(".weight"))}
    transposed = frozenset(entry.theirs.removesuffix(".weight") for entry in entries if entry.transposed)
    return Layout(family, modules, stacks, transposed, tensors)


def layouts(config: ModelConfig) -> list[Layout]:
    """Returns the names of a model in every family that can hold it."""
    found = (layout_of(family, config) for family in FAMILIES.values())
    return [layout for layout in found if layout is not None]


def split(change: Change, rows: Sequence[int]) -> list[Change | None]:
    """Splits the change of a joined matrix into those of its parts, which share A.

    A row of A that a part's B ignores is left out of that part, so that parts that were joined with `join` come back
    as they were. A part without any change becomes None.

    Args:
        rows: the outputs of each part.
    """
    parts: list[Change | None] = []
    for b in change.b.split(list(rows), -2):
        used = b.flatten(0, -2).ne(0).any(0)
        parts.append(Change(change.a[..., used, :], b[..., used], change.scale) if used.any() else None)
    if len(parts) == 1 or not any(parts):  # an adapter that was not trained yet: B is 0
        parts = [Change(change.a, b, change.scale) for b in change.b.split(list(rows), -2)]
    return parts


def join(parts: Sequence[Change | None], rows: Sequence[int]) -> Change:
    """Returns the change of a joined matrix: its A holds the A of all parts, its B is block-diagonal.

        [Wq]    [Bq  0   0 ] [Aq]
        [Wk] +  [0   Bk  0 ] [Ak]
        [Wv]    [0   0   Bv] [Av]

    Parts with the same A share it.

    Args:
        rows: the outputs of each part; None is a part without a change.
    """
    there = [part for part in parts if part is not None]
    scale = there[0].scale if all(part.scale == there[0].scale for part in there) else 1.0
    distinct: list[Tensor] = []
    for part in there:
        if not any(torch.equal(part.a, a) for a in distinct):
            distinct.append(part.a)
    blocks = []
    for place, outputs in zip(parts, rows, strict=True):
        row = [a.new_zeros(*a.shape[:-2], outputs, a.shape[-2]) for a in distinct]
        if place is not None:
            at = next(index for index, a in enumerate(distinct) if torch.equal(place.a, a))
            row[at] = place.b if place.scale == scale else place.b * place.scale
        blocks.append(torch.cat(row, -1))
    return Change(torch.cat(distinct, -2), torch.cat(blocks, -2), scale)


def stack(change: Change, experts: int) -> Change:
    """Returns the change of all experts from PEFT's two matrices: A (E * r, I), B (O, r * E)."""
    a = change.a.unflatten(0, (experts, -1))
    return Change(a, change.b.unflatten(1, (-1, experts)).permute(2, 0, 1), change.scale)


def unstack(change: Change) -> Change:
    """Returns the change of all experts as PEFT's two matrices: A (E * r, I), B (O, r * E)."""
    return Change(change.a.flatten(0, 1), change.b.permute(1, 2, 0).flatten(1), change.scale)


def outputs_of(config: ModelConfig, names: Sequence[str]) -> list[int]:
    """Returns the outputs of projections, one expert's of stacked ones."""
    shapes: Mapping[str, tuple[int, ...]] = projection_shapes(config)
    experts = (EXPERT.fullmatch(name) for name in names)
    return [shapes[name if of is None else f"{of[1]}.{of[3]}"][-2] for name, of in zip(names, experts, strict=True)]


def rows_of(config: ModelConfig, names: Sequence[str]) -> list[int]:
    """Returns the size of parameters along the dimension in which others join them."""
    shapes = parameter_shapes(config)
    return [shapes[name][-2 if len(shapes[name]) == 3 else 0] for name in names]
