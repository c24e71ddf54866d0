"""Summed cross-entropy of the next token, over supervised positions.

Shapes: S supervised positions, N with what fills them up, C of one chunk (filled up), R of them at a time, D hidden
size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind_sft.model.precision import at_least_float32, matmul_dtype

CHUNK = 1024
"""Positions whose logits exist at the same time."""

ROWS = 64
"""The last chunk is filled up to a multiple of this: on a CPU every new size of a product in bfloat16 costs memory.

Also the rows of logits that a CPU turns into their gradient at a time: few, so that they stay in its cache.
"""


def cross_entropy_sum(hidden_ND: Tensor, head_VD: Tensor, labels_S: Tensor) -> Tensor:
    """Sum of -log softmax(hidden @ head.T)[label], a scalar of at least float32.

    `labels_S` are the tokens that follow the first S positions of `hidden_ND`; the others have no influence.
    """
    if not torch.is_grad_enabled():
        head_VD = head_VD.detach()  # or autograd would still say that a gradient is wanted, and it would be computed
    return _ChunkedCrossEntropy.apply(hidden_ND, head_VD, labels_S)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes each chunk's gradient while its logits exist, so that the full logits never do, nor are made twice."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, head_VD: Tensor, labels_S: Tensor) -> Tensor:
        dtype = matmul_dtype(head_VD)
        wants_hidden, wants_head, _ = ctx.needs_input_grad
        loss_sum = at_least_float32(hidden_ND.new_zeros(()))
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_head_VD = torch.zeros_like(head_VD) if wants_head else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight_VD = head_VD.to(dtype)
            for start in range(0, len(labels_S), CHUNK):
                chunk = slice(start, min(start + CHUNK, len(labels_S)))
                labels_C, real = labels_S[chunk], slice(chunk.stop - start)
                hidden_CD = _filled_up(hidden_ND[chunk]).to(dtype)
                logits_CV = F.linear(hidden_CD, weight_VD)
                loss_sum += _gradient_in_place_of(logits_CV, labels_C)
                if wants_hidden:
                    grad_hidden_ND[chunk] = (logits_CV @ weight_VD)[real]
                if wants_head:
                    grad_head_VD += logits_CV.T @ hidden_CD
                del logits_CV  # or it would live until the next chunk's is there
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        return (
            None if grad_hidden_ND is None else grad_hidden_ND * grad_loss,
            None if grad_head_VD is None else grad_head_VD * grad_loss,
            None,
        )


def _filled_up(hidden_CD: Tensor) -> Tensor:
    """With rows of zeros, up to a multiple of `ROWS`; they add nothing to the head's gradient."""
    return F.pad(hidden_CD, (0, 0, 0, -len(hidden_CD) % ROWS))


def _gradient_in_place_of(logits_CV: Tensor, labels: Tensor) -> Tensor:
    """The summed cross-entropy of as many rows as there are labels; overwrites them with its gradient.

    What the rows after them then hold is finite, and means nothing.
    """
    loss_sum = at_least_float32(logits_CV.new_zeros(()))
    rows = ROWS if logits_CV.device.type == "cpu" else len(logits_CV)
    for logits_RV, labels_R in zip(logits_CV.split(rows), labels.split(rows), strict=True):
        real = slice(len(labels_R))
        logprobs_RV = at_least_float32(logits_RV).log_softmax(-1)
        loss_sum += F.nll_loss(logprobs_RV[real], labels_R, reduction="sum")
        _softmax_minus_one_hot_(logprobs_RV[real], labels_R)
        logits_RV.copy_(logprobs_RV)
    return loss_sum


def _softmax_minus_one_hot_(logprobs_CV: Tensor, labels_C: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy with respect to the logits, in the memory of `logprobs_CV`."""
    probs_CV = logprobs_CV.exp_()
    return probs_CV.scatter_add_(1, labels_C[:, None], probs_CV.new_full((len(labels_C), 1), -1.0))
