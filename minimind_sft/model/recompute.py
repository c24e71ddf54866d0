"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): less memory, more time, the same numbers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

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
    return nullcontext(), _same_routing(layer)


@contextmanager
def _same_routing(layer: nn.Module) -> Iterator[None]:
    """Puts back the routing of the first run, which the auxiliary loss has read.

    The routing of the second run would keep all of its activations in memory.
    """
    routings = [(module, module.routing) for module in layer.modules() if isinstance(module, MixtureOfExperts)]
    try:
        yield
    finally:
        for experts, routing in routings:
            experts.routing = routing
