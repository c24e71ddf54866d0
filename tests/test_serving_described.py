"""Requests made by schemathesis from the OpenAPI description (the long form is proofs/serve_description.py)."""

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from load.described import attempt, operations
from served import served

from minimind_sft.serving.application import make_application
from minimind_sft.serving.models import ServedModels
from minimind_sft.settings.serve import LimitSettings, ListeningSettings


def test_answers_are_as_the_description_says():
    app = make_application(ServedModels([served("mini")]), ListeningSettings(), LimitSettings())
    found = {(operation.path, mode.value): attempt(operation, mode, "mini", 8) for operation, mode in operations(app)}
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert set(found[path, "positive"]) <= {200, 400} and set(found[path, "negative"]) <= {400, 404}
    assert found["/v1/completions", "positive"][200] and found["/v1/models", "positive"] == {200: 1}
