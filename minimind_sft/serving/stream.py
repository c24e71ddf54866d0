"""Sends an answer while it grows, as server-sent events, and notices when its client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.responses import failure

DONE = b"data: [DONE]\n\n"
LINE_ENDS = str.maketrans({"\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})
"""Characters that are no line ends in server-sent events, but in the libraries of some clients."""


def event(data: Any) -> bytes:
    """Returns a server-sent event with a value as JSON, which has no line ends."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS)
    return f"data: {text}\n\n".encode()


@contextmanager
def watching(receive: Receive, leave: Callable[[], None]) -> Iterator[None]:
    """Calls `leave` when the client disconnects while the block runs. The body must have been read."""
    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    task = asyncio.create_task(wait())
    try:
        yield
    finally:
        task.cancel()


class EventStream(Response):
    """Sends values as they come. A problem becomes the last event; a stream without one ends with [DONE].

    Args:
        leave: called when the client disconnects; the values end soon after that.
    """

    media_type = "text/event-stream"

    def __init__(self, values: AsyncIterator[Any], leave: Callable[[], None]):
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._values, self._leave = values, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            with watching(receive, self._leave):
                async for part in self._parts():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            self._leave()  # also if sending failed
        await send({"type": "http.response.body", "body": b""})

    async def _parts(self) -> AsyncIterator[bytes]:
        try:
            async for value in self._values:
                yield event(value)
        except ApiProblem as problem:
            yield event(problem.body())
        except Exception as error:
            yield event(failure(error).body())
        else:
            yield DONE
