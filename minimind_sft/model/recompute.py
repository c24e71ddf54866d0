"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): less memory, more time, the same numbers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimind_sft.model.moe import MixtureOfExperts


def recomputed(layer: nn.Module, x_TD: Tensor, *arguments: object) -> Tensor:
    """Returns `layer(x_TD, *arguments)` and keeps only `x_TD`; the backward pass runs the layer again.

    The second run draws the same dropout and works under the same autocast.
    """
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules())
    return checkpoint(layer, x_TD, *arguments, use_reentrant=False, preserve_rng_state=drops,
                      context_fn=partial(_first_and_second_run, layer))


def _first_and_second_run(layer: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return _nothing_kept_by_autocast(), _same_routing(layer)


@contextmanager
def _nothing_kept_by_autocast() -> Iterator[None]:
    """Lets go of a weight's copy in autocast's dtype after its product.

    Autocast would keep the copies of all layers until the end of the forward pass, for products that never come.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


@contextmanager
def _same_routing(layer: nn.Module) -> Iterator[None]:
    """Puts back the routing of the first run, which the auxiliary loss has read.

    The routing of the second run would keep all of its activations in memory.
    """
    routings = [(module, module.routing) for module in layer.modules() if isinstance(module, MixtureOfExperts)]
    try:
        with _nothing_kept_by_autocast():
            yield
    finally:
        for experts, routing in routings:
            experts.routing = routing
