"""Random schedules: requests that join and leave an engine at any step."""

import random
from collections.abc import Sequence
from dataclasses import replace

from minimind_sft.inference.engine import Engine
from minimind_sft.inference.lowering import LanguageModel
from minimind_sft.inference.request import Request, Token
from minimind_sft.settings.chat import SamplingSettings

PAGE = 4
LONGEST = 40
"""Tokens of a prompt and its answer."""


def random_request(seed: int, vocab_size: int) -> Request:
    """Returns a request with one of three beginnings, so that many share pages. Scores are reported."""
    chance = random.Random(seed)
    beginning = random.Random(seed % 3).choices(range(vocab_size), k=9)[:chance.choice((0, 4, 8, 9))]
    prompt = beginning + chance.choices(range(vocab_size), k=chance.randint(1, 9))
    sampling = SamplingSettings(chance.randint(1, LONGEST - len(prompt)), seed=seed)
    if chance.random() < 0.5:
        sampling = replace(sampling, temperature=1.5, top_p=0.9, repetition_penalty=1.2)
    return Request(prompt, sampling, stop_ids=(3,), logprobs=2)


class Pool:
    """Requests by number, and the answers that each gets alone."""

    def __init__(self, model: LanguageModel, count: int):
        self.model, self.count = model, count
        self.alone = []
        for number in range(count):
            request = self.request(number)
            tokens = answers(Engine(model, 1, LONGEST, page=PAGE), [request])[0]
            self.alone.append((tokens, request.finish))

    def request(self, number: int) -> Request:
        return random_request(number, self.model.config.vocab_size)

    def check(self, seed: int) -> int:
        """Runs a random schedule. Returns how many tokens of prompts were shared."""
        chance = random.Random(seed)
        numbers = chance.sample(range(self.count), chance.randint(2, self.count))
        requests = [self.request(number) for number in numbers]
        engine = Engine(self.model, chance.randint(2, 6), chance.choice([LONGEST, 2 * LONGEST, 4 * LONGEST, 200]),
                        chance.choice([1, 8, 64]), chance.choice([1, 8, LONGEST]), PAGE)
        got = answers(engine, requests, chance)
        for number, request, tokens in zip(numbers, requests, got, strict=True):
            expected, finish = self.alone[number]
            if request.finish == "cancelled":
                expected, finish = expected[:len(tokens)], "cancelled"
            assert (tokens, request.finish) == (expected, finish), f"schedule {seed}, request {number}"
        return sum(request.prompt_tokens_shared for request in requests)


def answers(engine: Engine, requests: Sequence[Request], chance: random.Random | None = None) -> list[list[Token]]:
    """Returns the tokens of each request. With `chance`, they join now and then, and a few are cancelled."""
    new: dict[Request, list[Token]] = {request: [] for request in requests}
    waiting = list(requests)
    while waiting or engine.running or engine.waiting:
        while waiting and (chance is None or chance.random() < 0.5):
            engine.add(waiting.pop())
        for request, tokens in engine.step().items():
            assert request.finish != "cancelled"
            new[request] += tokens
        if chance is not None and chance.random() < 0.05:
            engine.cancel(chance.choice(requests))
    return list(new.values())
