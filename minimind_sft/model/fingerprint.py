"""Identifies weights by their values, whatever file they come from."""

import hashlib

import torch

from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import Weights


def fingerprint(weights: Weights) -> str:
    """Returns the SHA-256 of all tensors by name, as float32.

    It is the same for a .pth file, a Hugging Face folder and a GGUF file with the same values, in whatever precision.
    A tied head counts once.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(tensor_shapes(weights.config).items()):
        digest.update(f"{name} {list(shape)}\n".encode())
        values = weights.tensors[name].to(torch.float32).contiguous()
        digest.update(values.numpy().data.cast("B"))
    return digest.hexdigest()
