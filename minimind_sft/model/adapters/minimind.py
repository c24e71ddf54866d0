"""MiniMind's adapter file: `<name>_<hidden_size>[_moe].pth`, a state dict without any description.

A tensor is named after its projection: `model.layers.0.self_attn.q_proj.lora.A.weight` (r, I) and `...B.weight` (O, r).
The change is B A, so the scale is 1. MiniMind's own code makes one of rank 16 for every linear layer whose inputs are
as many as its outputs, and no other.

Local letter: r rank.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minimind_sft.errors import UserError, printable
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.checking import paired, projection_shapes
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import HEAD, all_finite, listed
from minimind_sft.model.weights_file import read_tensors

RANK = 16
"""The rank of all of MiniMind's adapters; its programs read no other."""
NAME = re.compile(r"(.+)\.lora\.([AB])\.weight")
OF_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(0|[1-9]\d{0,5})\.(\w+)")


def read_minimind(path: Path, config: ModelConfig) -> Adapter:
    """Reads a file of MiniMind's.

    Raises:
        UserError: if it cannot be read, or is no adapter; names the file and the tensor.
    """
    tensors, _, notices = read_tensors(path)
    pairs, others = paired(tensors, NAME, path)
    if others:
        raise UserError(f"{path}: {_what_it_is(next(iter(others)))}")
    # Zeros stand for no adapter, as `write_minimind` leaves them: neither A nor B would ever get a gradient.
    changes = _stacked({name: Change(a, b, 1.0) for name, (a, b) in pairs.items() if a.any() or b.any()}, path, config)
    return Adapter(path, changes, notices=(*notices, f"{path}: an adapter of MiniMind, which does not say what weights "
                                                     "it was trained on"))


def _what_it_is(name: str) -> str:
    """Returns what a file with such a tensor is, instead of an adapter of MiniMind."""
    if "lora_" in name:
        return f"{printable(name)}: a tensor of PEFT's: give the folder that has adapter_config.json"
    return (f"{printable(name)}: not a matrix of an adapter (<projection>.lora.A.weight, .lora.B.weight): a model's "
            "weights go to --weight")


def _stacked(changes: Mapping[str, Change], path: Path, config: ModelConfig) -> dict[str, Change]:
    """Returns the changes of single experts as one of the stack; an expert without one does not change."""
    shapes = projection_shapes(config)
    found: dict[str, Change] = {}
    experts: dict[str, dict[int, Change]] = {}
    for name, change in changes.items():
        one = OF_EXPERT.fullmatch(name)
        if one and (stack := f"{one[1]}.{one[3]}") in shapes:
            experts.setdefault(stack, {})[int(one[2])] = change
        else:
            found[name] = change
    for name, parts in experts.items():
        count, outputs, inputs = shapes[name]
        rank = max(len(change.a) for change in parts.values())
        a_ErI, b_EOr = torch.zeros(count, rank, inputs), torch.zeros(count, outputs, rank)
        for expert, (a, b, _) in parts.items():
            if expert >= count or a.shape != (len(a), inputs) or b.shape != (outputs, len(a)):
                raise UserError(f"{path}: {name}, expert {expert}: A is {list(a.shape)} and B {list(b.shape)}, but the "
                                f"model has {count} experts of [{outputs}, {inputs}]")
            a_ErI[expert, :len(a)], b_EOr[expert, :, :len(a)] = a, b
        found[name] = Change(a_ErI, b_EOr, 1.0)
    return found


def write_minimind(path: Path, adapter: Adapter, config: ModelConfig, dtype: str = "float16") -> None:
    """Writes a file that MiniMind's programs load: rank 16, scale 1, and every square matrix has an adapter.

    The scale goes into B. Zeros fill up a lower rank and stand for a matrix that does not change.

    Raises:
        UserError: if the adapter changes anything else, has a higher rank, or values too large for `dtype`.
    """
    squares = square_matrices(config)
    _check_expressible(adapter, squares)
    tensors: dict[str, Tensor] = {}
    for name, size in squares.items():
        a_RI, b_OR = torch.zeros(RANK, size), torch.zeros(size, RANK)
        if change := _change_of(name, adapter):
            rank = len(change.a)
            a_RI[:rank], b_OR[:, :rank] = change.a, change.b * change.scale
        tensors |= {f"{name}.lora.A.weight": a_RI, f"{name}.lora.B.weight": b_OR}
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not all_finite(tensor)]:
        raise UserError(f"--dtype {dtype}: {listed(bad)} has values too large for it; bfloat16 and float32 hold them")
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # PyTorch's for a file that cannot be written to its end
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def square_matrices(config: ModelConfig) -> dict[str, int]:
    """Returns the linear layers with as many inputs as outputs, by name.

    Each expert has its own, and a tied head counts.
    """
    shapes = {HEAD: (config.vocab_size, config.hidden_size), **tensor_shapes(config)}
    return {name.removesuffix(".weight"): shape[0] for name, shape in shapes.items()
            if len(shape) == 2 and shape[0] == shape[1] and ".embed_" not in name}


def _check_expressible(adapter: Adapter, squares: Mapping[str, int]) -> None:
    def has_place(name: str) -> bool:
        parent, _, matrix = name.rpartition(".")
        return name in squares or (parent.endswith(".mlp.experts") and f"{parent}.0.{matrix}" in squares)

    if adapter.saved:
        raise UserError(f"{adapter.path}: {listed(list(adapter.saved))}: trained in full, but MiniMind's adapters have "
                        "only low-rank changes: merge it and convert the weights (scripts/merge_lora.py)")
    if others := [name for name in adapter.changes if not has_place(name)]:
        there = dict.fromkeys(name.rpartition(".")[2] for name in squares)
        raise UserError(f"{adapter.path}: {listed(others)}: MiniMind has adapters only for square matrices, here "
                        f"{', '.join(there) or 'none'}: train with --target_modules, or merge it and convert the "
                        "weights (scripts/merge_lora.py)")
    for name, change in adapter.changes.items():
        if change.a.shape[-2] > RANK:
            raise UserError(f"{adapter.path}: {name}: rank {change.a.shape[-2]}, but MiniMind's adapters have rank "
                            f"{RANK}: merge it and convert the weights (scripts/merge_lora.py)")


def _change_of(name: str, adapter: Adapter) -> Change | None:
    """Returns the change of a layer of MiniMind's, for an expert's that of the expert."""
    if one := OF_EXPERT.fullmatch(name):
        stack = adapter.changes.get(f"{one[1]}.{one[3]}")
        return stack and Change(stack.a[int(one[2])], stack.b[int(one[2])], stack.scale)
    return adapter.changes.get(name)
