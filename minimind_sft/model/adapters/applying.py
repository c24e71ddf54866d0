"""Applies adapters to a model: one, or several with a weight each."""

from collections.abc import Sequence

import torch
from torch import nn

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoraShape, adapted, add_adapters
from minimind_sft.model.quantized import check_replaces_no_4_bits


@torch.no_grad()
def apply_adapters(model: MiniMindForCausalLM, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Adds the weighted sum of several adapters to a model. The sum of changes is one change of a higher rank:
    w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2].

    Parameters that an adapter trained in full replace the model's.

    Raises:
        UserError: for such parameters that have a weight, that two adapters have, or that the model keeps in 4 bits;
            the model is then unchanged.
    """
    check_saved(adapters)
    for adapter, _ in adapters:
        check_replaces_no_4_bits(model, adapter.saved, adapter.path)
    for adapter, _ in adapters:
        for name, tensor in adapter.saved.items():
            model.get_parameter(name).copy_(tensor)
    names = list(dict.fromkeys(name for adapter, _ in adapters for name in adapter.changes))
    add_adapters(model, names, LoraShape(rank=1, alpha=1.0))
    for name, place in adapted(model):
        summed = joined([adapter.changes[name]._replace(scale=adapter.changes[name].scale * weight)
                         for adapter, weight in adapters if name in adapter.changes])
        place.lora_A = nn.Parameter(summed.a, requires_grad=False)
        place.lora_B = nn.Parameter(summed.b, requires_grad=False)


def check_saved(adapters: Sequence[tuple[Adapter, float]]) -> None:
    """
    Raises:
        UserError: if parameters trained in full would have to be weighted or summed.
    """
    owners: dict[str, Adapter] = {}
    for adapter, weight in adapters:
        for name in adapter.saved:
            if weight != 1:
                raise UserError(f"{adapter.path}: {name} was trained in full, which cannot be weighted; leave its "
                                f"weight {weight:g} out")
            if name in owners:
                raise UserError(f"{adapter.path}: {name} was trained in full, and {owners[name].path} brings another; "
                                "apply one of the two")
            owners[name] = adapter


def joined(changes: Sequence[Change]) -> Change:
    """Returns the sum of several changes as one of scale 1."""
    return Change(torch.cat([change.a for change in changes], -2),
                  torch.cat([change.b * change.scale for change in changes], -1), 1.0)
