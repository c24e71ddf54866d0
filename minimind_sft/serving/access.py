"""Decides whom the server answers: by the name it was reached under, the page that asks, and the key."""

import hashlib
import hmac
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimind_sft.errors import MAX_SHOWN
from minimind_sft.host_names import host_name
from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.responses import problem_response
from minimind_sft.settings.serve import ORIGIN

ANY = "*"
PROTECTED = ("/v1/", "/metrics")
"""Beginnings of the addresses that need the key."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Doorkeeper:
    """Refuses requests that came under a foreign name or from a foreign page.

    A web page can give its own name this machine's address (DNS rebinding), and it can send requests to other
    addresses without being able to read the answers. Both would let any page that somebody visits use the models.

    Args:
        names: names of this server; None: any.
        origins: other pages that may use it.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None, origins: Sequence[str]):
        self.app, self.names, self.origins = app, names, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem = self._problem(Headers(scope=scope))
        app = problem_response(problem) if problem else self.app
        await app(scope, receive, send_with_headers)

    def _problem(self, headers: Headers) -> ApiProblem | None:
        hosts, origin = headers.getlist("host"), headers.get("origin")
        host = hosts[0] if len(hosts) == 1 else ""
        if self.names is not None and host_name(host) not in self.names:
            return ApiProblem(421, "this server answers to localhost only; --allow_origin https://NAME makes it "
                                   "answer to a proxy's name as well, and --host to every name",
                              code="misdirected_request")
        if origin is None or ANY in self.origins or origin in self.origins or _place_of(origin) == host.lower():
            return None
        admitted = origin if ORIGIN.fullmatch(origin) else f"'{ANY}'"
        return ApiProblem(403, f"web pages from elsewhere may not use this server; --allow_origin "
                               f"{admitted[:MAX_SHOWN]} admits this one", code="origin_not_allowed")


class KeyCheck:
    """Refuses requests without the key. The time that takes says nothing about the key."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self._digest = app, _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED) and not self._has_key(Headers(scope=scope)):
            problem = ApiProblem(401, "expected the server's key in the header Authorization: Bearer KEY",
                                 type="authentication_error", code="invalid_api_key")
            await problem_response(problem, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(_digest(given.strip()), self._digest) and scheme.lower() == "bearer"


def names_of(origins: Iterable[str]) -> set[str]:
    """Returns the names of web sites, under which a proxy may pass requests on. Programs have none."""
    return {host_name(_place_of(origin) or "") for origin in origins if origin.startswith("http")} - {""}


def _digest(key: str) -> bytes:
    """Returns a digest, whose length does not depend on that of the key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _place_of(origin: str) -> str | None:
    """Returns the host and port of an origin; None if it has none, as that of a local file."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
