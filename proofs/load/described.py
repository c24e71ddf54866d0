"""Requests that are made from the server's own OpenAPI description, and whether the answers are as it says."""

from collections import Counter
from typing import Any

import hypothesis
import schemathesis
from fastapi import FastAPI
from schemathesis import APIOperation, GenerationMode, checks

from load.comparing import ERROR_FIELDS

CHECKS = [checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
          checks.response_headers_conformance, checks.response_schema_conformance, checks.negative_data_rejection,
          checks.unsupported_method]
"""Not among them: that what fits the description is accepted. It cannot say which fields go together."""
HERE = "http://localhost"
MAX_TOKENS = 3
REFUSAL = 400
"""Statuses from here on are refusals."""


def operations(app: FastAPI) -> list[tuple[APIOperation, GenerationMode]]:
    """Returns what the application describes, for requests that fit and, where there is a body, that do not."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    return [(operation, mode) for operation in (found.ok() for found in schema.get_all_operations())
            for mode in GenerationMode if mode is GenerationMode.POSITIVE or operation.method == "post"]


def attempt(operation: APIOperation, mode: GenerationMode, model: str, count: int) -> Counter[int]:
    """Makes up to `count` requests; returns how often each status came.

    Args:
        mode: whether the requests fit the description.
        model: its name takes the place of another one in requests that fit.

    Raises:
        Exception: if an answer is not as the description says; shows the request.
    """
    statuses: Counter[int] = Counter()

    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=count, deadline=None, database=None, derandomize=True,
                         phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck))
    def make_one(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body = {**case.body, "model": model, "max_tokens": MAX_TOKENS}
        answer = case.call(base_url=HERE, headers={"Host": "localhost"})
        case.validate_response(answer, checks=CHECKS)
        statuses[answer.status_code] += 1
        if answer.status_code >= REFUSAL:
            check_refusal(answer.json())

    make_one()
    return statuses


def check_refusal(body: Any) -> None:
    """Checks the body of a refusal.

    Raises:
        AssertionError: if it is not OpenAI's error with one clear line.
    """
    assert set(body) == {"error"} and set(body["error"]) == ERROR_FIELDS, body
    message = body["error"]["message"]
    assert message and "\n" not in message and len(message) < 1000, message
