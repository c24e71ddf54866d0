"""Reads our tensors from a file of another family, strictly and one at a time."""

import re

from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Entry, Family
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import EMBEDDING, HEAD, LazyTensors, Source, equal_values, listed


class Translated(LazyTensors):
    """Our tensors in their file, by our names and in their stored dtype. A tied head is left out.

    Raises:
        UserError: if one of their tensors is missing, unknown or of another shape than the configuration says.
    """

    def __init__(self, family: Family, config: ModelConfig, source: Source):
        self.shapes = tensor_shapes(config)
        super().__init__(self.shapes, self._translate)
        self._source = source
        has_prefix = any(name.startswith(family.prefix) for name in source.shapes)
        self._dropped = "" if has_prefix else family.prefix
        entries = family.entries(config)
        self._entry = {name: entry for entry in entries for name in entry.ours}
        assert self._entry.keys() == self.shapes.keys(), "a family's entries hold every tensor exactly once"
        # The last matrix and the last vector with several of ours: their parts are mostly asked for in a row.
        self._joined: dict[int, tuple[Entry, list[Tensor]]] = {}
        self._check(entries, family, tied=config.tie_word_embeddings)

    def _translate(self, name: str) -> Tensor:
        entry = self._entry[name]
        if len(entry.ours) == 1:
            return self._parts(entry)[0]
        dimensions = len(self.shapes[name])
        if dimensions not in self._joined or self._joined[dimensions][0] is not entry:
            self._joined.pop(dimensions, None)  # before the next one is read
            self._joined[dimensions] = (entry, self._parts(entry))
        return self._joined[dimensions][1][entry.ours.index(name)]

    def _parts(self, entry: Entry) -> list[Tensor]:
        rows = [self.shapes[name][0] for name in entry.ours]
        return entry.to_ours(self._source.read(self._stored(entry.theirs)), rows)

    def _stored(self, theirs: str) -> str:
        """Returns a tensor's name in this file, which lacks the prefix if it was saved without the head."""
        return theirs.removeprefix(self._dropped)

    def _check(self, entries: list[Entry], family: Family, tied: bool) -> None:
        found = self._source.shapes
        expected = {self._stored(entry.theirs): self._shape_of(entry) for entry in entries}
        self._refuse([name for name in expected if name not in found],
                     "missing: the weights are incomplete or belong to another configuration")
        for name, shape in expected.items():
            if tuple(found[name]) != shape:
                raise UserError(f"{self._source.path}: {name}: has shape {list(found[name])}, but the configuration "
                                f"says {list(shape)}")
        no_weights = re.compile("|".join(family.no_weights) or r"(?!)")
        self._refuse([name for name in found if name not in expected and not (tied and name == HEAD)
                      and not any(map(no_weights.fullmatch, (name, self._dropped + name)))],
                     f"unknown in a model of the family {family.name} with this configuration")
        if tied and HEAD in found and not equal_values(self._source.read(HEAD), self[EMBEDDING]):
            raise UserError(f"{self._source.path}: {HEAD}: differs from the embedding, but tie_word_embeddings is on: "
                            "set that to false in config.json if the model has a head of its own")

    def _shape_of(self, entry: Entry) -> tuple[int, ...]:
        """Returns the shape that their tensor must have."""
        shapes = [self.shapes[name] for name in entry.ours]
        if entry.stacked:
            return (len(shapes), *shapes[0])
        joined = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return joined[::-1] if entry.transposed else joined

    def _refuse(self, names: list[str], problem: str) -> None:
        if names:
            raise UserError(f"{self._source.path}: {listed(names)}: {problem}")
