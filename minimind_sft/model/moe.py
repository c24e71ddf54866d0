"""Mixture of experts: a router sends every token to a few of many SwiGLU networks.

Shapes: T tokens, D hidden size, F expert width, E experts, K experts per token, N = T * K copies of tokens sorted by
expert, n of them for one expert, S documents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.config import ModelConfig
from minimind_sft.model.precision import at_least_float32, for_matmul


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

    def forward(self, x_TD: Tensor) -> Tensor:
        probs_TE = self.route(x_TD)
        weight_TK, chosen_TK = probs_TE.topk(self.experts_per_token)
        if self.norm_topk_prob:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        self.routing = (probs_TE, chosen_TK) if self.training else None

        by_expert_N = chosen_TK.flatten().argsort(stable=True)
        tokens_E = chosen_TK.flatten().bincount(minlength=probs_TE.shape[1])
        y_ND = self.experts(x_TD.index_select(0, by_expert_N // self.experts_per_token), tokens_E)
        y_TKD = y_ND.index_select(0, by_expert_N.argsort()).unflatten(0, chosen_TK.shape)
        return (weight_TK.unsqueeze(-1) * y_TKD).sum(1).to(y_ND.dtype)

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
        self.register_state_dict_post_hook(_unstack_experts)
        self.register_load_state_dict_pre_hook(_stack_experts)

    def forward(self, x_ND: Tensor, tokens_E: Tensor) -> Tensor:
        """`x_ND` is sorted by expert, the first `tokens_E[0]` rows go to expert 0 and so on; returns (N, D).

        Experts without tokens take part with no rows, so that their gradient is zero and not missing.
        """
        x_ND, y = for_matmul(x_ND, self.gate_proj), []
        weights = zip(self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind(), strict=True)
        for x_nD, (gate_FD, up_FD, down_DF) in zip(x_ND.split(tokens_E.tolist()), weights, strict=True):
            y.append(F.linear(F.silu(F.linear(x_nD, gate_FD)) * F.linear(x_nD, up_FD), down_DF))
        return torch.cat(y)


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
    count_SE = cell_TK.flatten().bincount(minlength=documents * num_experts).view(documents, num_experts)
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
