"""Modules without a fast form stay unchanged beside lowered neighbours."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tiny_generation import CONFIGS, PRODUCTION, PROMPTS, build, half_needed, steps, trained_like
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minimind_sft.inference.lowering import LoweredModel, lower_model, ready_to_decode
from minimind_sft.inference.packed import plain
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.layers import RMSNorm


class LowRank(nn.Module):
    """A linear layer with a low-rank adapter, as in LoRA."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features).to(base.weight) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2).to(base.weight) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


class CentredNorm(nn.Module):
    """LayerNorm with other names."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.scale = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.scale.dtype), self.scale.shape, self.scale)


class GemmaNorm(RMSNorm):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.to(self.weight.dtype)


class ReluNetwork(nn.Module):
    def __init__(self, size: int, weight: Tensor):
        super().__init__()
        self.inner = nn.Linear(size, 3 * size).to(weight)
        self.outer = nn.Linear(3 * size, size).to(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu())


class ParallelLayer(DecoderLayer):
    """A layer whose two residual branches both read its input."""

    def forward(self, x_TD: Tensor, rope: tuple[Tensor, Tensor], context: object,
                read_N: Tensor | None = None) -> Tensor:
        y_TD = self.self_attn(self.input_layernorm(x_TD), rope, context)
        x_TD = x_TD + y_TD + self.mlp(self.post_attention_layernorm(x_TD))
        return x_TD if read_N is None else x_TD.index_select(0, read_N)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def with_bias(linear: nn.Linear) -> None:
    linear.bias = nn.Parameter(torch.randn(linear.out_features).to(linear.weight))


def with_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, output: output.flip(-1))


def with_pre_hook(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0].flip(-1), *inputs[1:]))


def with_replaced(module: nn.Module, name: str) -> None:
    """Replaces the method `name` of this object; only the first of several results is changed."""
    method = getattr(module, name)

    def replaced(*args: Tensor) -> Tensor | tuple[Tensor, ...]:
        result = method(*args)
        return (result[0].flip(-1), *result[1:]) if isinstance(result, tuple) else result.flip(-1)
    setattr(module, name, replaced)


def put(owner: nn.Module, name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


CHANGES = {
    "bias on a query projection": lambda model: with_bias(middle(model).self_attn.q_proj),
    "bias on an output projection": lambda model: with_bias(middle(model).self_attn.o_proj),
    "bias on an up projection": lambda model: with_bias(middle(model).mlp.up_proj),
    "bias on the head": lambda model: with_bias(model.lm_head),
    "adapter on a value projection": lambda model: put(middle(model).self_attn, "v_proj", LowRank),
    "adapter on a gate projection": lambda model: put(middle(model).mlp, "gate_proj", LowRank),
    "adapter on a down projection": lambda model: put(middle(model).mlp, "down_proj", LowRank),
    "adapter on the head": lambda model: put(model, "lm_head", LowRank),
    "hook on a key projection": lambda model: with_hook(middle(model).self_attn.k_proj),
    "pre-hook on an output projection": lambda model: with_pre_hook(middle(model).self_attn.o_proj),
    "hook on an up projection": lambda model: with_hook(middle(model).mlp.up_proj),
    "hook on a norm": lambda model: with_hook(middle(model).post_attention_layernorm),
    "hook on attention": lambda model: with_hook(middle(model).self_attn),
    "pre-hook on attention": lambda model: with_pre_hook(middle(model).self_attn),
    "hook on a layer": lambda model: with_hook(middle(model)),
    "hook on the last layer": lambda model: with_hook(model.model.layers[-1]),
    "hook on dropout": lambda model: with_hook(middle(model).dropout),
    "hook on the decoder": lambda model: with_hook(model.model),
    "hook on the embedding": lambda model: with_hook(model.model.embed_tokens),
    "hook on the head": lambda model: with_hook(model.lm_head),
    "unknown norm": lambda model: put(middle(model), "input_layernorm", CentredNorm),
    "unknown query norm": lambda model: put(middle(model).self_attn, "q_norm", CentredNorm),
    "unknown last norm": lambda model: put(model.model, "norm", CentredNorm),
    "subclass of a norm": lambda model: setattr(middle(model).input_layernorm, "__class__", GemmaNorm),
    "subclass of a layer": lambda model: setattr(middle(model), "__class__", ParallelLayer),
    "unknown feed-forward network": lambda model: setattr(
        middle(model), "mlp", ReluNetwork(model.config.hidden_size, model.lm_head.weight)),
    "parametrized projection": lambda model: parametrize.register_parametrization(
        middle(model).self_attn.o_proj, "weight", Doubled(), unsafe=True),
    "replaced forward": lambda model: with_replaced(middle(model).mlp.gate_proj, "forward"),
    "replaced projections": lambda model: with_replaced(middle(model).self_attn, "project"),
}
EXPERTS = {
    "hook on the experts": lambda model: with_hook(middle(model).mlp.experts),
    "hook on the mixture": lambda model: with_hook(middle(model).mlp),
    "hook on the router": lambda model: with_hook(middle(model).mlp.gate),
    "bias on the router": lambda model: with_bias(middle(model).mlp.gate),
    "replaced routing": lambda model: with_replaced(middle(model).mlp, "route"),
}
FAMILIES = {
    "hook on position vectors": lambda model: with_hook(model.model.embed_positions),
    "hook on a shared expert": lambda model: with_hook(middle(model).mlp.shared_experts[1]),
}
OTHER_FAMILIES = {
    "gpt2": ["hook on a key projection", "adapter on a value projection", "hook on an up projection",
             "adapter on a down projection", "hook on a norm", "unknown norm", "hook on attention", "hook on a layer",
             "hook on position vectors"],
    "some layers rotate": ["hook on a key projection", "unknown query norm", "hook on a layer"],
    "some layers rotate, no QK-norm": ["adapter on a value projection", "hook on attention"],
    "window": ["hook on a key projection", "hook on attention", "hook on a layer"],
    "shared experts": ["hook on a shared expert", "hook on the experts", "hook on the mixture"],
}


def middle(model: MiniMindForCausalLM) -> DecoderLayer:
    return model.model.layers[len(model.model.layers) // 2 - 1]


def change(model: MiniMindForCausalLM, name: str) -> None:
    torch.manual_seed(3)
    (CHANGES | EXPERTS | FAMILIES)[name](model)


def cases() -> list:
    dense = [pytest.param("dense", name, id=name) for name in CHANGES]
    experts = [pytest.param("moe", name, id=name) for name in EXPERTS]
    others = [pytest.param(config, name, id=f"{config}: {name}") for config in OTHER_FAMILIES
              for name in OTHER_FAMILIES[config]]
    return dense + experts + others


@pytest.mark.parametrize(("config", "name"), cases())
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "several"])
@torch.inference_mode(False)
@torch.no_grad()
def test_a_changed_module_gives_the_same_logits_as_in_the_model(config: str, name: str, prompts: list[list[int]]):
    model = build(CONFIGS[config])
    unchanged = torch.cat(steps(model, prompts))
    change(model, name)
    expected = torch.cat(steps(model, prompts))
    assert (expected - unchanged).abs().max() > 0.01
    torch.testing.assert_close(torch.cat(steps(lower_model(model, plain), prompts)), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["adapter on a value projection", "adapter on a down projection", "unknown norm",
                                  "unknown query norm", "unknown feed-forward network", "subclass of a layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@half_needed
@torch.no_grad()
def test_packed_neighbours_of_an_unknown_module_agree_with_the_model(name: str, dtype: torch.dtype):
    model = trained_like(PRODUCTION).to(dtype)
    change(model, name)
    lowered = ready_to_decode(model)
    assert isinstance(lowered, LoweredModel)
    for prompts in (PROMPTS[:1], PROMPTS * 4):
        expected, ours = (torch.cat(steps(form, prompts)).float() for form in (model, lowered))
        assert (ours - expected).std() < (1e-5 if dtype == torch.float32 else 0.05) * expected.std()


@pytest.mark.parametrize(("name", "unpacked"), [
    ("bias on a query projection", 0), ("bias on the head", 0), ("hook on a key projection", 3),
    ("adapter on a gate projection", 1),
    ("unknown norm", 0), ("unknown feed-forward network", 3), ("hook on attention", 4), ("hook on a layer", 7)])
def test_only_unknown_modules_are_left_unpacked(name: str, unpacked: int):
    packed = []

    def pack(weights: list[Tensor], bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        packed.extend(weights)
        return plain(weights, bias)

    model = build(CONFIGS["dense"])
    change(model, name)
    lower_model(model, pack)
    assert len(packed) == 7 * model.config.num_hidden_layers + 1 - unpacked
