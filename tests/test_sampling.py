"""Choosing tokens: each step against transformers or plain float64, and every row as if it were alone."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_generation import VOCAB as VOCAB_OF_MODEL
from tiny_generation import build

from minimind_sft.errors import UserError
from minimind_sft.inference.engine import Engine
from minimind_sft.inference.request import Request, Token
from minimind_sft.inference.sampling import NO_NUMBERS, Sampler, candidates, draw, nucleus, penalized, seeds
from minimind_sft.settings.chat import SamplingSettings

VOCAB = 300


def scores(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def chosen(request: Request, steps_SV: torch.Tensor) -> list[Token | None]:
    """Returns the tokens of one request, whose step s has the scores steps_SV[s]."""
    sampler = Sampler(steps_SV.shape[1])
    sampler.add(request)
    return [sampler.choose(scores_V[None], [request])[0] for scores_V in steps_SV]


def ids(tokens: list[Token | None]) -> list[int]:
    return [-1 if token is None else token.id for token in tokens]


class Only:
    """Allows some tokens, and records what was chosen."""

    def __init__(self, *tokens: int):
        self.tokens, self.accepted = tokens, list[int]()

    def allowed_V(self) -> torch.Tensor:
        return torch.isin(torch.arange(VOCAB), torch.tensor(self.tokens, dtype=torch.int64))

    def accept(self, token: int) -> None:
        self.accepted.append(token)
        if token == 13:
            raise UserError("thirteen")


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (10, 0.5), (1, 0.9), (500, 0.99),
                                              (0, 1e-6), (0, 0.9999999), (299, 0.97), (300, 1.0)])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_probabilities_equal_those_of_transformers(penalty: float, temperature: float, top_k: int, top_p: float):
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    given, prompts = scores(4).double(), torch.randint(0, VOCAB, (4, 9))
    expected = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(prompts, given)
    expected = logits_process.TemperatureLogitsWarper(temperature)(prompts, expected)
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(prompts, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(prompts, expected)
    for row_V, prompt, expected_V in zip(given.numpy(), prompts.numpy(), expected.softmax(-1).numpy(), strict=True):
        row_V, seen = row_V.copy(), np.unique(prompt)
        row_V[seen] = penalized(row_V[seen], penalty)
        probs_M, tokens_M = candidates(row_V, temperature, top_k, top_p)
        ours_V = np.zeros(VOCAB)
        ours_V[tokens_M] = probs_M / probs_M.sum()
        np.testing.assert_allclose(ours_V, expected_V, rtol=1e-9, atol=1e-15)


def test_equal_scores_at_the_border_of_top_k_all_stay_as_in_transformers():
    probs_M, tokens_M = candidates(np.array([1.0, 2.0, 1.0, 0.5, 1.0]), 1.0, 2, 1.0)
    assert sorted(tokens_M.tolist()) == [0, 1, 2, 4] and probs_M.sum() == pytest.approx(1)


def test_of_equal_probabilities_top_p_keeps_the_lower_ids():
    assert nucleus(np.array([0.1, 0.3, 0.3, 0.3]), 0.5).tolist() == [1, 2]


@pytest.mark.parametrize("scale", [0.0, 0.1, 30.0])
@pytest.mark.parametrize("top_p", [1e-300, 0.3, 0.9, 0.999999])
def test_a_nucleus_is_the_fewest_tokens_that_sum_to_top_p(scale: float, top_p: float):
    for row_V in scores(5, scale=scale).double().softmax(-1).numpy():
        kept = nucleus(row_V, top_p)
        by_size = sorted(range(VOCAB), key=lambda token: (-row_V[token], token))
        assert kept.tolist() == by_size[:len(kept)]
        assert math.fsum(row_V[kept]) >= top_p - 1e-12 and math.fsum(row_V[kept[:-1]]) < top_p + 1e-12


def test_order_of_the_steps():
    """bias, repetition, frequency and presence, worked out by hand: token 0 is in the prompt, 1 in the answer."""
    request = Request([0], SamplingSettings(repetition_penalty=2.0), frequency_penalty=0.5, presence_penalty=0.25,
                      logit_bias={0: 1.0, 1: 20.0})
    scores_V = torch.tensor([3.0, -1.0, 1.0, 0.0])
    sampler = Sampler(4)
    sampler.add(request)
    state = sampler._states[request]
    assert state.changed(scores_V.numpy()).tolist() == [2.0, 19.0, 1.0, 0.0]
    assert ids(sampler.choose(scores_V[None], [request])) == [1]
    assert state.changed(scores_V.numpy()).tolist() == [2.0, 19.0 / 2 - 0.5 - 0.25, 1.0, 0.0]
    assert ids(sampler.choose(scores_V[None], [request])) == [1]
    assert state.changed(scores_V.numpy()).tolist() == [2.0, 19.0 / 2 - 1.0 - 0.25, 1.0, 0.0]
    assert scores_V.tolist() == [3.0, -1.0, 1.0, 0.0]


def test_frequency_and_presence_ignore_the_prompt():
    request = Request([2, 2, 2], SamplingSettings(), frequency_penalty=1.0, presence_penalty=0.5)
    steps = torch.tensor([0.0, 0.9, 1.0, 0.8]).expand(6, 4)
    assert ids(chosen(request, steps)) == [2, 1, 3, 0, 2, 1]


def test_a_bias_of_a_hundred_decides():
    assert ids(chosen(Request([1], SamplingSettings(), logit_bias={7: 100.0}), scores(3))) == [7, 7, 7]
    best = int(scores(1).argmax())
    assert ids(chosen(Request([1], SamplingSettings(), logit_bias={best: -100.0}), scores(1))) != [best]


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_bias_on_a_token_that_does_not_exist_is_refused(token: int):
    with pytest.raises(UserError, match=f"^logit_bias: expected token ids from 0 to 299, found {token}$"):
        Sampler(VOCAB).add(Request([1], SamplingSettings(), logit_bias={token: 1.0}))


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1.0])
def test_a_constraint_decides_and_learns_what_was_chosen(temperature: float):
    constraint = Only(5, 200)
    tokens = ids(chosen(Request([1], SamplingSettings(temperature=temperature), constraint=constraint), scores(9)))
    assert set(tokens) <= {5, 200} and constraint.accepted == tokens


@pytest.mark.parametrize(("constraint", "problem"), [
    (Only(), "no token can continue the answer: the constraint allows none"), (Only(13), "thirteen")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_that_fails_ends_its_request_only(constraint: Only, problem: str, temperature: float):
    settings = SamplingSettings(temperature=temperature)
    failing, other = Request([1], settings, constraint=constraint), Request([1], settings)
    sampler = Sampler(VOCAB)
    sampler.add(failing)
    sampler.add(other)
    none, token = sampler.choose(scores(2), [failing, other])
    assert none is None and token is not None
    assert (failing.problem, other.problem) == (problem, "")


def test_an_engine_ends_the_request_whose_constraint_fails_and_goes_on_with_others():
    class Failing(Only):
        def allowed_V(self) -> torch.Tensor:
            return torch.ones(VOCAB_OF_MODEL, dtype=torch.bool)

        def accept(self, token: int) -> None:
            super().accept(token)
            if len(self.accepted) == 3:
                raise UserError("three")

    engine, settings = Engine(build()), SamplingSettings(max_new_tokens=6)
    failing, other = Request([1, 2], settings, constraint=Failing()), Request([1, 2], settings)
    got: dict[Request, list[int]] = {failing: [], other: []}
    for request in got:
        engine.add(request)
    while engine.running or engine.waiting:
        for request, tokens in engine.step().items():
            got[request] += [token.id for token in tokens]
    assert (failing.finish, failing.problem, other.finish) == ("error", "three", "length")
    assert len(got[other]) == 6 and got[failing] == got[other][:2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(temperature=1.0),
                                      SamplingSettings(temperature=1.0, top_k=3, top_p=0.5)])
def test_scores_that_are_no_numbers_end_their_own_request_only(bad: float, settings: SamplingSettings):
    requests = [Request([1], settings) for _ in range(3)]
    sampler, scores_SV = Sampler(VOCAB), scores(3)
    scores_SV[1, 4] = bad
    for request in requests:
        sampler.add(request)
    first, second, third = sampler.choose(scores_SV, requests)
    assert first and third and second is None
    assert [request.problem for request in requests] == ["", NO_NUMBERS, ""]


def test_huge_scores_are_numbers():
    settings = SamplingSettings(temperature=1e-5)
    assert ids(chosen(Request([1], settings), scores(4, scale=1e37))) == scores(4).argmax(-1).tolist()


def test_of_equal_best_scores_the_first_token_is_taken():
    scores_SV = torch.zeros(1, VOCAB).index_fill(1, torch.tensor([80, 9, 200]), 1.0)
    assert ids(chosen(Request([1], SamplingSettings()), scores_SV)) == [9]
    assert ids(chosen(Request([1], SamplingSettings(), logprobs=3), scores_SV)) == [9]
    (token,) = chosen(Request([1], SamplingSettings(), logprobs=2), scores_SV)
    assert token is not None and [one for one, _ in token.best] == [9, 80]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 5, 400])
def test_logprobs_are_those_of_the_model_s_own_scores(dtype: torch.dtype, count: int):
    steps_SV = scores(4).to(dtype)
    request = Request([1], SamplingSettings(temperature=2.0, top_k=4), logprobs=count, frequency_penalty=1.5,
                      logit_bias={3: 9.0})
    for token, expected_V in zip(chosen(request, steps_SV), steps_SV.double().log_softmax(-1), strict=True):
        assert token is not None and token.logprob == pytest.approx(float(expected_V[token.id]), abs=1e-5)
        best = expected_V.topk(min(count, VOCAB)).values.tolist()
        assert [logprob for _, logprob in token.best] == pytest.approx(best, abs=1e-5)
        assert all(logprob == pytest.approx(float(expected_V[one]), abs=1e-5) for one, logprob in token.best)


def test_without_logprobs_none_are_reported():
    assert chosen(Request([1], SamplingSettings()), scores(1)) == [Token(int(scores(1).argmax()), None, ())]


def test_tokens_are_drawn_with_their_probabilities():
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(draw(np.array([0.5, 0.3, 0.0, 0.2, 0.0]), np.array([7, 2, 9, 4, 1]), generator)
                    for _ in range(20000))
    assert {token: count / 20000 for token, count in drawn.items()} == pytest.approx({7: 0.5, 2: 0.3, 4: 0.2},
                                                                                     abs=0.015)


def test_a_request_draws_from_a_generator_of_its_own():
    settings = SamplingSettings(temperature=3.0, seed=4)
    first, again, other = (ids(chosen(Request([1], SamplingSettings(temperature=3.0, seed=seed)), scores(20)))
                           for seed in (4, 4, 5))
    assert first == again != other
    generator = torch.Generator().manual_seed(settings.seed)
    expected = [draw(*candidates(row_V, 3.0, 0, 1.0), generator) for row_V in scores(20).numpy()]
    assert first == expected


def test_seeds_of_several_answers():
    several = list(seeds(7, 5))
    assert several[0] == 7 and len(set(several)) == 5 and several[:3] == list(seeds(7, 3))
    assert not set(several) & set(seeds(8, 5))
    assert all(SamplingSettings(seed=seed).seed == seed for seed in (*several, *seeds(-2**63, 3)))


def random_request(choose: random.Random) -> Request:
    """Returns a request that may ask for anything."""
    def maybe(value, otherwise):
        return value if choose.random() < 0.4 else otherwise

    settings = SamplingSettings(
        temperature=choose.choice([0.0, 0.7, 1.3]), top_k=maybe(choose.randrange(1, 60), 0),
        top_p=maybe(choose.uniform(0.01, 1.0), 1.0), repetition_penalty=maybe(choose.uniform(0.5, 2.0), 1.0),
        seed=choose.randrange(1000))
    return Request([choose.randrange(VOCAB) for _ in range(20)], settings,
                   frequency_penalty=maybe(choose.uniform(-2, 2), 0.0),
                   presence_penalty=maybe(choose.uniform(-2, 2), 0.0),
                   logit_bias=maybe({choose.randrange(VOCAB): choose.uniform(-9, 9) for _ in range(9)}, {}),
                   logprobs=maybe(choose.randrange(6), None),
                   constraint=maybe(Only(*(choose.randrange(14, VOCAB) for _ in range(40))), None))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_a_request_gets_the_same_tokens_alone_and_among_others(seed: int, dtype: torch.dtype):
    """Requests of every kind join and leave at random; bit for bit, logprobs included."""
    choose = random.Random(seed)
    copies = [(random_request(random.Random(f"{seed} {n}")), random_request(random.Random(f"{seed} {n}")),
               scores(8, seed=100 * seed + n, scale=choose.choice([0.5, 4.0])).to(dtype)) for n in range(24)]
    alone = {crowded: chosen(lonely, steps_SV) for lonely, crowded, steps_SV in copies}
    steps_of = {crowded: steps_SV for _, crowded, steps_SV in copies}
    sampler, got = Sampler(VOCAB), {request: list[Token | None]() for request in steps_of}
    for request in got:
        sampler.add(request)
    while unfinished := [request for request, tokens in got.items() if len(tokens) < 8]:
        batch = choose.sample(unfinished, choose.randint(1, min(12, len(unfinished))))
        rows_SV = torch.stack([steps_of[request][len(got[request])] for request in batch])
        for request, token in zip(batch, sampler.choose(rows_SV, batch), strict=True):
            got[request].append(token)
    assert got == alone


def test_a_forgotten_request_leaves_nothing_behind():
    request, sampler = Request([1], SamplingSettings()), Sampler(VOCAB)
    sampler.add(request)
    sampler.forget(request)
    sampler.forget(request)
    assert not sampler._states
