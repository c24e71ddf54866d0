"""Puts load on the server: many clients at once, some of them hostile, and no answer may be lost or mixed up.

    python proofs/serve_load.py --json proofs/results/serve_load.json
    python proofs/serve_load.py --weight full_sft --requests 5000 --clients 128
    python proofs/serve_load.py --soak 600 -- --models second=pretrain    # ten minutes more, with flags of the server

First each ordinary request is sent to a fresh server alone. Then another server gets all of them from many clients at
once, among clients that read slowly or not at all, leave, send half a request, too much, broken JSON, forbidden HTTP,
or hostile text in every field. Each answer, streamed or not, must equal the one that the request got alone. At the end
the server must have freed every slot and connection, its memory must not have grown, and it must print neither a
traceback nor a control character. Then it is asked to stop in the middle of streams, which must still end properly.
Exits with status 1 if anything went wrong.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from load import clients
from load.bodies import CHAT, injections, ordinary
from load.comparing import essence, events_of, joined
from load.http_client import ask, connected, request
from load.server_process import ServerProcess

MIX: dict[str, tuple[clients.Client, int]] = {
    "whole answers": (clients.whole, 30), "streams": (clients.streamed, 30),
    "slow readers": (clients.slow_reader, 4), "no readers": (clients.no_reader, 2),
    "leave early": (clients.leaver, 7), "half a request": (clients.half_body, 3),
    "slow senders": (clients.slow_sender, 2),
    "huge bodies": (clients.huge_body, 1), "broken JSON": (clients.broken, 6), "odd HTTP": (clients.odd_http, 5),
    "hostile fields": (clients.injected, 10),
}
"""The clients, and how many of 100 requests each makes."""
DRAINED = 8
"""Streams under way when the server is asked to stop."""
MAX_GROWTH = 0.05
"""The limit of the memory's growth over the second half of a run, relative to its middle."""
SETTLE_SECONDS = 60.0


def plan(dice: Random, count: int, models: Sequence[str]) -> list[clients.Planned]:
    """Returns the requests in random order, ordinary ones to any of the models."""
    kinds = dice.choices(list(MIX), [share for _, share in MIX.values()], k=count)
    hostile = injections(dice, models[0])
    found = []
    for number, kind in enumerate(kinds):
        path, body = next(hostile) if kind == "hostile fields" else ordinary(dice, number, models)
        found.append(clients.Planned(kind, path, body, random=Random(dice.random())))
    return found


async def answer_alone(server: ServerProcess, planned: Sequence[clients.Planned]) -> None:
    """Sends each request by itself, and keeps the answer's essence in the plan."""
    for one in planned:
        answer = await ask(server.port, one.path, one.body)
        one.alone = essence(answer.status, answer.json())


async def put_load(port: int, planned: Sequence[clients.Planned], count: int, until: float) -> list[clients.Result]:
    """Lets `count` clients make all requests, and then go on with them until a time of the monotonic clock."""
    results: list[clients.Result] = []
    position = iter(range(sys.maxsize))

    async def work() -> None:
        while (number := next(position)) < len(planned) or time.monotonic() < until:
            one = planned[number % len(planned)]
            try:
                results.append(await MIX[one.kind][0](port, one))
            except Exception as error:  # whatever a client meets is the server's fault
                results.append(clients.Result(one.kind, f"{type(error).__name__}: {error}; {str(one.body)[:300]}"))
            if results[-1].wrong:
                print(f"{one.kind}: {ascii(results[-1].wrong)[1:-1][:700]}", flush=True)

    await asyncio.gather(*(work() for _ in range(count)))
    return results


async def settled(server: ServerProcess, files: int) -> str:
    """Waits until nothing runs and no connection is open; says what did not end, or ""."""
    deadline, state = time.monotonic() + SETTLE_SECONDS, "nothing known"
    while time.monotonic() < deadline:
        text = (await ask(server.port, "/metrics")).body.decode()
        busy = {name: float(value) for name, _, value in (line.partition(" ") for line in text.splitlines())
                if name.split("{")[0].endswith(("_running", "_waiting"))}
        state = f"{busy}, {server.open_files()} files open, {files} before"
        if busy and not any(busy.values()) and server.open_files() <= files + 2:
            return ""
        await asyncio.sleep(0.2)
    return f"after {SETTLE_SECONDS:g} s: {state}"


async def drained(server: ServerProcess, model: str) -> str:
    """Asks the server to stop while it streams; says what was wrong with the streams, the status or the output."""
    async def stream(number: int, started: asyncio.Event) -> str:
        body = {"model": model, "max_tokens": 200, "temperature": 1, "seed": number,
                "messages": [{"role": "user", "content": "Count."}]}
        async with connected(server.port) as connection:
            await connection.send(request(server.port, CHAT, json.dumps(clients.as_stream(body)).encode()))
            answer, got = await connection.head(), b""
            async for piece in connection.pieces(answer):
                got += piece
                started.set()
        return joined(events_of(got))["choices"][0]["finish_reason"]

    begun = [asyncio.Event() for _ in range(DRAINED)]
    streams = [asyncio.create_task(stream(number, event)) for number, event in enumerate(begun)]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 300)
    server.terminate()
    ends = await asyncio.gather(*streams, return_exceptions=True)
    status = await asyncio.to_thread(server.wait)
    wrong = [repr(end) for end in ends if end not in ("stop", "length")]
    return "; ".join([*wrong, *([f"exit status {status}"] if status else [])])


def memory_of(server: ServerProcess) -> dict[str, float]:
    """Returns the resident MiB: at most in the middle of the run, in its last tenth, and the growth between them."""
    values = [mib for _, mib in server.memory]
    middle, end = (max(values[int(len(values) * start):int(len(values) * stop) + 1])
                   for start, stop in ((0.4, 0.6), (0.9, 1.0)))
    return {"first_mib": round(values[0], 1), "middle_mib": round(middle, 1), "end_mib": round(end, 1),
            "growth": round(end / middle - 1, 4)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns p50, p99 and the maximum in seconds."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3), "max": round(max(values), 3)}


def summary(results: Sequence[clients.Result], seconds: float) -> dict[str, Any]:
    """Returns the figures of a run."""
    timed = [one for one in results if one.seconds is not None and one.status == 200]
    return {
        "requests": len(results), "seconds": round(seconds, 1),
        "kinds": {kind: {"requests": sum(one.kind == kind for one in results),
                         "statuses": dict(Counter(str(one.status) for one in results if one.kind == kind))}
                  for kind in MIX},
        "told_to_come_again": sum(one.refused for one in results),
        "compared_tokens": sum(one.tokens for one in results),
        "seconds_to_answer": percentiles([one.seconds or 0.0 for one in timed]),
        "seconds_to_first_token": percentiles([one.first_seconds or 0.0 for one in timed if one.kind == "streams"]),
    }


async def judge(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs everything; returns the figures with what was wrong."""
    flags = ["--weight", arguments.weight, *arguments.server_flags]
    server = ServerProcess(flags, folder / "alone.log")
    models = [model["id"] for model in (await ask(server.port, "/v1/models")).json()["data"]]
    planned = plan(Random(arguments.seed), arguments.requests, models)
    try:
        await answer_alone(server, planned)
    finally:
        print(server.end(), end="", flush=True)
        server.terminate()
        server.wait()
    server = ServerProcess(flags, folder / "load.log")
    await ask(server.port, "/metrics")
    files, started = server.open_files(), time.monotonic()
    results = await put_load(server.port, planned, arguments.clients, started + arguments.soak)
    print(server.end(), end="", flush=True)
    figures = {"models": models, "clients": arguments.clients, **summary(results, time.monotonic() - started)}
    wrong = [{"kind": one.kind, "reason": one.wrong[:500]} for one in results if one.wrong]
    figures["memory"] = memory_of(server)
    reasons = {"slots and connections": await settled(server, files), "drain": await drained(server, models[0]),
               "output": server.output_problem() or ""}
    if arguments.soak and figures["memory"]["growth"] > MAX_GROWTH:
        reasons["memory"] = f"grew by {figures['memory']['growth']:.1%}"
    return figures | {"wrong": wrong + [{"kind": kind, "reason": reason} for kind, reason in reasons.items() if reason]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", default="full_sft", help="weights to serve (%(default)s)")
    parser.add_argument("server_flags", nargs="*", help="further flags of the server, after --")
    parser.add_argument("--requests", type=int, default=1000, help="requests, one after the other and then at once "
                        "(%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (%(default)s)")
    parser.add_argument("--soak", type=float, default=0, help="seconds to go on with the same requests (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the requests (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(judge(arguments, Path(folder)))
    print(json.dumps(figures, indent=1))
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/serve_load.py", *sys.argv[1:]]), **figures}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
