"""Responses of the server besides streams: JSON, and problems in OpenAI's form."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from minimind_sft.serving.problems import ApiProblem

CLOSING = (408, 413)
"""Statuses after which the connection ends, because the rest of the request would still have to come."""


def problem_response(problem: ApiProblem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the response for a refusal."""
    return JSONResponse(problem.body(), problem.status, dict(headers or {}))
