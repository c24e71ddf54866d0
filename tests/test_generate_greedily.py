"""Answers do not depend on the batch, even where scores are so close that rounding decides."""

import pytest
import torch
from tiny_generation import CONFIG, PROMPTS, VOCAB, build

from minimind_sft.inference.generate import generate_batch, generate_greedily, generate_stream
from minimind_sft.settings.chat import SamplingSettings

SETTINGS = SamplingSettings(max_new_tokens=12)
STOP = {3, 11}


class ManyTies:
    """A model whose scores are multiples of 1/4, plus noise of 1e-4 that depends on the size of the batch."""

    def __init__(self) -> None:
        self._model = build().float()
        self.config, self.training, self.embed_tokens = CONFIG, False, self._model.embed_tokens
        self.hidden_states = self._model.hidden_states

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        noise_V = torch.rand(VOCAB, generator=torch.Generator().manual_seed(len(hidden_SD))) * 1e-4
        return (self._model.logits(hidden_SD) / 4).round() + noise_V


def in_batches(generate, model, size: int) -> list[list[int]]:
    return [answer for start in range(0, len(PROMPTS), size)
            for answer in generate(model, PROMPTS[start:start + size], SETTINGS, STOP)]


@pytest.mark.parametrize("generate", [generate_batch, generate_greedily])
def test_answers_are_those_of_each_prompt_alone(generate):
    model = ManyTies()
    hidden_SD = torch.ones(2, CONFIG.hidden_size)
    assert not torch.equal(model.logits(hidden_SD)[:1], model.logits(hidden_SD[:1])), "there is no noise"
    alone = [list(generate_stream(model, prompt, SETTINGS, STOP)) for prompt in PROMPTS]
    for size in (1, 2, 3, 5):
        assert in_batches(generate, model, size) == alone


def test_a_temperature_has_no_effect():
    model = build().float()
    expected = generate_batch(model, PROMPTS, SETTINGS, STOP)
    assert generate_greedily(model, PROMPTS, SamplingSettings(max_new_tokens=12, temperature=2.0), STOP) == expected
    assert generate_greedily(model, [], SETTINGS, STOP) == []
