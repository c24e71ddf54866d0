"""Serves a page that shows runs while they train: to this machine only, and read-only.

The server listens on the loopback address. It answers nobody who reached it under another name, as a web page can
after DNS rebinding, and it knows two addresses: the page, and the part of the page that changes.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from minimind_sft.errors import UserError
from minimind_sft.host_names import LOOPBACK_NAMES, host_name

LOOPBACK = "127.0.0.1"

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

MAX_WORK = 0.05
"""The share of its time that the server spends on making a page again, however often it is asked: runs need it."""

MAX_PARAMETERS = 4

Render = Callable[[str, Mapping[str, str]], str]
"""Renders the address "/" or "/content" with the parameters of its query."""


class Pages:
    """Renders pages and keeps them for a while, longer if rendering takes long."""

    def __init__(self, render: Render):
        self._render, self._lock = render, threading.Lock()
        self._kept: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[bytes, float]] = {}

    def page(self, path: str, query: Mapping[str, str]) -> bytes:
        """Returns a page as UTF-8."""
        key = (path, tuple(sorted(query.items())))
        with self._lock:
            page, kept_until = self._kept.get(key, (b"", 0.0))
            began = time.monotonic()
            if began < kept_until:
                return page
            page = self._render(path, query).encode("utf-8", errors="backslashreplace")
            now = time.monotonic()
            self._kept = {one: kept for one, kept in self._kept.items() if kept[1] > now}
            self._kept[key] = page, now + (now - began) / MAX_WORK
            return page


class LiveServer(ThreadingHTTPServer):
    """Serves rendered pages on the loopback address.

    Args:
        port: 0 for any free one; `server_port` says which one it is.
        policy: the page's Content-Security-Policy.

    Raises:
        UserError: if the port cannot be used.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows, this would let two servers have the same port

    def __init__(self, port: int, render: Render, policy: str):
        self.pages, self.policy = Pages(render), policy
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: cannot be used ({error.strerror}); choose another, or 0 for any free "
                            "one") from error

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing about a browser that left before it had its answer; a mistake of ours is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "minimind-sft", ""
    timeout = 10.0

    def do_GET(self) -> None:
        if not self._is_addressed_here():
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"This server answers to localhost only.\n")
            return
        path, query = _parsed(self.path)
        if path not in ("/", "/content"):
            self._answer(HTTPStatus.NOT_FOUND, b"There is nothing at this address.\n")
            return
        page = self.server.pages.page(path, query)
        version = f'"{hashlib.sha256(page).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == version:
            self._answer(HTTPStatus.NOT_MODIFIED, b"", {"ETag": version})
        else:
            self._answer(HTTPStatus.OK, page, {"ETag": version, "Content-Type": "text/html; charset=utf-8",
                                               "Content-Security-Policy": self.server.policy})

    do_HEAD = do_GET

    def _refuse_method(self) -> None:
        self.close_connection = True
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"This server is read-only.\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse_method

    def _is_addressed_here(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and host_name(hosts[0]) in LOOPBACK_NAMES

    def _answer(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        plain = {"Content-Type": "text/plain; charset=utf-8", "Content-Security-Policy": NOTHING_ALLOWED}
        self.send_response(status)
        for name, value in {**HEADERS, **plain, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status is not HTTPStatus.NOT_MODIFIED:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing: one line for each request would bury the terminal."""


def _parsed(address: str) -> tuple[str, dict[str, str]]:
    """Returns path and query of an address on this server; "" as the path of any other."""
    with suppress(ValueError):  # an address that is none, or one with a long query
        parts = urlsplit(address)
        if not (parts.scheme or parts.netloc):
            return parts.path, dict(parse_qsl(parts.query, max_num_fields=MAX_PARAMETERS))
    return "", {}
