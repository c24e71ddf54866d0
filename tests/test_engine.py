"""An engine answers each request as if it were alone, whatever joins, leaves and shares."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from engine_schedules import PAGE, Pool, answers
from tiny_generation import CONFIG, CONFIGS, DYNAMIC, build

from minimind_sft.errors import UserError
from minimind_sft.inference import packed
from minimind_sft.inference.engine import Engine
from minimind_sft.inference.generate import generate_stream
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.inference.request import Request
from minimind_sft.settings.chat import SamplingSettings

FORMS = {**{name: (CONFIGS[name], torch.float32) for name in ("dense", "moe", "window", "gpt2", "shared experts")},
         "dynamic": (DYNAMIC, torch.float32), "bfloat16": (CONFIG, torch.bfloat16), "float64": (CONFIG, torch.float64),
         "plain experts": (CONFIGS["moe"], torch.float32), "plain bfloat16": (CONFIG, torch.bfloat16)}


@pytest.mark.parametrize("form", FORMS)
def test_a_request_gets_the_same_bits_alone_and_among_others(form: str, monkeypatch):
    monkeypatch.setattr(packed, "SMALL", 10)  # prompts are multiplied in bfloat16 even here
    config, dtype = FORMS[form]
    model = build(config).to(dtype)
    pool = Pool(model if form.startswith("plain") else ready_to_decode(model), 8)
    shared = sum(pool.check(seed) for seed in range(4))
    assert (shared == 0) == (form == "dynamic"), "keys of a prompt depend on its whole length under dynamic scaling"


def engine_for(max_running: int = 4, cache_tokens: int = 64, chunk: int = 64) -> Engine:
    return Engine(build().float(), max_running, cache_tokens, chunk, page=PAGE)


def request(prompt: list[int], tokens: int = 5, **options) -> Request:
    return Request(prompt, SamplingSettings(tokens), **options)


def test_answers_are_those_of_generate_stream():
    model, prompt = build().float(), [7, 3, 9, 12, 40]
    one = request(prompt, 12)
    (tokens,) = answers(Engine(model), [one])
    assert [token.id for token in tokens] == list(generate_stream(model, prompt, SamplingSettings(12), ()))
    assert (one.finish, len(tokens)) == ("length", 12)
    stopped = request(prompt, 12, stop_ids={tokens[4].id})
    first = next(i for i, token in enumerate(tokens) if token.id == tokens[4].id)
    assert answers(Engine(model), [stopped]) == [tokens[:first]]
    assert stopped.finish == "stop"


def test_requests_that_do_not_fit_wait_in_order():
    engine = engine_for(max_running=3, cache_tokens=64)
    requests = [request([1, 2, 3], 9) for _ in range(3)]  # each is read up to 32
    for one in requests:
        engine.add(one)
    assert engine.step().keys() == set(requests[:2])
    assert (engine.running, engine.waiting) == (2, 1)
    while requests[0].finish is None:
        assert requests[2] not in engine.step()
    assert requests[2] in engine.step()


def test_a_full_cache_makes_the_youngest_wait_until_it_can_go_on_with_the_same_tokens():
    model = build().float()
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    alone = [answers(Engine(model), [request(prompt, 50)])[0] for prompt in prompts]
    engine = Engine(model, 3, 96, reserve=4, page=PAGE)  # each begins with 32 places, and needs 64 in the end
    requests = [request(prompt, 50) for prompt in prompts]
    for one in requests:
        engine.add(one)
    running, got = [], {one: [] for one in requests}
    while engine.running or engine.waiting:
        for one, tokens in engine.step().items():
            got[one] += tokens
        running.append(engine.running)
    assert list(got.values()) == alone
    assert (running[0], running[40]) == (3, 1)
    assert [one.finish for one in requests] == ["length"] * 3


def test_tokens_that_are_shared_anew_count_once():
    engine = Engine(build().float(), 2, 64, chunk=PAGE, reserve=4, page=PAGE)
    beginning = [9, 8, 7, 6, 5, 4, 3, 2]
    long, late = request([*beginning, 1], 45), request([*beginning, *range(20)], 2)
    engine.add(long)
    for _ in range(24):
        engine.step()
    engine.add(late)
    engine.step()
    assert (engine.running, late.prompt_tokens_shared) == (2, 8)
    while engine.running == 2:  # until the long answer needs the whole cache
        engine.step()
    assert (engine.waiting, long.finish) == (1, None)
    while late.finish is None:
        engine.step()
    assert late.prompt_tokens_shared == 8


def test_what_can_never_be_answered_is_refused():
    engine = engine_for(cache_tokens=32)
    for prompt, tokens, message in [
        ([], 1, "the prompt is empty"), ([1] * 60, 1, "the prompt has 60 tokens and leaves no room for an answer"),
        ([1] * 30, 20, "a prompt of 30 tokens and an answer of up to 20 do not fit the KV cache of 32 tokens"),
    ]:
        with pytest.raises(UserError, match=message):
            engine.add(request(prompt, tokens))
    with pytest.raises(UserError, match="logit_bias"):
        engine.add(request([1], logit_bias={50: 1.0}))
    assert (engine.waiting, engine.step()) == (0, {})


def test_cancelled_requests_leave_at_once():
    engine = engine_for(max_running=1)
    running, waiting, last = request([1, 2], 50), request([1, 2]), request([3])
    for one in (running, waiting, last):
        engine.add(one)
    engine.step()
    for one in (running, waiting):
        engine.cancel(one)
    assert (engine.running, engine.waiting) == (0, 1)
    assert engine.step().keys() == {last}
    assert [one.finish for one in (running, waiting, last)] == ["cancelled", "cancelled", None]
    while last.finish is None:
        engine.step()
    engine.cancel(last)
    assert last.finish == "length"


def test_a_long_prompt_does_not_stall_others():
    engine = engine_for(chunk=PAGE)
    short, long = request([1, 2, 3], 20), request([5] * 30, 2)
    engine.add(short)
    engine.step()
    engine.add(long)
    for _ in range(7):
        assert engine.step().keys() == {short}
    assert engine.step().keys() == {short, long}


def test_a_step_reads_as_many_short_prompts_as_its_share_of_tokens_holds():
    engine = engine_for(cache_tokens=128, chunk=2 * PAGE)
    requests = [request([token] * 2) for token in range(1, 5)]
    for one in requests:
        engine.add(one)
    assert engine.step().keys() == set(requests)


def test_a_beginning_is_read_once():
    engine, system = engine_for(max_running=2), [9, 8, 7, 6, 5, 4, 3, 2]
    together = [request([*system, token]) for token in (1, 2)]
    answers(engine, together)
    later = request([*system, 3, 3, 3])
    answers(engine, [later])
    same = request([*system])
    answers(engine, [same])
    assert sorted(one.prompt_tokens_shared for one in together) == [0, 8]
    assert later.prompt_tokens_shared == 8
    assert same.prompt_tokens_shared == 4, "the last token is always read: it predicts the first of the answer"


def test_an_answer_is_shared_once_it_was_read():
    engine, prompt = engine_for(), [9, 8, 7]
    (answer,) = answers(engine, [request(prompt, 5)])
    turn = [*prompt, *(token.id for token in answer), 1]
    shared = []
    for _ in range(2):
        one = request(turn)
        answers(engine, [one])
        shared.append(one.prompt_tokens_shared)
    assert shared == [0, 8]


def test_a_model_whose_scores_are_no_numbers_fails_one_by_one():
    model = build().float()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    model.lm_head.weight = torch.nn.Parameter(torch.ones_like(model.lm_head.weight))
    engine = Engine(model)
    damaged, fine = request([1, 5]), request([1, 2])
    assert answers(engine, [damaged, fine])[0] == []
    assert damaged.finish == "error" and "NaN" in damaged.problem
    assert fine.finish == "length"


def test_its_memory_is_known_and_freed():
    engine = engine_for(cache_tokens=61)
    assert engine.cache_tokens == 64
    config = engine.model.config
    assert engine.bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4 * 64
    one = request([1, 2, 3])
    answers(engine, [one])
    ended = weakref.ref(one)
    del one
    gc.collect()
    assert ended() is None


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(AssertionError, match="eval"):
        Engine(build().train())


def test_requests_may_differ_in_everything_that_chooses_tokens():
    model = build().float()
    ways = [{}, {"logit_bias": {4: 100.0}}, {"presence_penalty": 2.0}, {"logprobs": 3}]
    requests = [request([7, 3, 9], 6, **way) for way in ways]
    requests += [Request([7, 3, 9], replace(SamplingSettings(6, temperature=2.0), seed=seed)) for seed in (1, 2)]
    together = answers(Engine(model), requests)
    assert {token.id for token in together[1]} == {4}
    for way, tokens in zip(ways, together, strict=False):
        assert answers(Engine(model), [request([7, 3, 9], 6, **way)]) == [tokens]
    assert together[4] != together[5]
