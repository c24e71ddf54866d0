"""A plain HTTP/1.1 client over sockets: it can also do what no proper client does, such as send half a body."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 300.0
"""Seconds to wait for any part of an answer: a request that takes longer counts as lost."""
LINE = 2**20
"""Bytes of the longest line or chunk that is read."""


@dataclass
class Answer:
    """An HTTP response.

    first_seconds: from the request to the first byte of the body that came, for streams to the first token.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    seconds: float = 0.0
    first_seconds: float = 0.0

    def json(self) -> Any:
        """Parses the body; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass
class Connection:
    """An open connection, and when the request on it was sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: float = field(default_factory=time.monotonic)

    async def send(self, data: bytes) -> None:
        self.sent = time.monotonic()
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Answer:
        """Reads the status line and the headers, with their names in lower case."""
        async with asyncio.timeout(PATIENCE):
            status = (await self.reader.readline()).split(b" ", 2)
            if len(status) < 2 or not status[0].startswith(b"HTTP/1."):
                raise ConnectionError("no HTTP response")
            headers = {}
            while (line := (await self.reader.readline()).strip()):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
        return Answer(int(status[1]), headers)

    async def pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """Yields the body of an answer as it comes.

        Raises:
            ConnectionError, asyncio.IncompleteReadError: if the connection ends before the body does.
        """
        if "chunked" in answer.headers.get("transfer-encoding", ""):
            while size := int(await self._within(self.reader.readline()), 16):
                yield await self._within(self.reader.readexactly(size))
                await self._within(self.reader.readexactly(2))
        else:
            yield await self._within(self.reader.readexactly(int(answer.headers.get("content-length", 0))))

    async def answer(self) -> Answer:
        """Reads a whole answer."""
        answer = await self.head()
        async for piece in self.pieces(answer):
            if not answer.body:
                answer.first_seconds = time.monotonic() - self.sent
            answer.body += piece
        answer.seconds = time.monotonic() - self.sent
        return answer

    async def _within(self, awaited: Any) -> bytes:
        async with asyncio.timeout(PATIENCE):
            data: bytes = await awaited
        if not data:
            raise ConnectionError("the connection ended inside a body")
        return data


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """Opens a connection to a port of this machine; closes it afterwards, whatever is still under way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LINE)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


def request(port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """Returns a request: a GET, or with a body a POST."""
    fields = {"Host": f"127.0.0.1:{port}", "Connection": "close"}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
             *(f"{name}: {value}" for name, value in {**fields, **(headers or {})}.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


async def ask(port: int, path: str, body: Any = None) -> Answer:
    """Sends a request, its body as JSON unless it is bytes or None, and reads the whole answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    async with connected(port) as connection:
        await connection.send(request(port, path, data))
        return await connection.answer()
