"""Checks what was read as an adapter against the model that it is for."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from minimind_sft.errors import UserError, printable
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.loaded import HEAD, Uninitialised, all_finite, listed
from minimind_sft.model.lora_targets import projections


def paired(tensors: Mapping[str, Tensor], names: re.Pattern[str],
           path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Sorts the tensors of a file, as float32: pairs of A and B by projection, and all others by name.

    Args:
        names: matches the name of a matrix; its groups are the projection, and A or B.

    Raises:
        UserError: if one of a pair is missing; names it.
    """
    halves: dict[str, dict[str, str]] = {}
    rest = {}
    for name in tensors:
        if found := names.fullmatch(name):
            halves.setdefault(found[1], {})[found[2]] = name
        else:
            rest[name] = tensors[name].to(torch.float32)
    for half in halves.values():
        if len(half) < 2:
            (there, name), = half.items()
            start, end = names.fullmatch(name).span(2)  # type: ignore[union-attr]
            missing = f"{name[:start]}{'B' if there == 'A' else 'A'}{name[end:]}"
            raise UserError(f"{path}: {printable(missing)}: missing, but {there} is there: copy or save the "
                            "adapter again")
    return {projection: (tensors[half["A"]].to(torch.float32), tensors[half["B"]].to(torch.float32))
            for projection, half in halves.items()}, rest


def check_adapter(adapter: Adapter, config: ModelConfig) -> None:
    """
    Raises:
        UserError: if the adapter changes nothing, or something that a model of this configuration does not have;
            names the file and the projection or parameter.
    """
    if not adapter.changes and not adapter.saved:
        raise UserError(f"{adapter.path}: not an adapter: it holds no change of any projection")
    shapes = projection_shapes(config)
    for name, change in adapter.changes.items():
        if problem := _problem(name, change, shapes, config):
            raise UserError(f"{adapter.path}: {printable(name)}: {problem}")
    there = parameter_shapes(config)
    for name, tensor in adapter.saved.items():
        if name not in there:
            raise UserError(f"{adapter.path}: {printable(name)}: neither an adapter nor a parameter of the model")
        if tuple(tensor.shape) != there[name]:
            raise UserError(f"{adapter.path}: {name}: is {list(tensor.shape)}, but the model has {list(there[name])}")
        if not all_finite(tensor):
            raise UserError(f"{adapter.path}: {name}: has values that are NaN or infinite: the run that wrote it "
                            "diverged; use an earlier one")


def _problem(name: str, change: Change, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> str | None:
    """Returns why a change does not fit the model, or None."""
    if f"{name}.weight" == HEAD and config.tie_word_embeddings:
        return ("an adapter on the head, which this model shares with its embedding (tie_word_embeddings): merging it "
                "would separate the two")
    if name.endswith(".mlp.gate") and config.use_moe:
        return "an adapter on the router, which is not supported"
    if name not in shapes:
        return f"the model has no such projection; it has {listed(list(shapes))}"
    *stack, outputs, inputs = shapes[name]
    rank = change.a.shape[-2] if change.a.ndim > 1 else 0
    for part, tensor, expected in (("A", change.a, [*stack, rank, inputs]), ("B", change.b, [*stack, outputs, rank])):
        if list(tensor.shape) != expected:
            return f"{part} is {list(tensor.shape)}, expected {expected} for this model and rank {rank}"
        if tensor.numel() and not all_finite(tensor):
            return f"{part} has values that are NaN or infinite: the run that wrote it diverged; use an earlier one"
    if not 1 <= rank <= min(outputs, inputs):
        return f"rank {rank}, expected 1 to {min(outputs, inputs)}, the smaller side of the matrix"
    return None


@lru_cache(maxsize=8)
def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes (O, I), or (E, O, I) of stacked experts, of the projections that an adapter may change.

    The caller must not change the result.
    """
    model = _meta_model(config)
    shapes = {name: _matrix(model, name) for name in projections(model)}
    if not config.tie_word_embeddings:
        head = HEAD.removesuffix(".weight")
        shapes[head] = _matrix(model, head)
    return {name: tuple(matrix.shape) for name, matrix in shapes.items()}


@lru_cache(maxsize=8)
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's parameters by name, experts stacked, a tied head left out.

    The caller must not change the result.
    """
    return {name: tuple(parameter.shape) for name, parameter in _meta_model(config).named_parameters()}


def _meta_model(config: ModelConfig) -> MiniMindForCausalLM:
    with torch.device("meta"), Uninitialised():
        return MiniMindForCausalLM(config)


def _matrix(model: nn.Module, projection: str) -> Tensor:
    """Returns the matrix of a linear layer, or the stack of experts' matrices."""
    parent, _, own = projection.rpartition(".")
    found = getattr(model.get_submodule(parent), own)
    return found.weight if isinstance(found, nn.Linear) else found
