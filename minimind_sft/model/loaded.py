"""Weights as they were read: a configuration, and tensors that are read when they are needed."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minimind_sft.errors import UserError, printable
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYER = re.compile(r"model\.layers\.\d+")
MAX_NAMED = 3
"""Tensors named in one error."""
COMPARED_ROWS = 4096
"""Rows of two matrices that are converted at a time to be compared."""


class Source(Protocol):
    """A file or folder of tensors, whatever their names: shapes cost nothing, `read` reads one tensor."""

    @property
    def path(self) -> Path: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor: ...


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name; each is read when it is asked for, and none is kept."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]):
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a Mapping's own method would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Weights:
    """The weights of a model, whatever file or folder they come from.

    path: the file or folder.
    tensors: by our names, in their stored dtype. Asking for one reads it, so ask once; names cost nothing.
    sidecar: None if there is none.
    notices: lines for the user about how the weights were read.
    family: the name of the family that the weights were found in; None for our own layout.
    """

    path: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    sidecar: dict[str, Any] | None
    notices: tuple[str, ...] = ()
    family: str | None = None

    def without_padding(self, vocab_size: int) -> "Weights":
        """Returns the same weights with only the first `vocab_size` rows of embedding and head.

        Rows beyond the tokenizer's vocabulary are padding; once they are gone, sampling cannot choose them.
        """
        if vocab_size == self.config.vocab_size:
            return self

        def read(name: str) -> Tensor:
            return self.tensors[name][:vocab_size] if name in (EMBEDDING, HEAD) else self.tensors[name]

        return replace(self, config=replace(self.config, vocab_size=vocab_size),
                       tensors=LazyTensors(self.tensors, read))

    def build_model(self, dropout: float = 0.0,
                    convert: Callable[[nn.Module], None] | None = None) -> MiniMindForCausalLM:
        """Returns a float32 model with exactly these weights.

        Beside the model, at most one tensor is in memory at a time.

        Args:
            convert: is called with each layer once its weights are complete. If it puts smaller matrices in place of
                the float32 ones, at most one layer is in memory in float32 at a time.

        Raises:
            UserError: if a tensor is missing, unknown, of another shape, or not finite; names it.
        """
        with Uninitialised():
            model = MiniMindForCausalLM(replace(self.config, dropout=dropout))
        places = model.state_dict()
        if self.config.tie_word_embeddings and HEAD not in set(self.tensors):
            del places[HEAD]
        self._check_names(places)
        # The largest tensors first: while their copy in the stored dtype is in memory, little of the model is.
        ordered = sorted(places, key=lambda name: name not in (EMBEDDING, HEAD))
        for layer, names in groupby(ordered, _layer_of):
            for name in names:
                self._fill(places.pop(name), name)
            if layer and convert:
                convert(model.get_submodule(layer))
        return model

    def _check_names(self, places: Mapping[str, Tensor]) -> None:
        there = set(self.tensors)
        problems = [f"{kind} key(s): {listed(names)}" for kind, names in (
            ("Missing", [name for name in places if name not in there]),
            ("Unexpected", [name for name in self.tensors if name not in places])) if names]
        if problems:
            raise UserError(f"{self.path}: {'; '.join(problems)}")

    @torch.no_grad()
    def _fill(self, place: Tensor, name: str) -> None:
        """Copies one tensor into its place in the model."""
        tensor = self.tensors[name]
        if tensor.shape != place.shape:
            raise UserError(f"{self.path}: size mismatch for {name}: {list(tensor.shape)} in the file, "
                            f"{list(place.shape)} in the model")
        if name == HEAD and self.config.tie_word_embeddings:
            if not equal_values(place, tensor):
                raise UserError(f"{self.path}: {HEAD} differs from {EMBEDDING}, but the model ties them "
                                "(tie_word_embeddings is true)")
            return
        place.copy_(tensor)
        if not all_finite(place):
            bad = place.numel() - int(torch.isfinite(place).sum())
            raise UserError(f"{self.path}: {printable(name)}: {bad:,} of its {place.numel():,} values are NaN or "
                            "infinite: the run that wrote the file diverged; use earlier weights")


class Uninitialised(TorchFunctionMode):
    """Skips the random initialisation of new modules, whose weights are about to be overwritten.

    Their memory is then only reserved: a page takes memory when it is first written.
    """

    SKIPPED = ("normal_", "uniform_", "kaiming_uniform_")

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if function.__name__ in self.SKIPPED:
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def _layer_of(name: str) -> str:
    """Returns the name of the decoder layer that a tensor belongs to, "" for the others."""
    part = LAYER.match(name)
    return part[0] if part else ""


def all_finite(tensor: Tensor) -> bool:
    """Tells whether no value is NaN or infinite, without a mask as large as the tensor."""
    low, high = tensor.aminmax()  # NaN if any value is
    return bool(torch.isfinite(low) and torch.isfinite(high))


def equal_values(a: Tensor, b: Tensor) -> bool:
    """Compares two matrices of any dtypes, in pieces: no second copy of a large one is made."""
    return a.shape == b.shape and all(torch.equal(x.double(), y.double())
                                      for x, y in zip(a.split(COMPARED_ROWS), b.split(COMPARED_ROWS), strict=True))


def listed(names: Sequence[str]) -> str:
    """Names the first of some tensors and counts the rest, for an error."""
    more = len(names) - MAX_NAMED
    return ", ".join(map(printable, names[:MAX_NAMED])) + (f" and {more} more" if more > 0 else "")
