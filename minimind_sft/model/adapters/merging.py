"""Merges adapters into their base, and shows that the model stays the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.loaded import Weights
from minimind_sft.model.lora import merge_adapters

TOLERANCE = 1e-5
"""The largest difference of logits that merging may make, relative to the largest logit if that is above 1."""


class Merged(NamedTuple):
    """A model with its adapters merged.

    difference: the largest difference of a logit that merging made.
    largest: the largest logit.
    """

    model: MiniMindForCausalLM
    difference: float
    largest: float


@torch.no_grad()
def merge(weights: Weights, adapters: Sequence[tuple[Adapter, float]], documents: Sequence[Sequence[int]]) -> Merged:
    """Returns the model of the weights with the weighted adapters in its matrices, in float32.

    Args:
        documents: token ids of the texts on which merged and unmerged logits are compared.

    Raises:
        UserError: if the logits differ by more than rounding.
    """
    model = weights.build_model().eval()
    apply_adapters(model, adapters)
    unmerged_TV = _logits(model, documents)
    merge_adapters(model)
    difference = float((_logits(model, documents) - unmerged_TV).abs().max())
    largest = float(unmerged_TV.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):  # also refuses NaN
        raise UserError(f"{', '.join(str(adapter.path) for adapter, _ in adapters)}: merged and unmerged logits differ "
                        f"by {difference:.1e} (the largest logit is {largest:.3g}), expected at most {TOLERANCE:g} of "
                        "that; nothing was written")
    return Merged(model, difference, largest)


def history(weights: Weights, adapters: Sequence[tuple[Adapter, float]]) -> list[dict[str, Any]]:
    """Returns the merges that made the weights, the last one included, for the sidecar."""
    earlier = (weights.sidecar or {}).get("merged", [])
    return [*earlier, {"base": fingerprint(weights), "base_name": weights.path.name, "adapters": [
        {"name": adapter.path.name, "sha256": sha256_of_adapter(adapter.path), "weight": weight}
        for adapter, weight in adapters]}]


def sha256_of_adapter(path: Path) -> str:
    """Returns the SHA-256 of an adapter's file, or of the tensors in its folder."""
    return sha256_of_file(min(path.glob("adapter_model.*")) if path.is_dir() else path)


def _logits(model: MiniMindForCausalLM, documents: Sequence[Sequence[int]]) -> Tensor:
    """Returns the logits (T, V) of all documents, end to end."""
    ends = [0]
    for ids in documents:
        ends.append(ends[-1] + len(ids))
    return model.document_logits(torch.tensor([one for ids in documents for one in ids]), ends)
