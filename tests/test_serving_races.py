"""The worker under many clients that come, leave and give up at any moment, over engines that sometimes fail."""

import asyncio
from dataclasses import dataclass, field
from random import Random

import pytest
from programs import PATIENCE

from minimind_sft.errors import UserError
from minimind_sft.inference.request import Request, Token
from minimind_sft.serving.worker import QueueFull, Submission, Worker
from minimind_sft.settings.chat import SamplingSettings


@dataclass(eq=False)
class FakeEngine:
    """Answers [number, length] with number, number + 1, ... up to `length` tokens; fails at random."""

    random: Random
    max_running: int = 4
    fails: float = 0.02
    going: dict[Request, int] = field(default_factory=dict)

    @property
    def running(self) -> int:
        return min(len(self.going), self.max_running)

    @property
    def waiting(self) -> int:
        return len(self.going) - self.running

    def add(self, request: Request) -> None:
        if request.prompt[1] == 0:
            raise UserError("the prompt never fits")
        if request.prompt[1] < 0:
            raise RuntimeError("a mistake in the engine")
        self.going[request] = 0

    def cancel(self, request: Request) -> None:
        if request in self.going:
            request.finish = "cancelled"
            del self.going[request]

    def step(self) -> dict[Request, list[Token]]:
        if self.random.random() < self.fails:
            raise RuntimeError("a step failed")
        new = {}
        for request in list(self.going)[:self.max_running]:
            number, length = request.prompt
            new[request] = [Token(number + self.going[request])]
            self.going[request] += 1
            if self.going[request] == length:
                request.finish = "length"
                del self.going[request]
        return new


async def client(worker: Worker, engine: FakeEngine, number: int, random: Random) -> str:
    """Makes up to three requests together; returns how they ended, having checked the tokens."""
    requests = [Request([1000 * (3 * number + index), random.randint(0, 12)], SamplingSettings())
                for index in range(random.randint(1, 3))]
    await asyncio.sleep(random.uniform(0, 0.05))
    never_fits = any(request.prompt[1] == 0 for request in requests)
    while True:
        try:
            submission = await worker.submit(engine, requests)
            break
        except QueueFull:  # comes again
            await asyncio.sleep(random.uniform(0, 0.01))
        except UserError:
            assert never_fits
            return "refused"
    assert not never_fits
    got: list[list[int]] = [[] for _ in requests]
    stop_at, ended = random.choice((None, None, 0, 2, 5)), 0
    async for index, tokens, is_end in submission.news():
        got[index] += [token.id for token in tokens]
        ended += is_end
        if stop_at is not None and len(got[index]) >= stop_at:
            give_up(submission, index, random)
    assert ended == len(requests)
    for request, tokens in zip(requests, got, strict=True):
        first, length = request.prompt
        assert tokens == [first + step for step in range(len(tokens))] and len(tokens) <= length
        assert request.finish in ("cancelled", "error") or len(tokens) == length
    return "answered"


def give_up(submission: Submission, index: int, random: Random) -> None:
    if random.random() < 0.5:
        submission.cancel(index)
    else:
        submission.break_off("left")


async def make_requests(seed: int) -> list[str]:
    random = Random(seed)
    engines = [FakeEngine(Random(seed + 1)), FakeEngine(Random(seed + 2))]
    worker = Worker(engines, 20, 60.0)
    worker.start()
    clients = [asyncio.create_task(client(worker, random.choice(engines), number, Random(seed + number)))
               for number in range(150)]
    for one in random.sample(clients, 20):
        asyncio.get_running_loop().call_later(random.uniform(0, 0.06), one.cancel)
    ends = await asyncio.gather(*clients, return_exceptions=True)
    while worker.open:  # of clients that were cancelled
        worker.break_off_all()
        await asyncio.sleep(0.001)
    worker.stop()
    assert not any(engine.going for engine in engines)
    return ["left" if isinstance(end, asyncio.CancelledError) else str(end) for end in ends]


@pytest.mark.parametrize("seed", range(3))
def test_no_request_is_lost_or_mixed_up(seed, capsys):
    ends = asyncio.run(make_requests(seed))
    assert set(ends) <= {"answered", "left", "refused"}
    assert ends.count("answered") > 90 and ends.count("left") <= 20  # a seventh asks for what never fits


def test_an_engine_that_fails_to_take_a_request_refuses_that_one_alone():
    async def ask() -> None:
        engine = FakeEngine(Random(0), fails=0)
        worker = Worker([engine], 20, 60.0)
        worker.start()
        with pytest.raises(RuntimeError, match="a mistake in the engine"):
            await worker.submit(engine, [Request([1, -1], SamplingSettings())])
        submission = await worker.submit(engine, [Request([7, 2], SamplingSettings())])
        tokens = [token.id async for news in submission.news() for token in news.tokens]
        assert tokens == [7, 8] and not worker.open
        worker.stop()

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))


def test_a_request_that_is_refused_while_its_client_leaves_keeps_no_place():
    async def ask() -> None:
        engine = FakeEngine(Random(0), fails=0)
        worker = Worker([engine], 20, 60.0)
        worker.start()
        asking = asyncio.create_task(worker.submit(engine, [Request([1, 0], SamplingSettings())]))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while worker.open:
            await asyncio.sleep(0.001)
        worker.stop()

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))


def test_a_request_that_comes_while_the_thread_dies_ends(capsys):
    async def ask() -> None:
        engine = FakeEngine(Random(0), fails=0)

        def fail(request: Request) -> None:
            raise RuntimeError("broken beyond repair")

        worker = Worker([engine], 20, 60.0)
        worker.start()
        first = await worker.submit(engine, [Request([1, 10**9], SamplingSettings())])
        engine.cancel = fail
        first.break_off("left")
        late = Request([2, 1], SamplingSettings())
        submission = await worker.submit(engine, [late])
        assert [news.ended async for news in submission.news()] == [True]
        assert late.finish == "error" and not worker.open and not worker.is_alive

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))
