"""Mixture of experts: a router sends each token to a few of many SwiGLU networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kernels.dispatch import count
from minimind_sft.model.kernels.selection import accelerated
from minimind_sft.model.layers import SwiGLU, gated
from minimind_sft.model.precision import at_least_float32


class MixtureOfExperts(nn.Module):
    """Sums the outputs of each token's `num_experts_per_tok` most probable experts, weighted by the router.

    Shared experts (Dai et al. 2024, arXiv:2401.06066) add theirs for every token.

    In training mode `self.routing` keeps the last routing for `balance_loss_sum`: probabilities (T, E) and chosen
    experts (T, C).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.experts_per_token = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = Router(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_experts = nn.ModuleList(
            SwiGLU(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_shared_experts))
        self.routing: tuple[Tensor, Tensor] | None = None

    def forward(self, x_TD: Tensor) -> Tensor:
        weight_TC, chosen_TC = self.route(x_TD)
        y_TD = self.experts(x_TD, weight_TC, chosen_TC)
        for expert in self.shared_experts:
            y_TD = y_TD + expert(x_TD)
        return y_TD

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights and the indices of each token's experts (T, C)."""
        probs_TE = self.gate(x_TD).softmax(-1)
        weight_TC, chosen_TC = probs_TE.topk(self.experts_per_token)
        if self.norm_topk_prob:
            weight_TC = weight_TC / weight_TC.sum(-1, keepdim=True)
        self.routing = (probs_TE, chosen_TC) if self.training else None
        return weight_TC, chosen_TC


class Router(nn.Linear):
    """Scores the experts in at least float32: rounding must not decide between two of them."""

    def forward(self, x_TD: Tensor) -> Tensor:
        with torch.autocast(x_TD.device.type, enabled=False):
            bias_E = None if self.bias is None else at_least_float32(self.bias)
            return F.linear(at_least_float32(x_TD), at_least_float32(self.weight), bias_E)


class Experts(nn.Module):
    """The SwiGLU networks of all experts, stacked. In a state dict each expert has names of its own."""

    def __init__(self, num_experts: int, hidden_size: int, width: int):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.register_state_dict_post_hook(_unstack_experts)
        self.register_load_state_dict_pre_hook(_stack_experts)

    def forward(self, x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor) -> Tensor:
        return mixture(x_TD, weight_TC, chosen_TC, self.gate_proj, self.up_proj, self.down_proj)


@accelerated
def mixture(x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor, gate_EFD: Tensor, up_EFD: Tensor,
            down_EDF: Tensor) -> Tensor:
    """Returns the sum over all experts of weight * SwiGLU(x), where experts that were not chosen have weight 0.

    This is equation 1 of Shazeer et al. 2017 (arXiv:1701.06538). Kernels leave out the products with 0.
    """
    total_TD = torch.zeros_like(x_TD)
    for e, (gate_FD, up_FD, down_DF) in enumerate(zip(gate_EFD, up_EFD, down_EDF, strict=True)):
        y_TD = F.linear(gated(F.linear(x_TD, gate_FD), F.linear(x_TD, up_FD)), down_DF)
        weight_T1 = (weight_TC * (chosen_TC == e)).sum(-1, keepdim=True)
        total_TD = total_TD + weight_T1 * y_TD
    return total_TD.to(down_EDF.dtype)


def balance_loss_sum(probs_TE: Tensor, chosen_TC: Tensor, document_T: Tensor, documents: int) -> Tensor:
    """Returns the auxiliary loss of one layer without its coefficient: a sum over documents, weighted by their tokens.

    For one document of n tokens it is n * E * sum over experts of load_e * mean prob_e, where load_e is how often
    expert e was chosen per token (the sequence-wise balance loss of DeepSeek-V3, arXiv:2412.19437, in MiniMind's
    scale: the loads sum to C, not 1). The load is a count and carries no gradient.

    Args:
        document_T: which of the `documents` documents each token belongs to.
    """
    experts_per_token, num_experts = chosen_TC.shape[1], probs_TE.shape[1]
    cell_TC = document_T[:, None] * num_experts + chosen_TC
    count_SE = count(cell_TC, documents * num_experts).view(documents, num_experts)
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
        # The messages above name the expert. The parameter itself fills in, or PyTorch would report it once more.
        state_dict[prefix + name] = parameter.detach() if missing or wrong else torch.stack(weights)
