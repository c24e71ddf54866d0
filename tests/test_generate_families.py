"""Greedy answers of every family equal those of transformers: alone, in batches, with and without the cache."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from engine_schedules import Pool
from family_models import CASES, our_model, their_model

from minimind_sft.inference.generate import LanguageModel, generate_batch
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.folder import read_folder
from minimind_sft.settings.chat import SamplingSettings

PROMPTS = [[7, 3, 9, 12, 5, 20, 31], [1], [13, 40, 2, 8, 33, 4, 60, 17, 9, 58, 6, 3, 22, 45, 11, 30, 27, 50, 19, 41]]
"""The last is longer than every window, and than the context before it is scaled."""

NEW = 12
ROOM = 48
"""Our generation ends at the context. transformers goes on, so the cases get one with room for an answer."""


@dataclass
class Case:
    """One family: transformers' model, ours read from its folder, and ours in its fast form."""

    theirs: transformers.PreTrainedModel
    ours: MiniMindForCausalLM
    lowered: LanguageModel


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model_type, values = CASES[request.param]
    if request.param == "llama dynamic":
        factor = ROOM / values["max_position_embeddings"]
        values = {**values, "rope_scaling": {"rope_type": "dynamic", "factor": factor}}
    elif model_type != "gpt2":
        values = {**values, "max_position_embeddings": ROOM}
    theirs, folder = their_model(model_type, values, seed=1), tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = None
    ours = our_model(folder)
    return Case(theirs, ours, ready_to_decode(ours))


def their_answer(model: transformers.PreTrainedModel, prompt: list[int], use_cache: bool, **options) -> list[int]:
    model = copy.deepcopy(model)  # dynamic RoPE scaling remembers the longest sequence it has seen
    prompt_ids = torch.tensor([prompt])
    ids = model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False, max_new_tokens=NEW,
                         pad_token_id=0, use_cache=use_cache, **options)
    return ids[0, len(prompt):].tolist()


@torch.no_grad()
def uncached_answer(model: MiniMindForCausalLM, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(model.document_logits(torch.tensor(ids), (0, len(ids)))[-1].argmax()))
    return ids[len(prompt):]


def test_answers_equal_those_of_transformers(case: Case):
    expected = [their_answer(case.theirs, prompt, use_cache=True) for prompt in PROMPTS]
    assert sum(len(set(answer)) for answer in expected) > 8
    settings = SamplingSettings(NEW)
    for model in (case.ours, case.lowered):
        assert [generate_batch(model, [prompt], settings, ())[0] for prompt in PROMPTS] == expected
        assert generate_batch(model, PROMPTS, settings, ()) == expected
        assert generate_batch(model, PROMPTS[::-1], settings, {expected[0][2]})[::-1] == [
            answer[:answer.index(expected[0][2])] if expected[0][2] in answer else answer for answer in expected]


def test_an_engine_answers_each_request_as_if_it_were_alone(case: Case):
    Pool(case.lowered, 5).check(seed=3)


def test_answers_without_a_cache_equal_those_of_transformers(case: Case):
    for prompt in PROMPTS:
        assert uncached_answer(case.ours, prompt) == their_answer(case.theirs, prompt, use_cache=False)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])  # untied and tied
def test_padding_rows_of_the_embedding_are_never_sampled(name: str, tmp_path: Path):
    """Every setting of the sampler; without the cut, padding would be most of what is sampled."""
    tokens, model_type, values = 50, *CASES[name]
    theirs = their_model(model_type, values)
    with torch.no_grad():
        theirs.get_output_embeddings().weight[tokens:] *= 20
    theirs.save_pretrained(tmp_path)
    weights, prompts = read_folder(tmp_path), [[7, 3, 9], [1, 20, 4, 30]]
    sampled = SamplingSettings(10, temperature=5.0)
    ways = [SamplingSettings(10), sampled, replace(sampled, top_k=40), replace(sampled, top_p=0.99),
            replace(sampled, top_k=55, top_p=0.99), replace(sampled, repetition_penalty=1.5)]
    whole, cut = weights.build_model().eval(), weights.without_padding(tokens).build_model().eval()

    def highest(model: LanguageModel) -> int:
        return max(max(answer) for way in ways for answer in generate_batch(model, prompts, way, ()))

    assert highest(cut) < tokens and highest(ready_to_decode(cut)) < tokens <= highest(whole)
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = None
    padding = [*range(tokens, 61)]
    expected = [their_answer(theirs, prompt, use_cache=True, suppress_tokens=padding) for prompt in prompts]
    assert generate_batch(cut, prompts, SamplingSettings(NEW), ()) == expected
