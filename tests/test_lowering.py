"""The lowered model gives the same hidden states, logits and answers as the plain one."""

import gc
import weakref
from dataclasses import replace
from itertools import chain

import pytest
import torch
from tiny_generation import CONFIGS, DYNAMIC, PRODUCTION, PROMPTS, build, half_needed, steps, trained_like
from torch.utils.flop_counter import FlopCounterMode

from minimind_sft.inference.generate import SamplingSettings, generate_batch, generate_stream
from minimind_sft.inference.lowering import LoweredModel, ready_to_decode
from minimind_sft.inference.packed import plain
from minimind_sft.model.kv_cache import CachedPieces, KVCache, Piece


@pytest.mark.parametrize("name", [*CONFIGS, "dynamic"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
@torch.inference_mode()
def test_logits_equal_the_model_s(name: str, prompts: list[list[int]]):
    model = build({**CONFIGS, "dynamic": DYNAMIC}[name])
    for expected, logits in zip(steps(model, prompts), steps(LoweredModel(model, plain), prompts), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_computing_only_read_positions_gives_the_same_states(name: str):
    model = build(CONFIGS[name])
    prompt_ids, ends = torch.tensor(list(chain(*PROMPTS))), torch.tensor([len(prompt) for prompt in PROMPTS]).cumsum(0)
    for form in (model, LoweredModel(model, plain)):
        cache = KVCache(model.config, len(prompt_ids), torch.float64, torch.device("cpu"))
        starts = ends - torch.tensor([len(prompt) for prompt in PROMPTS])
        context = CachedPieces(cache, [
            Piece(start, 0, len(prompt), len(prompt)) for start, prompt in zip(starts.tolist(), PROMPTS, strict=True)])
        with FlopCounterMode(display=False) as all_flops:
            every = form.hidden_states(prompt_ids, context.positions_T, context)
        with FlopCounterMode(display=False) as flops:
            wanted = form.hidden_states(prompt_ids, context.positions_T, context, ends - 1)
        if not model.config.use_moe:
            matrices = {"swiglu": 3, "gelu": 2}[model.config.mlp]
            per_position = matrices * 2 * model.config.hidden_size * model.config.intermediate_size
            spared = (len(prompt_ids) - len(ends)) * per_position
            assert all_flops.get_total_flops() - flops.get_total_flops() == spared
        torch.testing.assert_close(wanted, every[ends - 1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("changes", [
    {}, {"use_moe": True, "num_experts_per_tok": 2}, {"qk_norm": False, "attention_bias": "qkv"},
    {"qk_norm": False, "attention_bias": "all", "mlp": "gelu", "mlp_bias": True, "norm": "layer",
     "positions": "learned"},
], ids=["dense", "moe", "qwen2", "gpt2"])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS * 4])
@half_needed
@torch.inference_mode()
def test_packed_float32_logits_equal_the_model_s(changes: dict, half: bool, prompts: list[list[int]]):
    model = trained_like(replace(PRODUCTION, **changes))
    if not half:
        for parameter in model.parameters():
            parameter.mul_(1.001)
    lowered = ready_to_decode(model)
    assert isinstance(lowered, LoweredModel)
    for expected, logits in zip(steps(model, prompts), steps(lowered, prompts), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False, "attention_bias": "all", "mlp_bias": True}],
                         ids=["no biases", "biases"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS * 4])
@half_needed
@torch.inference_mode()
def test_packed_bfloat16_logits_are_more_exact_than_the_model_s(changes: dict, prompts: list[list[int]]):
    model = trained_like(replace(PRODUCTION, **changes)).bfloat16()
    exact = torch.cat(steps(model.double(), prompts))
    model = model.bfloat16()
    ours, models = (torch.cat(steps(m, prompts)).double() for m in (ready_to_decode(model), model))
    assert (ours - exact).std() < (models - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("experts", [0, 1])
@half_needed
def test_answers_equal_the_model_s(experts: int):
    model = trained_like(replace(PRODUCTION, use_moe=bool(experts)))
    lowered = ready_to_decode(model)
    settings = SamplingSettings(40, repetition_penalty=1.3)
    expected = generate_batch(model, PROMPTS, settings, {5, 9, 31})
    assert generate_batch(lowered, PROMPTS, settings, {5, 9, 31}) == expected
    assert [list(generate_stream(lowered, prompt, settings, {5, 9, 31})) for prompt in PROMPTS] == expected
    drawn = replace(settings, temperature=0.8, top_p=0.9)
    assert generate_batch(lowered, PROMPTS, drawn, ()) == generate_batch(model, PROMPTS, drawn, ())


def test_lowering_does_not_change_the_model():
    model = build(CONFIGS["moe"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    generate_batch(LoweredModel(model, plain), PROMPTS, SamplingSettings(5), ())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@half_needed
def test_original_float32_weights_are_freed_after_packing():
    model = trained_like(replace(PRODUCTION, use_moe=True))
    kept = weakref.ref(model.model.layers[0].self_attn.q_proj.weight), weakref.ref(model.model.layers[0].mlp.experts)
    lowered = ready_to_decode(model)
    del model
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    assert len(list(generate_stream(lowered, [1, 2, 3], SamplingSettings(4), ()))) == 4


def test_without_a_faster_form_the_model_itself_is_used():
    model = build()
    assert ready_to_decode(model) is model
