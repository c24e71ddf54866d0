"""Mixture of experts: a router sends every token to a few of many SwiGLU networks.

Shapes: T tokens, D hidden size, F expert width, E experts, K experts per token, N = T * K copies of tokens sorted by
expert, n of them for one expert, S documents, I and O the inputs and outputs of a matrix, M rows and C copies of each.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.precision import at_least_float32, for_matmul
from minimind_sft.model.rows import rows
from minimind_sft.model.swiglu import gated


class MixtureOfExperts(nn.Module):
    """Each token's output is the sum of its `num_experts_per_tok` best experts' outputs, weighted by the router.

    In training mode the last forward's routing stays in `self.routing` for `balance_loss_sum`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.experts_per_token = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.routing: tuple[Tensor, Tensor] | None = None

    def forward(self, x_TD: Tensor, wanted_N: Tensor | None = None) -> Tensor:
        """(T, D), or of the rows `wanted_N`; all are routed, because the auxiliary loss is about all."""
        probs_TE = self.route(x_TD)
        weight_TK, chosen_TK = probs_TE.topk(self.experts_per_token)
        if self.norm_topk_prob:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        self.routing = (probs_TE, chosen_TK) if self.training else None
        x_TD, weight_TK, chosen_TK = (rows(each, wanted_N) for each in (x_TD, weight_TK, chosen_TK))

        by_expert_N = chosen_TK.flatten().argsort(stable=True)
        place_TK = by_expert_N.argsort().view_as(chosen_TK)
        ends_E = count(chosen_TK, probs_TE.shape[1]).cumsum(0, dtype=torch.int32)
        y_ND = self.experts(_Copies.apply(x_TD, by_expert_N // self.experts_per_token, place_TK), ends_E)
        y_TKD = _Copies.apply(y_ND, place_TK.flatten(), by_expert_N[:, None]).unflatten(0, chosen_TK.shape)
        return sum_of_copies(weight_TK.unsqueeze(-1) * y_TKD).to(y_ND.dtype)

    def route(self, x_TD: Tensor) -> Tensor:
        """Router probabilities (T, E), in at least float32: rounding must not decide between two experts."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(at_least_float32(x_TD), at_least_float32(self.gate.weight)).softmax(-1)


class Experts(nn.Module):
    """The SwiGLU networks of all experts, stacked; outside (state dict) each expert has its own names."""

    def __init__(self, num_experts: int, hidden_size: int, width: int):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.loop = looped_mm  # DecoderLayer.compile puts one in its place that stays outside the graph
        self.register_state_dict_post_hook(_unstack_experts)
        self.register_load_state_dict_pre_hook(_stack_experts)

    def forward(self, x_ND: Tensor, ends_E: Tensor) -> Tensor:
        """The outputs (N, D) of rows that are sorted by expert; `ends_E` as in `expert_matmul`."""
        x_ND = for_matmul(x_ND, self.gate_proj)
        gate_NF = expert_matmul(x_ND, self.gate_proj, ends_E, self.loop)
        up_NF = expert_matmul(x_ND, self.up_proj, ends_E, self.loop)
        return expert_matmul(gated(gate_NF, up_NF), self.down_proj, ends_E, self.loop)


def looped_mm(x_NI: Tensor, weight_EIO: Tensor, *, offs: Tensor) -> Tensor:
    """What `F.grouped_mm` computes, one expert after the other."""
    groups = x_NI.tensor_split(offs[:-1].tolist())
    return torch.cat([x_nI @ weight_IO for x_nI, weight_IO in zip(groups, weight_EIO.unbind(), strict=True)])


def expert_matmul(x_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor,
                  loop: Callable[..., Tensor] = looped_mm) -> Tensor:
    """Each row times the transposed matrix of its expert (N, O), in autocast's dtype: grouped where that can be.

    An expert without rows takes part with none: its gradient is zero and not missing.

    Args:
        ends_E: int32; the rows of expert e end before `ends_E[e]`, where those of the next begin.
        loop: what multiplies where they cannot be grouped.
    """
    x_NI, weight_EOI = for_matmul(x_NI, weight_EOI), for_matmul(weight_EOI, weight_EOI)
    multiply = F.grouped_mm if can_be_grouped(x_NI, weight_EOI) else loop
    return multiply(x_NI, weight_EOI.transpose(1, 2), offs=ends_E)


def can_be_grouped(x_NI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether PyTorch's grouped multiply takes these: rows of whole 16 bytes, no float64, and not on an Apple GPU.

    On CUDA it is one kernel for bfloat16 from compute capability 9.0 on, else a loop inside PyTorch that waits for
    `ends_E`; a compiler knows it for bfloat16 only; without rows there is nothing to launch.
    """
    *_, outputs, inputs = weight_EOI.shape
    dtypes = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.bfloat16, torch.float16, torch.float32)
    whole = all(size * weight_EOI.itemsize % 16 == 0 for size in (outputs, inputs))
    if weight_EOI.device.type == "mps" or weight_EOI.dtype not in dtypes or x_NI.dtype != weight_EOI.dtype:
        return False
    return whole and len(x_NI) > 0


class _Copies(torch.autograd.Function):
    """Row `source_N[n]` of x_MD at place n. Its gradient is read from the places `copies_MC` that hold a row.

    The gradient of `index_select` adds row by row instead, on CUDA in any order.
    """

    @staticmethod
    def forward(ctx, x_MD: Tensor, source_N: Tensor, copies_MC: Tensor) -> Tensor:
        ctx.save_for_backward(copies_MC)
        return x_MD.index_select(0, source_N)

    @staticmethod
    def backward(ctx, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (copies_MC,) = ctx.saved_tensors
        grad_MCD = grad_ND.index_select(0, copies_MC.flatten()).unflatten(0, copies_MC.shape)
        return sum_of_copies(grad_MCD), None, None


def sum_of_copies(x_MCD: Tensor) -> Tensor:
    """Sums over C; of one summand PyTorch would make a copy."""
    return x_MCD.squeeze(1) if x_MCD.shape[1] == 1 else x_MCD.sum(1)


def count(index: Tensor, bins: int) -> Tensor:
    """How often each of 0, 1, ..., bins - 1 occurs (bins,): `bincount`, which on CUDA would wait for the device."""
    index = index.flatten()
    return torch.zeros(bins, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))


def balance_loss_sum(probs_TE: Tensor, chosen_TK: Tensor, document_T: Tensor, documents: int) -> Tensor:
    """The auxiliary loss of one layer, summed over documents times their tokens; without its coefficient.

    For one document of n tokens it is n * E * sum over experts of load_e * mean prob_e, where load_e is how often
    expert e was chosen per token (the sequence-wise balance loss of DeepSeek-V3, arXiv:2412.19437, in MiniMind's
    scale: the loads sum to K, not 1). The load is a count and carries no gradient.

    Args:
        document_T: which of the `documents` documents each token belongs to.
    """
    experts_per_token, num_experts = chosen_TK.shape[1], probs_TE.shape[1]
    cell_TK = document_T[:, None] * num_experts + chosen_TK
    count_SE = count(cell_TK, documents * num_experts).view(documents, num_experts)
    tokens_S = count_SE.sum(1, keepdim=True) // experts_per_token
    load_SE = count_SE.to(probs_TE.dtype) / tokens_S
    return num_experts * (load_SE[document_T] * probs_TE).sum()


def _unstack_experts(module: Experts, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    for name, _ in module.named_parameters(recurse=False):
        for e, weight in enumerate(state_dict.pop(prefix + name)):
            state_dict[f"{prefix}{e}.{name}.weight"] = weight


def _stack_experts(module: Experts, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                   missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str]) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        keys = [f"{prefix}{e}.{name}.weight" for e in range(len(parameter))]
        missing = [key for key in keys if key not in state_dict]
        wrong = [key for key in keys if key not in missing and state_dict[key].shape != parameter.shape[1:]]
        missing_keys += missing
        error_msgs += [f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the file, "
                       f"{tuple(parameter.shape[1:])} in the model" for key in wrong]
        weights = [state_dict.pop(key) for key in keys if key in state_dict]
        # A problem is told by the expert's own name above; the parameter stands in so that it is not told twice.
        state_dict[prefix + name] = parameter.detach() if missing or wrong else torch.stack(weights)
