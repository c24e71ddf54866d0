"""Sends tokens to their experts and sums what comes back. Plain twin: moe.mixture.

Local letters: M rows, J copies of each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def dispatch(x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor, experts: int,
             network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Returns the weighted sum of each token's experts' outputs (T, D).

    Args:
        network: network(x_ND, ends_E) -> y_ND computes all experts, over copies of the tokens sorted by expert; the
            rows of expert e end before `ends_E[e]` (int32), where those of the next begin.
    """
    by_expert_N = chosen_TC.flatten().argsort(stable=True)
    place_TC = by_expert_N.argsort().view_as(chosen_TC)
    ends_E = count(chosen_TC, experts).cumsum(0, dtype=torch.int32)
    y_ND = network(_Copies.apply(x_TD, by_expert_N // chosen_TC.shape[1], place_TC), ends_E)
    y_TCD = _Copies.apply(y_ND, place_TC.flatten(), by_expert_N[:, None]).unflatten(0, chosen_TC.shape)
    return _sum_of_copies(weight_TC.unsqueeze(-1) * y_TCD).to(y_ND.dtype)


class _Copies(torch.autograd.Function):
    """Copies row `source_N[n]` of x_MD to place n. The gradient sums over the places `copies_MJ` of each row's copies.

    The gradient of `index_select` would add row by row instead, on CUDA in no fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, source_N: Tensor, copies_MJ: Tensor) -> Tensor:
        ctx.save_for_backward(copies_MJ)
        return x_MD.index_select(0, source_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (copies_MJ,) = ctx.saved_tensors
        grad_MJD = grad_ND.index_select(0, copies_MJ.flatten()).unflatten(0, copies_MJ.shape)
        return _sum_of_copies(grad_MJD), None, None


def _sum_of_copies(x_MJD: Tensor) -> Tensor:
    """Sums over J, without the copy that PyTorch makes even of a single summand."""
    return x_MJD.squeeze(1) if x_MJD.shape[1] == 1 else x_MJD.sum(1)


def count(index: Tensor, bins: int) -> Tensor:
    """Counts how often each of 0, 1, ..., bins - 1 occurs (bins,). Unlike `bincount`, does not wait for the GPU."""
    index = index.flatten()
    return torch.zeros(bins, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))
