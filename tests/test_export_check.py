"""What is found when an export is read back: rounding is measured, anything else is refused."""

from dataclasses import replace

import pytest
import torch
from chats import TOKENIZER
from export_models import CONFIGS, LONG, QWEN3
from exports import export_of

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.export.check import compare, rounding_error
from minimind_sft.export.choice import differing_fields
from minimind_sft.model.config import RopeScaling

MOE = CONFIGS["qwen3_moe"]


def copy_of(export, config=None, **changed):
    """Returns the exported weights as they would be read back, rounded, with some changed."""
    dtype = getattr(torch, export.dtype)
    tensors = {name: changed.get(name, tensor).to(dtype) for name, tensor in export.weights.tensors.items()}
    return replace(export.weights, tensors=tensors, config=config or export.weights.config)


def test_an_exact_copy():
    found = compare(export_of(QWEN3), copy_of(export_of(QWEN3)), TOKENIZER)
    assert (found.tensors, found.rounded, found.weight, found.logit, found.same_choice) == (24, 0, 0.0, 0.0, 1.0)
    assert str(found) == "all 24 tensors are equal; logits differ by at most 0.0e+00"


def test_rounding_is_measured():
    export = export_of(QWEN3, "bfloat16")
    found = compare(export, copy_of(export), TOKENIZER)
    largest = max(float((tensor - tensor.bfloat16().float()).abs().max()) for tensor in export.weights.tensors.values())
    assert found.rounded == 24 and found.weight == largest
    assert 0 < found.logit < found.deviation and 0.5 < found.same_choice <= 1
    assert "24 of 24 tensors are rounded" in str(found)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_value_that_rounding_does_not_explain_is_refused(dtype):
    export = export_of(QWEN3, dtype)
    name = "model.layers.1.mlp.up_proj.weight"
    wrong = export.weights.tensors[name].clone()
    wrong[3, 4] += 0.01
    with pytest.raises(UserError, match=rf"^random: .*{name} differs by 1.0e-02, more than rounding to {dtype}"):
        compare(export, copy_of(export, **{name: wrong}), TOKENIZER)


def test_another_configuration_or_tokenizer_is_refused():
    export = export_of(QWEN3)
    with pytest.raises(UserError, match=r"rope_theta is 10000.0, but was 1000000.0; nothing was kept"):
        compare(export, copy_of(export, replace(QWEN3, rope_theta=1e4)), TOKENIZER)
    state = {**TOKENIZER.state, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                                  "use_regex": True}}
    with pytest.raises(UserError, match=r"its tokenizer encodes 'The capital of Franc'\.\.\. differently"):
        compare(export, copy_of(export), Tokenizer(state, TOKENIZER.special))


def test_rounding_errors_are_those_of_the_dtype():
    values = torch.tensor([[1.0, 1 + 2**-12, 3e-8, -0.1]])
    assert rounding_error(values, "float32").tolist() == [[0, 0, 0, 0]]
    assert rounding_error(values, "float16").tolist() == (values - values.half().float()).abs().tolist()


def test_the_bound_of_q8_0_holds_and_is_tight():
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    for scale in (1e-7, 1e-4, 0.02, 1.0, 3e4):
        values = torch.randn(64, 256) * scale
        stored = gguf.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
        back = torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType.Q8_0))
        bound = rounding_error(values, "q8_0")
        assert ((values - back).abs() <= bound).all()
        if scale > 1e-4:
            assert bound.max() < 0.6 * values.abs().max() / 127


@pytest.mark.parametrize(("config", "changes", "expected"), [
    (QWEN3, {"dropout": 0.1, "num_experts": 7, "router_aux_loss_coef": 1.0, "full_attention_layers": (0,)}, []),
    (QWEN3, {"rms_norm_eps": 9.999999974752427e-07}, []),
    (QWEN3, {"rms_norm_eps": 1e-5, "rope_theta": 1e4}, ["rms_norm_eps", "rope_theta"]),
    (MOE, {"intermediate_size": 7}, []),
    (MOE, {"norm_topk_prob": False}, ["norm_topk_prob"]),
    (LONG, {"rope_scaling": replace(LONG.rope_scaling, beta_fast=5.0)}, []),
    (LONG, {"rope_scaling": replace(LONG.rope_scaling, factor=5.0)}, ["rope_scaling"]),
    (LONG, {"rope_scaling": None}, ["rope_scaling"]),
    (QWEN3, {"rope_scaling": RopeScaling()}, ["rope_scaling"]),
    (CONFIGS["gpt2"], {"rope_theta": 5.0}, []),
])
def test_fields_that_make_a_difference(config, changes, expected):
    assert differing_fields(config, replace(config, **changes)) == expected
