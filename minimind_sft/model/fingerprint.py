"""Identifies weights by their values, whatever file they come from."""

import hashlib

import torch
from torch import Tensor

from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import Weights

PIECE = 2**22
"""Numbers that are converted at a time: a few MB, which stay in a CPU's cache."""


def fingerprint(weights: Weights) -> str:
    """Returns the SHA-256 of a list: of each tensor its name, its shape, and the SHA-256 of its values as float32.

    It is the same for a .pth file, a Hugging Face folder and a GGUF file with the same values, in whatever precision.
    A tied head counts once.
    """
    whole = hashlib.sha256()
    for name, shape in sorted(tensor_shapes(weights.config).items()):
        whole.update(f"{name} {list(shape)} {sha256_of_values(weights.tensors[name])}\n".encode())
    return whole.hexdigest()


def sha256_of_values(tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's values as float32, in hex."""
    digest = hashlib.sha256()
    for piece in tensor.detach().reshape(-1).split(PIECE):
        digest.update(piece.to(torch.float32).contiguous().numpy().data.cast("B"))
    return digest.hexdigest()
