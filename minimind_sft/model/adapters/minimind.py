"""MiniMind's adapter file: `<name>_<hidden_size>[_moe].pth`, a state dict without any description.

A tensor is named after its projection: `model.layers.0.self_attn.q_proj.lora.A.weight` (r, I) and `...B.weight` (O, r).
The change is B A, so the scale is 1. MiniMind's own code makes one of rank 16 for every linear layer whose inputs are
as many as its outputs, and no other.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from minimind_sft.errors import UserError, printable
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.weights_file import read_tensors

NAME = re.compile(r"(.+)\.lora\.([AB])\.weight")
OF_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(\w+)")


def read_minimind(path: Path, config: ModelConfig) -> Adapter:
    """Reads a file of MiniMind's.

    Raises:
        UserError: if it cannot be read, or is no adapter; names the file and the tensor.
    """
    tensors, _, notices = read_tensors(path)
    halves: dict[str, dict[str, Tensor]] = {}
    for name in tensors:
        found = NAME.fullmatch(name)
        if found is None:
            raise UserError(f"{path}: {printable(name)}: expected the tensors of an adapter of MiniMind, "
                            "<projection>.lora.A.weight and .lora.B.weight")
        halves.setdefault(found[1], {})[found[2]] = tensors[name].to(torch.float32)
    for name, half in halves.items():
        if len(half) < 2:
            missing = "B" if "A" in half else "A"
            raise UserError(f"{path}: {printable(name)}.lora.{missing}.weight: missing")
    changes = {name: Change(half["A"], half["B"], 1.0) for name, half in halves.items()}
    return Adapter(path, changes, notices=(*notices, f"{path}: an adapter of MiniMind, which does not say what weights "
                                                     "it was trained on"))
