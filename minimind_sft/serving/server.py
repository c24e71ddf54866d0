"""Runs the application under uvicorn: limits of time and number for connections, and signals that end the server."""

import asyncio
import logging
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from minimind_sft.errors import UserError
from minimind_sft.serving.worker import Worker
from minimind_sft.settings.serve import LimitSettings, ListeningSettings
from minimind_sft.terminal import say

LOOK_TICKS = 5
"""Connections are looked at after so many ticks of uvicorn, which are 0.1 s each."""
KEEP_ALIVE_SECONDS = 10
MIN_READ = 16 * 1024
"""Bytes that a client must read in `stall_seconds`, if so many wait."""
MAX_HEAD = 32 * 1024
"""Bytes of a request's headers."""
BUSY = (b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Retry-After: 1\r\nConnection: close\r\n\r\n%s")
BUSY_BODY = (b'{"error":{"message":"too many connections","type":"server_error","param":null,'
             b'"code":"too_many_connections"}}')


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
            transport.write(BUSY % (len(BUSY_BODY), BUSY_BODY))
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._receiving_since is None:
            self._receiving_since = time.monotonic()
        super().data_received(data)
        self._note_received()

    def on_response_complete(self) -> None:
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
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_received(self) -> None:
        """Remembers that the request has arrived, unless a part is missing or the next one has begun."""
        if self.conn.their_state is not h11.SEND_BODY and not self.conn.trailing_data[0]:
            self._receiving_since = None


class Server(uvicorn.Server):
    """Ends when asked to: the first signal lets answers end, another one does not."""

    def __init__(self, config: uvicorn.Config, worker: Worker, limits: LimitSettings):
        super().__init__(config)
        self._worker, self._limits = worker, limits
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            self._worker.is_draining = True
        elif sig == signal.SIGINT:
            self._worker.break_off_all()
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if counter % LOOK_TICKS == 0:
            for connection in list(self.server_state.connections):
                connection.look(now)  # type: ignore[union-attr]
        if self._draining_since is not None:
            if now - self._draining_since > self._limits.drain_seconds:
                self._worker.break_off_all()
            self.should_exit = self.should_exit or not self._worker.open
        return await super().on_tick(counter)


def listen(listening: ListeningSettings) -> socket.socket:
    """Opens the port.

    Raises:
        UserError: if it cannot be used.
    """
    try:
        found = socket.getaddrinfo(listening.host, listening.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {listening.host}: expected an address of this machine") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there, it would let two servers have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise UserError(f"--port {listening.port}: cannot be used at {listening.host} ({error.strerror}); choose "
                        "another, or 0 for any free one") from error
    return listener


def serve(app: FastAPI, listener: socket.socket, limits: LimitSettings) -> None:
    """Serves until a signal ends it, and then lets answers end."""
    _show_messages()
    protocol: Any = partial(Connection, limits)
    config = uvicorn.Config(
        app, http=protocol, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(limits.stall_seconds)), h11_max_incomplete_event_size=MAX_HEAD)
    Server(config, app.state.service.worker, limits).run([listener])


class _Shown(logging.Handler):
    """Prints what the libraries of the server report, harmless and in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{'server':<12}{self.format(record)}", sys.stderr)


def _show_messages() -> None:
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Shown(logging.ERROR)], False
        logger.setLevel(logging.ERROR)


