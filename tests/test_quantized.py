"""QLoRA: matrices in 4 bits compute what bitsandbytes' own modules do, and the backward pass keeps no copy."""

import copy
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minimind_sft.errors import UserError
from minimind_sft.inference.generate import generate_batch
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.matching import base_notices
from minimind_sft.model import quantized
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoRALinear, LoraShape, add_adapters
from minimind_sft.model.lora_targets import projections
from minimind_sft.model.quantized import NF4Linear, base_model, describe_quantised, quantize
from minimind_sft.model.weights import read_weights, write_weights
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.training.adapting import attach, attach_trained

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, which the extra [qlora] installs")

TINY = ModelConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   intermediate_size=160, vocab_size=96)
IDS = torch.tensor([5, 6, 7, 8, 9, 10, 11])


def reference(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """Returns bitsandbytes' own 4-bit linear with the weights of `linear`."""
    theirs = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype,
                               quant_type="nf4", compress_statistics=True)
    theirs.load_state_dict(linear.state_dict())
    return theirs.to("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (48, 80), (7, 33)])
def test_it_computes_what_bitsandbytes_does(dtype, outputs, inputs):
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    ours, theirs = NF4Linear(linear), reference(linear, dtype)
    x = torch.randn(5, inputs).to(dtype).requires_grad_()
    gradient = torch.randn(5, outputs).to(dtype)
    ours(x).backward(gradient)
    grad, x.grad = x.grad, None
    theirs(x).backward(gradient)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(grad, x.grad)


def test_quantising_twice_gives_the_same_bits():
    torch.manual_seed(0)
    linear = nn.Linear(64, 96)
    one, two = NF4Linear(linear), NF4Linear(copy.deepcopy(linear))
    assert torch.equal(one.packed, two.packed)
    assert torch.equal(one.dequantised(torch.float32), two.dequantised(torch.float32))


def test_a_change_of_the_model_s_precision_leaves_the_4_bits_alone():
    quantised = NF4Linear(nn.Linear(64, 96))
    before = quantised.dequantised(torch.float32)
    quantised.to(torch.bfloat16)
    assert torch.equal(quantised.dequantised(torch.float32), before)


def test_the_backward_pass_keeps_no_matrix():
    quantised = NF4Linear(nn.Linear(64, 96))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        quantised(torch.randn(5, 64, requires_grad=True))
    assert kept == []


def test_all_projections_of_a_dense_model_are_quantised_and_nothing_else():
    model = MiniMindForCausalLM(TINY)
    names = projections(model)
    quantize(model, "nf4")
    assert [name for name, module in model.named_modules() if isinstance(module, NF4Linear)] == names
    assert type(model.lm_head) is nn.Linear and len(names) == 2 * 7
    assert describe_quantised(model) == "86,016 weights in 4 bits (nf4): 0.0 MiB instead of 0.3"


def test_adapters_go_around_quantised_projections_and_get_gradients():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    quantize(model, "nf4")
    add_adapters(model, projections(model), LoraShape(rank=4))
    q_proj = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(q_proj, LoRALinear) and isinstance(q_proj.base, NF4Linear)
    model(IDS, IDS.roll(-1), (0, len(IDS))).loss_sum.backward()
    assert q_proj.lora_B.grad is not None and q_proj.lora_B.grad.abs().max() > 0


def test_a_mixture_of_experts_is_refused():
    model = MiniMindForCausalLM(ModelConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                            num_key_value_heads=1, vocab_size=64, use_moe=True))
    with pytest.raises(UserError, match="--quantize nf4: the stacked experts of a mixture cannot be quantised"):
        quantize(model, "nf4")


def test_weights_are_quantised_layer_by_layer_as_they_are_read(tmp_path):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    write_weights(tmp_path / "w.pth", model, "float32", {"model": asdict(TINY)})
    read = base_model(read_weights(tmp_path / "w.pth"), "nf4")
    quantize(model, "nf4")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read.buffers(), model.buffers(), strict=True))


def test_a_quantised_model_decodes_as_it_computes():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY).eval()
    quantize(model, "nf4")
    settings = SamplingSettings(max_new_tokens=8, temperature=0.0)
    expected = generate_batch(model, [[5, 6, 7]], settings, ())
    assert generate_batch(ready_to_decode(model), [[5, 6, 7]], settings, ()) == expected


def test_a_matrix_in_4_bits_cannot_train_in_full():
    model = MiniMindForCausalLM(TINY)
    quantize(model, "nf4")
    with pytest.raises(UserError) as error:
        attach(model, LoraSettings(modules_to_save=("layers.1.mlp",), quantize="nf4"))
    assert str(error.value) == ("--modules_to_save model.layers.1.mlp: --quantize nf4 keeps its matrix in 4 bits, "
                                "which cannot train")


def test_a_matrix_in_4_bits_is_not_replaced_by_one_that_was_trained_in_full():
    model = MiniMindForCausalLM(TINY)
    quantize(model, "nf4")
    name = "model.layers.0.self_attn.q_proj.weight"
    adapter = Adapter(Path("a.safetensors"), {}, {name: torch.zeros(64, 64)})
    for use in (lambda: apply_adapters(model, [(adapter, 1.0)]), lambda: attach_trained(model, adapter, 0.0)):
        with pytest.raises(UserError) as error:
            use()
        assert str(error.value) == (f"a.safetensors: {name} was trained in full, but --quantize nf4 keeps that matrix "
                                    "in 4 bits")


def test_an_adapter_of_another_precision_is_a_notice():
    adapter = Adapter(Path("a.safetensors"), {}, sidecar={"lora": {"quantize": "nf4"}})
    assert base_notices(adapter, "nf4") == [] == base_notices(replace(adapter, sidecar=None), "nf4")
    assert base_notices(adapter, "none") == [
        "a.safetensors was trained with --quantize nf4; on a base with --quantize none the answers differ a little"]


def test_a_missing_package_is_one_clear_line(monkeypatch):
    quantized.bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"^--quantize nf4 needs the bitsandbytes package: pip install "
                                        r"'minimind-sft\[qlora\]' \("):
        quantize(MiniMindForCausalLM(TINY), "nf4")


@pytest.mark.parametrize(("name", "replaced", "message"), [
    ("quantize_4bit", lambda *_, **__: 1 / 0, "--quantize nf4: bitsandbytes cannot run here (division by zero)"),
    ("dequantize_4bit", lambda *_: torch.zeros(2, 64), "--quantize nf4: bitsandbytes computes wrong values here")])
def test_a_package_that_cannot_run_is_one_clear_line(monkeypatch, name, replaced, message):
    quantized.bitsandbytes.cache_clear()
    monkeypatch.setattr(bnb.functional, name, replaced)
    with pytest.raises(UserError) as error:
        quantize(MiniMindForCausalLM(TINY), "nf4")
    assert str(error.value) == message


def test_importing_bitsandbytes_fetches_no_kernel():
    """Where the package `kernels` is installed, bitsandbytes would download native code as it is imported."""
    before = sys.modules.get("kernels")
    quantized.bitsandbytes.cache_clear()
    quantized.bitsandbytes()
    assert sys.modules.get("kernels") is before
