"""Reads the tensors of a resume state, and checks all of them against the run before any is used.

The moments of a parameter are named `<kind>|<parameter>`, which does not depend on how the optimizer groups parameters.
The shards of a tensor follow one another along its first dimension; a scalar is the same in every shard.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minimind_sft.errors import UserError, printable
from minimind_sft.model.loaded import all_finite
from minimind_sft.terminal import counted

DTYPES = {"F32": torch.float32, "F64": torch.float64}
COUNTER = "step"
"""The kind of moment that counts the updates of a parameter."""
NEVER_NEGATIVE = (COUNTER, "exp_avg_sq")


class Stored(NamedTuple):
    """Shape and dtype of a tensor in a resume state, all of its shards together."""

    shape: torch.Size
    dtype: torch.dtype


class StateTensors:
    """The tensors in the files of one part of a resume state: its weights, or the optimizer's moments.

    Attributes:
        stored: the tensors by name.

    Raises:
        UserError: naming the file, if the shards do not fit together or hold other numbers than training computes with.
    """

    def __init__(self, path: Path, part: str):
        self._files = sorted(path.glob(f"{part}-*.safetensors"))
        self.place = f"{path}: {part}"
        self.stored: dict[str, Stored] = {}
        for number, file in enumerate(self._files):
            found = dict(_headers(file))
            if number and found.keys() != self.stored.keys():
                odd = sorted(found.keys() ^ self.stored.keys())[0]
                raise UserError(f"{file}: {printable(odd)} is not in every shard")
            self.stored = {name: _joined(self.stored.get(name), one, f"{file}: {printable(name)}")
                           for name, one in found.items()}

    def read(self, name: str) -> Tensor:
        """Reads a tensor, joined from its shards."""
        shards = list(self.shards(name))
        return torch.cat(shards) if shards[0].dim() else shards[0]

    def shards(self, name: str) -> Iterator[Tensor]:
        """Reads the shards of a tensor, one at a time."""
        for path in self._files:
            with safe_open(path, "pt") as file:
                yield file.get_tensor(name)


def check_weights(tensors: StateTensors, parameters: Mapping[str, nn.Parameter]) -> None:
    """Checks that the weights are those of all parameters: in name, shape and dtype, and finite.

    Raises:
        UserError: for the first that is not.
    """
    if tensors.stored.keys() != parameters.keys():
        odd = sorted(tensors.stored.keys() ^ parameters.keys())[0]
        raise UserError(f"{tensors.place}: not the parameters of this model: {printable(odd)} is on one side only")
    for name, parameter in parameters.items():
        _check_kind(tensors, name, Stored(parameter.shape, parameter.dtype))
    for name in parameters:
        _check_values(tensors, name)


def check_moments(tensors: StateTensors, parameters: Mapping[str, nn.Parameter], trained: Collection[str],
                  updates: int, kinds: Mapping[str, Stored | None]) -> None:
    """Checks the optimizer's moments: in name, shape, dtype and range.

    Args:
        trained: the names of the parameters that have made updates, so that they must have moments; others may.
        updates: how many updates the run has made.
        kinds: the moments that the optimizer keeps (`kept_by`).

    Raises:
        UserError: for the first that is missing, unknown or not as it should be.
    """
    known = {f"{kind}|{name}": alike or Stored(parameter.shape, parameter.dtype)
             for name, parameter in parameters.items() for kind, alike in kinds.items()}
    for name in tensors.stored:
        if name not in known:
            raise UserError(f"{tensors.place}: {printable(name)} is no moment of a parameter of this model")
    owners = {*(trained if updates else ()), *(name.partition("|")[2] for name in tensors.stored)}
    for name in (f"{kind}|{owner}" for owner in parameters if owner in owners for kind in kinds):
        if name not in tensors.stored:
            raise UserError(f"{tensors.place}: {printable(name)} is missing")
        _check_kind(tensors, name, known[name])
    for name in tensors.stored:
        _check_values(tensors, name)
        if name.startswith(f"{COUNTER}|"):
            _check_counter(tensors, name, updates)


def kept_by(optimizer: torch.optim.Optimizer) -> dict[str, Stored | None]:
    """Returns the moments that an optimizer keeps for a parameter: shape and dtype, or None if like the parameter.

    Finds them by one update of a parameter of its own.
    """
    probe = nn.Parameter(torch.zeros(2, 3))
    probe.grad = torch.zeros_like(probe)
    group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    kind: Any = type(optimizer)
    twin = kind([{"params": [probe], **group}])
    twin.step()
    return {name: None if tensor.shape == probe.shape else Stored(tensor.shape, tensor.dtype)
            for name, tensor in twin.state[probe].items()}


def fresh_moments(kinds: Mapping[str, Stored | None], like: nn.Parameter) -> dict[str, Tensor]:
    """Returns the moments of a parameter that has not made an update, on its device."""
    return {kind: torch.zeros_like(like, requires_grad=False) if alike is None
            else torch.zeros(alike.shape, dtype=alike.dtype, device=like.device) for kind, alike in kinds.items()}


def _headers(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yields the tensors of one file by name, without reading them.

    Raises:
        UserError: naming the file.
    """
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (the file is no dict)
                tensor = file.get_slice(name)
                dtype = DTYPES.get(tensor.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: {printable(name)} has the type {tensor.get_dtype()}, expected "
                                    f"{' or '.join(DTYPES)}")
                yield name, Stored(torch.Size(tensor.get_shape()), dtype)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error


def _joined(before: Stored | None, shard: Stored, place: str) -> Stored:
    """Joins the next shard of a tensor to those before."""
    if before is None:
        return shard
    if before.dtype != shard.dtype or before.shape[1:] != shard.shape[1:] or len(before.shape) != len(shard.shape):
        raise UserError(f"{place} does not continue the shard before: {_described(shard)} after {_described(before)}")
    rows = [before.shape[0] + shard.shape[0]] if shard.shape else []
    return Stored(torch.Size([*rows, *shard.shape[1:]]), shard.dtype)


def _check_kind(tensors: StateTensors, name: str, expected: Stored) -> None:
    found = tensors.stored[name]
    if found.shape != expected.shape:
        raise UserError(f"{tensors.place}: {printable(name)} has shape {tuple(found.shape)}, expected "
                        f"{tuple(expected.shape)}")
    if found.dtype != expected.dtype:
        raise UserError(f"{tensors.place}: {printable(name)} is {_described(found)}, expected {_described(expected)}")


def _check_values(tensors: StateTensors, name: str) -> None:
    for shard in tensors.shards(name):
        if shard.numel() and not all_finite(shard):
            raise UserError(f"{tensors.place}: {printable(name)} is not finite")
        if shard.numel() and name.startswith(tuple(f"{kind}|" for kind in NEVER_NEGATIVE)) and shard.min() < 0:
            raise UserError(f"{tensors.place}: {printable(name)} is negative")


def _check_counter(tensors: StateTensors, name: str, updates: int) -> None:
    """Checks that a count of updates is whole, is the same in all shards, and does not exceed the run's."""
    counts = {shard.item() for shard in tensors.shards(name)}
    count = counts.pop()
    if counts or count != int(count) or count > updates:
        raise UserError(f"{tensors.place}: {printable(name)} is {count:g}, expected a whole number up to the run's "
                        f"{counted(updates, 'update')}")


def _described(stored: Stored) -> str:
    return f"{str(stored.dtype).removeprefix('torch.')} {tuple(stored.shape)}"
