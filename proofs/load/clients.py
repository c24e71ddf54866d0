"""Clients: each makes one request in its own way and says what was wrong with the answer."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from load.bodies import BROKEN, CHAT, HUGE_BYTES
from load.comparing import error_problem, essence, events_of, joined
from load.http_client import Answer, ask, connected, request

MAX_RETRIES = 1000
BUSY = 429


@dataclass
class Result:
    """The end of one request.

    wrong: what was wrong with it; "" if nothing was.
    seconds: from the last try to the end of the answer, for requests whose time counts.
    refused: how often the server said that it was busy.
    """

    kind: str
    wrong: str = ""
    status: int = 0
    seconds: float | None = None
    first_seconds: float | None = None
    refused: int = 0
    tokens: int = 0


@dataclass
class Planned:
    """A request to make: how, with what, and the answer that it got alone (`essence`)."""

    kind: str
    path: str = CHAT
    body: Any = None
    alone: Any = None
    random: Random = field(default_factory=Random)


Client = Callable[[int, Planned], Awaitable[Result]]


def as_stream(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the body with the fields that ask for a stream with usage."""
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


async def patient(port: int, path: str, body: Any) -> tuple[Answer, int]:
    """Asks again for as long as the server is busy; returns the answer, and how often it was busy.

    Raises:
        ValueError: if a busy server does not say when to come again.
    """
    for refused in range(MAX_RETRIES):
        answer = await ask(port, path, body)
        if answer.status != BUSY:
            return answer, refused
        wait = answer.headers.get("retry-after", "")
        if not wait.isdigit():
            raise ValueError(f"a busy server's Retry-After is {wait!r}")
        await asyncio.sleep(min(float(wait), 2.0))
    raise ValueError("the server stays busy")


def _compared(planned: Planned, answer: Answer, body: Any, refused: int) -> Result:
    found = essence(answer.status, body)
    wrong = "" if found == planned.alone else f"alone {json.dumps(planned.alone)[:300]}, now {json.dumps(found)[:300]}"
    tokens = body["usage"]["completion_tokens"] if answer.status == 200 and isinstance(body, dict) else 0
    return Result(planned.kind, wrong, answer.status, answer.seconds, answer.first_seconds, refused, tokens)


async def whole(port: int, planned: Planned) -> Result:
    """Reads an answer that comes as a whole."""
    answer, refused = await patient(port, planned.path, planned.body)
    return _compared(planned, answer, answer.json(), refused)


async def streamed(port: int, planned: Planned) -> Result:
    """Reads a stream, which must add up to the answer as a whole."""
    answer, refused = await patient(port, planned.path, as_stream(planned.body))
    body = joined(events_of(answer.body)) if answer.status == 200 else answer.json()
    return _compared(planned, answer, body, refused)


async def slow_reader(port: int, planned: Planned) -> Result:
    """Reads a stream in small bites with pauses."""
    async with connected(port) as connection:
        await connection.send(request(port, planned.path, json.dumps(as_stream(planned.body)).encode()))
        got = b""
        while bite := await connection.reader.read(200):
            got += bite
            await asyncio.sleep(planned.random.uniform(0, 0.1))
    head, _, rest = got.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status == BUSY:
        return Result(planned.kind, status=status)
    content = _unchunked(rest) if b"chunked" in head.lower() else rest
    body = joined(events_of(content)) if status == 200 else json.loads(content)
    found = _compared(planned, Answer(status, {}), body, 0)
    found.seconds = found.first_seconds = None
    return found


def _unchunked(data: bytes) -> bytes:
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[:int(size, 16)], data[int(size, 16) + 2:]
    return found


async def no_reader(port: int, planned: Planned) -> Result:
    """Asks for a stream, reads nothing of it for a while, and leaves."""
    async with connected(port) as connection:
        await connection.send(request(port, planned.path, json.dumps(as_stream(planned.body)).encode()))
        await asyncio.sleep(planned.random.uniform(1, 5))
    return Result(planned.kind)


async def leaver(port: int, planned: Planned) -> Result:
    """Leaves before, at or after the first pieces of an answer."""
    body = planned.body if planned.random.random() < 0.3 else as_stream(planned.body)
    async with connected(port) as connection:
        await connection.send(request(port, planned.path, json.dumps(body).encode()))
        for _ in range(planned.random.randrange(4)):
            if not await connection.reader.read(planned.random.choice((1, 300, 3000))):
                break
        await asyncio.sleep(planned.random.uniform(0, 0.3))
    return Result(planned.kind)


async def half_body(port: int, planned: Planned) -> Result:
    """Sends half a body, or half a head, and then either leaves or waits: the server must end the wait."""
    data = request(port, planned.path, json.dumps(planned.body).encode())
    cut = planned.random.randrange(1, len(data))
    async with connected(port) as connection:
        await connection.send(data[:cut])
        if planned.random.random() < 0.5:
            return Result(planned.kind)
        got = await asyncio.wait_for(connection.reader.read(2000), 120)
    if not got:  # closed without a word, as for half a head
        return Result(planned.kind)
    status = int(got.split(b" ", 2)[1])
    return Result(planned.kind, "" if status in (400, 408) else f"half a request: {got[:200]!r}", status)


async def slow_sender(port: int, planned: Planned) -> Result:
    """Sends a request in small bites with pauses, which in all take less than the server's limit."""
    data = request(port, planned.path, json.dumps(planned.body).encode())
    size = len(data) // 10 + 1
    async with connected(port) as connection:
        for start in range(0, len(data), size):
            await connection.send(data[start:start + size])
            await asyncio.sleep(0.1)
        answer = await connection.answer()
    if answer.status == BUSY:
        return Result(planned.kind, status=BUSY)
    return _compared(planned, answer, answer.json(), 0)


async def huge_body(port: int, planned: Planned) -> Result:
    """Sends a body beyond the limit, with its length or in chunks: refused before it has all come."""
    chunked = planned.random.random() < 0.5
    length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(HUGE_BYTES)}
    lines = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **length}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    piece = b"a" * 2**16
    async with connected(port) as connection:
        await connection.send(f"POST {planned.path} HTTP/1.1\r\n{head}\r\n".encode())
        reading = asyncio.create_task(connection.head())
        for _ in range(HUGE_BYTES // len(piece)):
            if reading.done():
                break
            try:
                await connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            except ConnectionError:
                break
        status = (await reading).status
    return Result(planned.kind, "" if status == 413 else f"status {status}", status)


async def broken(port: int, planned: Planned) -> Result:
    """Sends a body that no server may accept."""
    name = planned.random.choice(list(BROKEN))
    started = time.monotonic()
    answer = await ask(port, planned.path, BROKEN[name])
    wrong = error_problem(answer) or ("" if answer.status in (400, 413, 422) else f"status {answer.status}")
    return Result(planned.kind, f"{name}: {wrong}" if wrong else "", answer.status, first_seconds=None,
                  seconds=None if wrong else time.monotonic() - started)


async def injected(port: int, planned: Planned) -> Result:
    """Sends hostile text in a field: refused in one line, or answered as alone."""
    answer, refused = await patient(port, planned.path, planned.body)
    if answer.status != 200 and (wrong := error_problem(answer)):
        return Result(planned.kind, f"{wrong}; {json.dumps(planned.body)[:300]}", answer.status)
    return _compared(planned, answer, answer.json(), refused)


async def odd_http(port: int, planned: Planned) -> Result:
    """Sends a request that HTTP forbids, or to an address that is none: the server answers 4xx or closes."""
    name, data, allowed = planned.random.choice(odd_requests(port))
    async with connected(port) as connection:
        await connection.send(data)
        got = await asyncio.wait_for(connection.reader.read(2000), 120)
    status = int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/1.") else 0
    return Result(planned.kind, "" if status in (0, *allowed) else f"{name}: {got[:200]!r}", status)


def odd_requests(port: int) -> list[tuple[str, bytes, tuple[int, ...]]]:
    """Returns requests with their names and the statuses that they may get, besides a closed connection."""
    body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}'
    post, length = f"POST {CHAT} HTTP/1.1\r\n".encode(), b"Content-Length: %d\r\n" % len(body)
    host, kind = b"Host: 127.0.0.1:%d\r\n" % port, b"Content-Type: application/json\r\n"
    return [
        ("two lengths", post + host + kind + length + b"Content-Length: 3\r\n\r\n" + body, (400,)),
        ("length and chunks", post + host + kind + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
        ("a negative length", post + host + kind + b"Content-Length: -1\r\n\r\n" + body, (400,)),
        ("another host", post + b"Host: evil.example\r\n" + kind + length + b"\r\n" + body, (400, 403, 421)),
        ("two hosts", post + host + b"Host: evil.example\r\n" + kind + length + b"\r\n" + body, (400, 403, 421)),
        ("no host", post + kind + length + b"\r\n" + body, (400, 403, 421)),
        ("a form", post + host + b"Content-Type: text/plain\r\n" + length + b"\r\n" + body, (400, 415)),
        ("compressed", post + host + kind + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + body, (400, 415)),
        ("up and down", b"GET /../../../../etc/passwd HTTP/1.1\r\n" + host + b"\r\n", (400, 404)),
        ("escaped", b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + host + b"\r\n", (400, 404)),
        ("a null", b"GET /%00 HTTP/1.1\r\n" + host + b"\r\n", (400, 404)),
        ("another method", b"DELETE /v1/models HTTP/1.1\r\n" + host + b"\r\n", (404, 405)),
        ("a proxy's address", b"GET http://evil.example/ HTTP/1.1\r\n" + host + b"\r\n", (400, 403, 404, 421)),
        ("long line", b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + host + b"\r\n", (400, 404, 414, 431)),
        ("many headers", b"GET / HTTP/1.1\r\n" + host + b"A: b\r\n" * 50_000 + b"\r\n", (400, 413, 431)),
        ("noise", bytes(range(256)) * 4 + b"\r\n\r\n", (400,)),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n", (400,)),
    ]
