"""Reads the bodies of requests, within limits of size and time."""

import asyncio
import re

from starlette.requests import Request

from minimind_sft.errors import describe
from minimind_sft.serving.problems import ApiProblem


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Returns the body of a request.

    Raises:
        ApiProblem: 415 if it is not JSON by its header, 413 if it is too large, 408 if it comes too slowly.
        ClientDisconnect: if the client leaves before the end.
    """
    _check_kind(request)
    too_large = ApiProblem(413, f"the body: expected at most {max_bytes:,} bytes", code="request_too_large")
    announced = request.headers.get("content-length", "")
    if re.fullmatch("[0-9]+", announced) and (len(announced) > 18 or int(announced) > max_bytes):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiProblem(408, f"the body: expected all of it within {seconds:g} s", code="request_timeout") from None
    return bytes(body)


def _check_kind(request: Request) -> None:
    """Checks that a body is announced as plain JSON, which pages of other sites cannot send without being allowed to.

    Raises:
        ApiProblem: 415 if it is not.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        found = describe(kind) if kind else "nothing"
        raise ApiProblem(415, f"the header Content-Type: expected application/json, found {found}",
                         code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiProblem(415, "the header Content-Encoding: expected a body that is not compressed",
                         code="unsupported_media_type")
