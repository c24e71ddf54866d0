"""The mixture of experts compared with a loop over tokens, its auxiliary loss with the written-out formula."""

import pytest
import torch
import torch.nn.functional as F

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.moe import MixtureOfExperts, balance_loss_sum

HIDDEN, WIDTH, EXPERTS = 6, 5, 4


def mixture(experts_per_token: int, norm: bool = False) -> MixtureOfExperts:
    torch.manual_seed(0)
    module = MixtureOfExperts(ModelConfig(
        hidden_size=HIDDEN, num_attention_heads=1, num_key_value_heads=1, use_moe=True, num_experts=EXPERTS,
        num_experts_per_tok=experts_per_token, moe_intermediate_size=WIDTH, norm_topk_prob=norm,
    )).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def one_token(module: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    probs = (module.gate.weight @ x).softmax(0)
    chosen = sorted(range(EXPERTS), key=lambda e: -probs[e].item())[:module.experts_per_token]
    scale = sum(probs[e] for e in chosen) if module.norm_topk_prob else 1.0
    experts, total = module.experts, 0.0
    for e in chosen:
        total = total + probs[e] / scale * (experts.down_proj[e] @ (
            F.silu(experts.gate_proj[e] @ x) * (experts.up_proj[e] @ x)))
    return total


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("experts_per_token", [1, 2, 4])
def test_outputs_and_gradients_equal_a_loop_over_tokens(experts_per_token, norm):
    module = mixture(experts_per_token, norm)
    x = torch.randn(13, HIDDEN, dtype=torch.float64, requires_grad=True)
    weights = [x, *module.parameters()]
    ours, plain = module(x), torch.stack([one_token(module, token) for token in x])
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), weights),
                               torch.autograd.grad(plain.square().sum(), weights), rtol=1e-10, atol=1e-10)


def test_shared_experts_add_their_output_for_every_token():
    torch.manual_seed(0)
    module = MixtureOfExperts(ModelConfig(hidden_size=HIDDEN, num_attention_heads=1, num_key_value_heads=1,
                                          use_moe=True, moe_intermediate_size=WIDTH, num_shared_experts=2)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(7, HIDDEN, dtype=torch.float64)
    weights, chosen = module.route(x)
    expected = module.experts(x, weights, chosen)
    for shared in module.shared_experts:
        gate, up, down = shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight
        expected = expected + (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert {name for name in module.state_dict() if "shared" in name} == {
        f"shared_experts.{i}.{name}_proj.weight" for i in (0, 1) for name in ("gate", "up", "down")}


@pytest.mark.parametrize(("norm", "router_learns"), [(False, True), (True, False)])
def test_the_top_1_router_learns_from_the_output_unless_weights_are_normalised(norm, router_learns):
    module = mixture(1, norm)
    module(torch.randn(13, HIDDEN, dtype=torch.float64)).square().sum().backward()
    assert (module.gate.weight.grad.abs().max() > 1e-6) == router_learns


def test_experts_without_tokens_get_zero_gradient():
    module = mixture(1)
    with torch.no_grad():
        module.gate.weight.zero_()
        module.gate.weight[2] = 100.0
    module(torch.rand(5, HIDDEN, dtype=torch.float64)).sum().backward()
    used = [bool(module.experts.up_proj.grad[e].any()) for e in range(EXPERTS)]
    assert used == [False, False, True, False]


def test_the_router_computes_in_float32_under_autocast():
    module = mixture(2).float()
    x = torch.randn(50, HIDDEN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routed = module.route(x)
    assert routed[0].dtype == torch.float32
    torch.testing.assert_close(routed, module.route(x), rtol=0, atol=0)


def test_balance_loss_literally():
    """Document 0: 3 tokens, loads (2/3, 1/3), mean probs (0.6, 0.4): 3 * 2 * (0.4 + 0.4/3) = 3.2.

    Document 1: 1 token, load (0, 1), probs (0.1, 0.9): 1 * 2 * 0.9 = 1.8.
    """
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]])
    chosen = torch.tensor([[0], [0], [1], [1]])
    per_document = balance_loss_sum(probs, chosen, torch.tensor([0, 0, 0, 1]), 2)
    assert per_document.item() == pytest.approx(3.2 + 1.8, abs=1e-6)
    # One document of 4 tokens: loads (1/2, 1/2), mean probs (0.475, 0.525): 4 * 2 * 0.5 = 4.
    together = balance_loss_sum(probs, chosen, torch.zeros(4, dtype=torch.int64), 1)
    assert together.item() == pytest.approx(4.0, abs=1e-6)


def test_balance_loss_for_top_2_treats_loads_as_constants():
    torch.manual_seed(1)
    probs = torch.rand(9, EXPERTS, dtype=torch.float64).softmax(-1).requires_grad_()
    chosen = probs.topk(2).indices
    documents = [(0, 4), (4, 4), (4, 9)]  # the second is empty
    document_T = torch.tensor([0] * 4 + [2] * 5)
    total = 0.0
    for start, end in documents:
        n = end - start
        for e in range(EXPERTS):
            load = sum(int(e in row) for row in chosen[start:end].tolist()) / max(n, 1)
            total = total + EXPERTS * load * probs[start:end, e].sum()
    ours = balance_loss_sum(probs, chosen, document_T, 3)
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(ours, probs), torch.autograd.grad(total, probs))


def test_uniform_routing_costs_the_number_of_experts_per_token():
    """In MiniMind's scale equal loads and probabilities cost C per token, the number of chosen experts."""
    probs = torch.full((8, EXPERTS), 1 / EXPERTS)
    chosen = torch.tensor([[0, 1], [2, 3]] * 4)
    assert balance_loss_sum(probs, chosen, torch.zeros(8, dtype=torch.int64), 1).item() == pytest.approx(8 * 2)


def test_state_dict_has_every_expert_by_name_and_loads_back():
    module, other = mixture(1), mixture(2)
    state = module.state_dict()
    assert sorted(state) == sorted(["gate.weight"] + [f"experts.{e}.{name}.weight" for e in range(EXPERTS)
                                                      for name in ("gate_proj", "up_proj", "down_proj")])
    torch.testing.assert_close(state["experts.2.down_proj.weight"], module.experts.down_proj[2], rtol=0, atol=0)
    state = {name: weight + 1 for name, weight in state.items()}
    other.load_state_dict(state, strict=True)
    torch.testing.assert_close(other.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state.pop("experts.1.up_proj.weight"), 'Missing key.*"experts.1.up_proj.weight"'),
    (lambda state: state.update({"experts.4.up_proj.weight": torch.zeros(WIDTH, HIDDEN)}),
     'Unexpected key.*"experts.4.up_proj.weight"'),
    (lambda state: state.update({"experts.3.up_proj.weight": torch.zeros(7, HIDDEN)}),
     r"size mismatch for experts.3.up_proj.weight: \(7, 6\) in the file, \(5, 6\) in the model"),
])
def test_an_unfitting_state_dict_is_refused_naming_the_expert(change, message):
    module = mixture(1)
    state = dict(module.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=message) as refused:
        module.load_state_dict(state, strict=True)
    assert str(refused.value).count("experts.") == 1
