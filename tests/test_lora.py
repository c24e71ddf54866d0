"""Adapters: values and gradients are those of W + scale B A, and a wrapped model trains nothing else."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_decoder import FAMILIES, TINY, TINY_MOE, build, random_batch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from minimind_sft.model import moe
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import (
    STACKED,
    LoRAExperts,
    LoRALinear,
    LoraShape,
    adapted,
    add_adapters,
    merge_adapters,
    own_parameters,
)
from minimind_sft.model.lora_targets import projections

MODELS = {"dense": TINY, "experts": TINY_MOE, **FAMILIES}


def adapted_model(config=TINY, dtype=torch.float64, shape=None, targets=None) -> MiniMindForCausalLM:
    """Returns a model with adapters on all projections, or on `targets`, and a B that is not 0."""
    model = build(config, dtype)
    add_adapters(model, targets or projections(model), shape or LoraShape(rank=4, alpha=6.0))
    for _, change in adapted(model):
        nn.init.normal_(change.lora_B, std=0.3)
    return model.to(dtype)


def loss_of(model: MiniMindForCausalLM) -> torch.Tensor:
    losses = model(*random_batch([5, 9, 1, 12]))
    return losses.loss_sum + losses.aux_loss_sum


@pytest.mark.parametrize(("shape", "scale"), [
    (LoraShape(16, 32.0), 2.0), (LoraShape(8, 4.0), 0.5), (LoraShape(16, 32.0, use_rslora=True), 8.0)])
def test_the_scale(shape, scale):
    assert shape.scale == scale


@pytest.mark.parametrize("bias", [False, True])
def test_a_projection_with_an_adapter_is_w_plus_b_a(bias):
    torch.manual_seed(0)
    base = nn.Linear(7, 5, bias).double()
    layer = LoRALinear(base, rank=3, scale=0.7).double()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(11, 7, dtype=torch.float64, requires_grad=True)
    learned = (x, layer.lora_A, layer.lora_B)
    ours, expected = layer(x), F.linear(x, base.weight + 0.7 * layer.lora_B @ layer.lora_A, base.bias)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(ours, learned, grad), torch.autograd.grad(expected, learned, grad),
                               rtol=1e-13, atol=1e-13)


def test_dropout_applies_to_what_the_adapter_reads_and_in_training_only():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(7, 5), rank=3, scale=0.7, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(11, 7)
    torch.manual_seed(1)
    ours = layer(x)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    assert (dropped == 0).any()
    torch.testing.assert_close(ours, layer.base(x) + F.linear(dropped, layer.delta()))
    torch.testing.assert_close(layer.eval()(x), layer.base(x) + F.linear(x, layer.delta()))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_new_adapter_changes_nothing(config):
    model, ids = build(config), torch.arange(20)
    before = model.eval().document_logits(ids, (0, 8, 20))
    add_adapters(model, projections(model), LoraShape())
    assert torch.equal(model.document_logits(ids, (0, 8, 20)), before)


def test_a_is_drawn_as_peft_draws_it():
    """nn.Linear's own initialisation: uniform up to 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 8), rank=50, scale=1.0)
    assert float(layer.lora_A.detach().abs().max()) == pytest.approx(1 / math.sqrt(400), rel=1e-3)
    assert not layer.lora_B.any()
    experts = LoRAExperts(moe.Experts(3, 400, 16), ("up_proj",), 50, 1.0)
    for a_rI in experts.up_proj.lora_A.detach():
        assert float(a_rI.abs().max()) == pytest.approx(1 / math.sqrt(400), rel=1e-2)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_values_and_gradients_are_those_of_the_merged_matrices(config):
    """The gradient of W' = W + scale B A gives those of A and B by the chain rule."""
    model, merged = adapted_model(config), adapted_model(config)
    merge_adapters(merged)
    assert not list(adapted(merged))
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in build(config).named_parameters()}
    loss, expected = loss_of(model), loss_of(merged.requires_grad_(True))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    for name, change in adapted(model):
        stacked = name.rpartition(".")[0].endswith("mlp.experts")
        grad = merged.get_parameter(name if stacked else f"{name}.weight").grad
        torch.testing.assert_close(change.lora_A.grad, change.scale * change.lora_B.mT @ grad, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(change.lora_B.grad, change.scale * grad @ change.lora_A.mT, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_only_adapters_have_gradients_and_are_kept(config):
    model = adapted_model(config)
    loss_of(model).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == set(own_parameters(model))
    assert trained == {f"{name}.{part}" for name, _ in adapted(model) for part in ("lora_A", "lora_B")}


def test_a_model_without_adapters_keeps_all_of_its_parameters_frozen_ones_too():
    model = build(TINY)
    model.model.layers.requires_grad_(False)
    assert set(own_parameters(model)) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("names", [("up_proj",), ("gate_proj", "down_proj")])
def test_some_stacks_of_experts_may_have_no_adapter(names):
    targets = [f"model.layers.{layer}.mlp.experts.{name}" for layer in range(3) for name in names]
    model = adapted_model(TINY_MOE, targets=targets)
    merged = adapted_model(TINY_MOE, targets=targets)
    merge_adapters(merged)
    assert [name for name, _ in adapted(model)] == sorted(targets, key=lambda name: (
        name.rpartition(".")[0], STACKED.index(name.rpartition(".")[2])))
    torch.testing.assert_close(loss_of(model), loss_of(merged), rtol=1e-12, atol=0)


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_dropout_of_adapters_survives_gradient_checkpointing(config):
    """The recomputation draws the same dropout."""
    gradients = []
    for recompute in (False, True):
        model = adapted_model(config, shape=LoraShape(4, 6.0, dropout=0.3))
        model.model.gradient_checkpointing = recompute
        torch.manual_seed(3)
        loss_of(model).backward()
        gradients.append({name: parameter.grad for name, parameter in own_parameters(model).items()})
    without = adapted_model(config)
    loss_of(without).backward()
    for name, grad in gradients[0].items():
        assert torch.equal(grad, gradients[1][name]), name
        assert not torch.equal(grad, without.get_parameter(name).grad), name


class Products(TorchDispatchMode):
    """Collects the dtypes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "_grouped_mm"):
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_under_autocast_adapters_multiply_in_bfloat16_and_have_float32_gradients(config):
    """The frozen matrices are bfloat16, as in training; only the router multiplies in float32."""
    model = adapted_model(config, torch.float32, LoraShape(8, 16.0))
    frozen = [parameter for layer in model.model.layers for matrix in layer.matrices()
              for parameter in matrix.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.data = parameter.data.to(torch.bfloat16)
    with Products() as products:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
    assert products.dtypes == ({torch.bfloat16} if config is TINY else {torch.bfloat16, torch.float32})
    assert {parameter.grad.dtype for parameter in own_parameters(model).values()} == {torch.float32}


def test_a_step_multiplies_for_nothing_that_is_frozen():
    """No gradient of a frozen matrix, and none of the embeddings: what reaches the first layer's q, k and v ends there.

    A full step costs 3 products for each matrix: forward, and in the backward pass for its input and for itself.
    """
    tokens, rank = 64, 4
    model = adapted_model(TINY, torch.float32, LoraShape(rank))
    ids = torch.arange(tokens) % TINY.vocab_size
    with FlopCounterMode(display=False) as counter:
        model(ids, ids, (0, 40, tokens)).loss_sum.backward()
    counts = counter.get_flop_counts()["Global"]
    expected = 2 * TINY.vocab_size * TINY.hidden_size
    for name, change in adapted(model):
        inputs, outputs = change.lora_A.shape[1], change.lora_B.shape[0]
        first = "layers.0.self_attn" in name and "o_proj" not in name
        expected += (1 if first else 2) * inputs * outputs
        expected += 3 * rank * outputs + (2 if first else 3) * rank * inputs
    assert counts[torch.ops.aten.mm] + counts[torch.ops.aten.addmm] == 2 * tokens * expected


@pytest.mark.slow
def test_compiled_layers_with_adapters_have_the_same_gradients():
    """Uses the backend that only captures graphs, as for models without adapters (test_decoder.py)."""
    torch.compiler.reset()
    gradients = []
    for compiled in (False, True):
        model = adapted_model(replace(TINY_MOE, num_hidden_layers=2))
        for layer in model.model.layers if compiled else ():
            layer.compile(dynamic=True, backend="aot_eager")
        for lengths in ([9, 5], [7, 7, 3, 1]):
            losses = model(*random_batch(lengths))
            (losses.loss_sum + losses.aux_loss_sum).backward()
        gradients.append({name: parameter.grad for name, parameter in own_parameters(model).items()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
