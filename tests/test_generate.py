"""Generation with and without the cache, alone and in a batch, and sampling compared with transformers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_generation import CONFIGS, PROMPTS, VOCAB, build

from minimind_sft.errors import UserError
from minimind_sft.inference.generate import (
    SamplingSettings,
    generate_batch,
    generate_greedily,
    generate_stream,
)
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM


def greedy_without_cache(model: MiniMindForCausalLM, prompt: list[int], settings: SamplingSettings,
                         stop_ids: set[int]) -> list[int]:
    """Decodes greedily, computing all positions again for each token."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + settings.max_new_tokens, model.config.max_position_embeddings):
        logits = model.document_logits(torch.tensor(ids), (0, len(ids)))[-1].tolist()
        for token in set(ids):
            logits[token] *= settings.repetition_penalty ** (1 if logits[token] < 0 else -1)
        best = max(range(VOCAB), key=lambda token: logits[token])
        if best in stop_ids:
            break
        ids.append(best)
    return ids[len(prompt):]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_greedy_decoding_is_the_same_with_and_without_the_cache(name: str, penalty: float):
    model, settings = build(CONFIGS[name]), SamplingSettings(30, repetition_penalty=penalty)
    for prompt in PROMPTS:
        expected = greedy_without_cache(model, prompt, settings, set())
        assert list(generate_stream(model, prompt, settings, ())) == expected
        assert len(expected) == 30


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_gives_the_same_answers_as_single_prompts(name: str):
    model, settings = build(CONFIGS[name]), SamplingSettings(30, repetition_penalty=1.6)
    freely = [greedy_without_cache(model, prompt, settings, set()) for prompt in PROMPTS]
    stop_ids = {freely[0][9], freely[2][4], freely[4][0]}
    one_by_one = [list(generate_stream(model, prompt, settings, stop_ids)) for prompt in PROMPTS]
    assert generate_batch(model, PROMPTS, settings, stop_ids) == one_by_one
    for answer, free in zip(one_by_one, freely, strict=True):
        assert answer == free[:next((i for i, token in enumerate(free) if token in stop_ids), 30)]
    assert one_by_one[4] == [] and len({len(answer) for answer in one_by_one}) >= 3


@pytest.mark.parametrize("name", ["dense", "moe", "moe_top2"])
def test_greedy_continuation_with_the_cache_equals_minimind_s(name: str, shared: Path):
    folder = shared / "reference" / "minimind" / name
    model = MiniMindForCausalLM(ModelConfig(**json.loads((folder / "expected.json").read_text())["config"])).eval()
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    expected = load_file(folder / "expected.safetensors")["greedy_ids"][0].tolist()
    assert list(generate_stream(model, expected[:8], SamplingSettings(16), ())) == expected[8:]


def test_no_prompts_give_no_answers():
    assert generate_batch(build(), [], SamplingSettings(5), ()) == []


@pytest.mark.parametrize("name", ["dense", "gpt2"])
def test_answers_end_at_the_end_of_the_context(name: str):
    model = build(CONFIGS[name])
    prompts = [[1] * 58, [1] * 30, [1] * 59]
    answers = generate_batch(model, prompts, SamplingSettings(10), ())
    assert [len(answer) for answer in answers] == [2, 10, 1]


@pytest.mark.parametrize(("prompt", "message"), [
    ([], "the prompt is empty"),
    ([1] * 60, "the prompt has 60 tokens and leaves no room for an answer: the model's context is 60"),
])
def test_a_prompt_that_cannot_be_answered_is_refused(prompt: list[int], message: str):
    with pytest.raises(UserError, match=message):
        next(generate_stream(build(), prompt, SamplingSettings(5), ()))
    with pytest.raises(UserError, match=message):
        generate_batch(build(), [[1, 2], prompt], SamplingSettings(5), ())


@pytest.mark.parametrize("settings", [
    SamplingSettings(temperature=1.0), SamplingSettings(temperature=1.0, top_k=0, top_p=1.0),
    SamplingSettings(temperature=0.5, top_k=3, repetition_penalty=1.5)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_computes_no_numbers_is_refused(settings: SamplingSettings, value: float):
    model = build()
    model.model.norm.weight.data.fill_(value)
    with pytest.raises(UserError, match=r"^the model's scores are NaN or infinite: its weights are damaged, or too "):
        generate_batch(model, PROMPTS, settings, ())


def test_the_seed_decides_the_sampled_tokens():
    model = build()
    settings = SamplingSettings(20, temperature=1.5, top_p=0.95, seed=1)
    first, again = (generate_batch(model, PROMPTS, settings, ()) for _ in range(2))
    assert first == again
    assert first != generate_batch(model, PROMPTS, replace(settings, seed=2), ())
    assert first[0] == list(generate_stream(model, PROMPTS[0], settings, ()))
    same = generate_batch(model, PROMPTS[:1] * 2, settings, ())
    assert same[0] == first[0] != same[1], "each place in a batch has a seed of its own"


@pytest.mark.parametrize("change", [{"temperature": 1e-300}, {"temperature": 1e-45},
                                    {"temperature": 1.0, "top_p": 1e-300}])
def test_a_temperature_or_share_that_float32_cannot_hold_takes_the_best_token(change):
    model, settings = build(), SamplingSettings(max_new_tokens=6, temperature=0.0)
    expected = generate_batch(model, PROMPTS, settings, ())
    assert generate_batch(model, PROMPTS, replace(settings, **change), ()) == expected


@pytest.mark.parametrize("generate", [generate_batch, generate_greedily])
def test_an_answer_ends_where_the_caller_says(generate):
    model, settings = build(), SamplingSettings(max_new_tokens=12, temperature=0.0)
    whole = generate(model, PROMPTS, settings, ())
    ended = generate(model, PROMPTS, settings, (), lambda ids: len(ids) > 1 and ids[-1] % 3 == 0)
    assert len({len(answer) for answer in ended}) > 1
    for answer, longer in zip(ended, whole, strict=True):
        count = next((n for n in range(2, 12) if longer[n - 1] % 3 == 0), 12)
        assert answer == longer[:count]
