"""Attention for CPUs over sequences so short that their attention weights may be kept for the backward pass.

There PyTorch's flash attention cuts its products into pieces too small to be fast. Over short sequences a batched
product of a whole block of queries does the work of many.

Shapes: B sequences, L positions, Q queries at each position, D head dim, M = L * Q; of one block N positions, their
queries R = N * Q, and the P positions up to its end.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind_sft.model.precision import at_least_float32

BLOCK = 64
"""Positions whose queries are multiplied at once. Positions after a block are left out of its products."""


def short_attention(q_BLQD: Tensor, k_BLD: Tensor, v_BLD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over each sequence's own past (B, L, Q, D), in at least float32 throughout."""
    with torch.autocast(v_BLD.device.type, enabled=False):
        return _ShortAttention.apply(*(at_least_float32(x) for x in (q_BLQD, k_BLD, v_BLD)))


class _ShortAttention(torch.autograd.Function):
    """The gradient written out, as in appendix B of Dao et al. 2022 (arXiv:2205.14135).

    With scores S = q k^T / sqrt(D), weights W = softmax(S), output W v and its gradient g:
    dv = W^T g, dW = g v^T, dS = W (dW - sum(W dW)), dq = dS k / sqrt(D), dk = dS^T q / sqrt(D).
    """

    @staticmethod
    def forward(ctx, q_BLQD: Tensor, k_BLD: Tensor, v_BLD: Tensor) -> Tensor:
        _, positions, queries, head_dim = q_BLQD.shape
        q_BMD = q_BLQD.flatten(1, 2) * head_dim**-0.5
        mask_RN = _future(min(positions, BLOCK), queries, q_BLQD.device)
        weights, out = [], []
        for rows, past, own in _blocks(positions, queries):
            scores_BRP = torch.bmm(q_BMD[:, rows], k_BLD[:, past].mT)
            own_BRN = scores_BRP[:, :, own]
            own_BRN.masked_fill_(mask_RN[: own_BRN.shape[1], : own_BRN.shape[2]], -torch.inf)
            weights_BRP = scores_BRP.softmax(-1)
            if any(ctx.needs_input_grad):
                weights.append(weights_BRP)
            out.append(torch.bmm(weights_BRP, v_BLD[:, past]))
        ctx.save_for_backward(q_BMD, k_BLD, v_BLD, *weights)
        return torch.cat(out, 1).view_as(q_BLQD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BLQD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BMD, k_BLD, v_BLD, *weights = ctx.saved_tensors
        _, positions, queries, head_dim = grad_BLQD.shape
        grad_BMD = grad_BLQD.flatten(1, 2)
        grad_q, grad_k_BLD, grad_v_BLD = [], torch.zeros_like(k_BLD), torch.zeros_like(v_BLD)
        with torch.autocast(v_BLD.device.type, enabled=False):
            for weights_BRP, (rows, past, _) in zip(weights, _blocks(positions, queries), strict=True):
                grad_BRD = grad_BMD[:, rows]
                grad_v_BLD[:, past] += torch.bmm(weights_BRP.mT, grad_BRD)
                products_BRP = torch.bmm(grad_BRD, v_BLD[:, past].mT).mul_(weights_BRP)
                grad_scores_BRP = products_BRP.addcmul_(weights_BRP, products_BRP.sum(-1, keepdim=True), value=-1)
                grad_q.append(torch.bmm(grad_scores_BRP, k_BLD[:, past]))
                grad_k_BLD[:, past] += torch.bmm(grad_scores_BRP.mT, q_BMD[:, rows])
        return torch.cat(grad_q, 1).mul_(head_dim**-0.5).view_as(grad_BLQD), grad_k_BLD, grad_v_BLD


def _blocks(positions: int, queries: int) -> Iterator[tuple[slice, slice, slice]]:
    """Of each block: its queries, the positions up to its end, and its own among these."""
    for start in range(0, positions, BLOCK):
        end = min(start + BLOCK, positions)
        yield slice(start * queries, end * queries), slice(end), slice(start, end)


def _future(positions: int, queries: int, device: torch.device) -> Tensor:
    """Whether a position is after that of a query (positions * queries, positions)."""
    column_N = torch.arange(positions, device=device)
    return column_N > column_N.repeat_interleave(queries)[:, None]
