"""Runs the application under uvicorn: limits of time and number for connections, and signals that end the server."""

import asyncio
import errno
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from minimind_sft.errors import UserError
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.worker import Worker
from minimind_sft.settings.serve import LimitSettings, ListeningSettings
from minimind_sft.terminal import say

LOOK_TICKS = 5
"""Connections are looked at after so many ticks of uvicorn, which are 0.1 s each."""
KEEP_ALIVE_SECONDS = 10
LEAVING_SECONDS = 1.0
"""Time for clients to read the rest, if the server has to end soon."""
MIN_READ = 16 * 1024
"""Bytes that a client must read in `stall_seconds`, if so many wait."""
MAX_HEAD = 32 * 1024
"""Bytes of a request's headers."""
NO_ADDRESS = "--host {host}: expected an address of this machine"


def _raw(status: str, problem: ApiProblem, headers: str = "") -> bytes:
    """Returns the bytes of a response before there is a request, after which the connection ends."""
    body = json.dumps(problem.body())
    return (f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{headers}Connection: close\r\n\r\n{body}").encode()


BUSY = _raw("503 Service Unavailable", ApiProblem(503, "too many connections", "server_error",
                                                  code="too_many_connections"), "Retry-After: 1\r\n")
TOO_SLOW = _raw("408 Request Timeout", ApiProblem(408, "the request did not arrive in time", code="request_timeout"))
NO_HTTP = _raw("400 Bad Request", ApiProblem(400, "the request is not valid HTTP", code="invalid_http"))


class Connection(H11Protocol):
    """A client's connection, which is closed if the client sends or reads too slowly, or is one too many."""

    def __init__(self, limits: LimitSettings, **of_uvicorn: Any):
        super().__init__(**of_uvicorn)
        self._limits = limits
        self._receiving_since: float | None = None
        self._unread = 0
        self._unread_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receiving_since = time.monotonic()
        if len(self.connections) > self._limits.max_connections:
            self._refuse(BUSY)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._receiving_since is None:
            self._receiving_since = time.monotonic()
        super().data_received(data)
        self._note_received()

    def on_response_complete(self) -> None:
        self._receiving_since = time.monotonic()  # of the next request, if a part of it has come meanwhile
        super().on_response_complete()
        self._note_received()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    def look(self, now: float) -> None:
        """Closes the connection if its client is too slow."""
        unread = self.transport.get_write_buffer_size()
        if self._unread_since is None or unread == 0 or unread <= self._unread - MIN_READ:
            self._unread, self._unread_since = unread, now if unread else None
        since = self._receiving_since
        sends_too_slowly = since is not None and now - since > self._limits.receive_seconds and not self._is_answering
        reads_too_slowly = self._unread_since is not None and now - self._unread_since > self._limits.stall_seconds
        if reads_too_slowly:
            self.transport.abort()
        elif sends_too_slowly and not self.transport.is_closing():
            self._refuse(TOO_SLOW if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] else b"")

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"" if self._is_answering else NO_HTTP)

    def _refuse(self, response: bytes) -> None:
        """Sends a last response, unless another one has begun, and ends the connection."""
        self.transport.write(response)
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_received(self) -> None:
        """Remembers that the request has arrived, unless a part is missing or the next one has begun."""
        if self.conn.their_state is not h11.SEND_BODY and not self.conn.trailing_data[0]:
            self._receiving_since = None


class Server(uvicorn.Server):
    """Ends when asked to: the first signal lets answers end, a second Ctrl-C breaks them off.

    Args:
        ready: called when clients are served and signals are handled.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, limits: LimitSettings,
                 ready: Callable[[], None] = lambda: None):
        super().__init__(config)
        self.worker, self._limits, self._ready = worker, limits, ready
        self._asked_at: float | None = None
        self._is_urgent = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._is_urgent |= self._asked_at is not None and sig == signal.SIGINT
        if self._is_urgent and self.should_exit:  # only clients that do not read are left
            self._loop.call_soon_threadsafe(self._abort)
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if counter % LOOK_TICKS == 0:
            for connection in self._connections():
                connection.look(now)
        if self._asked_at is not None:
            self.worker.is_draining = True
            if self._is_urgent or now - self._asked_at > self._limits.drain_seconds:
                self.worker.break_off_all()
            self.should_exit = not self.worker.open
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets clients read the rest of their answers, and then leaves those that do not."""
        seconds = LEAVING_SECONDS if self._is_urgent else self._limits.stall_seconds
        asyncio.get_running_loop().call_later(seconds, self._abort)
        await super().shutdown(sockets)

    def _abort(self) -> None:
        for connection in self._connections():
            connection.transport.abort()

    def _connections(self) -> list[Connection]:
        return [one for one in self.server_state.connections if isinstance(one, Connection)]


def listen(listening: ListeningSettings) -> socket.socket:
    """Opens the port.

    Raises:
        UserError: if it cannot be used.
    """
    try:
        found = socket.getaddrinfo(listening.host, listening.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(NO_ADDRESS.format(host=listening.host)) from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there, it would let two servers have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(NO_ADDRESS.format(host=listening.host)) from error
        raise UserError(f"--port {listening.port}: cannot be used at {listening.host} ({error.strerror}); choose "
                        "another, or 0 for any free one") from error
    return listener


def configured(app: FastAPI, limits: LimitSettings) -> uvicorn.Config:
    """Returns how uvicorn runs the application."""
    protocol: Any = partial(Connection, limits)
    return uvicorn.Config(
        app, http=protocol, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, workers=1, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD)


def serve(app: FastAPI, listener: socket.socket, limits: LimitSettings, ready: Callable[[], None]) -> None:
    """Serves until a signal ends it, and then lets answers end; calls `ready` when it has begun."""
    _show_messages()
    Server(configured(app, limits), app.state.service.worker, limits, ready).run([listener])


class _Shown(logging.Handler):
    """Prints what the libraries of the server report, harmless and in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{'server':<12}{self.format(record)}", sys.stderr)


def _show_messages() -> None:
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Shown(logging.ERROR)], False
        logger.setLevel(logging.ERROR)
