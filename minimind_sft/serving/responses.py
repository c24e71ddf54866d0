"""Refusals as responses, in OpenAI's form."""

import sys
import traceback
from collections.abc import Mapping

from starlette.responses import JSONResponse

from minimind_sft.serving.problems import ApiProblem
from minimind_sft.terminal import say

FINAL = {"answer_timeout": {"x-should-retry": "false"}}
"""Headers by the code of a problem: the openai client would ask again after any 408."""


def problem_response(problem: ApiProblem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the response for a refusal."""
    return JSONResponse(problem.body(), problem.status, {**FINAL.get(problem.code or "", {}), **(headers or {})})


def failure(error: BaseException) -> ApiProblem:
    """Prints an error that is the server's own, and returns what the client is told."""
    say("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
    return ApiProblem(500, "the server failed; its terminal shows why", type="server_error", code="server_failed")
