"""Tests of the OpenAPI description."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
description = pytest.importorskip("minimind_sft.serving.description", reason="the extra [serve] is not installed")


def references(value):
    """Yields the names of all schemas that are referred to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix("#/components/schemas/")
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_every_schema_is_there_and_used():
    document = description.openapi("minimind-sft")
    used, there = set(references(document)), set(document["components"]["schemas"])
    assert used <= there and there - used <= {"ChatChunk", *used}, "a stream's chunks are only named"


def test_the_application_has_the_addresses_that_are_described():
    application = pytest.importorskip("minimind_sft.serving.application", reason="the extra [serve] is not installed")
    from minimind_sft.serving.models import ServedModels
    from minimind_sft.settings.serve import LimitSettings, ListeningSettings
    app = application.make_application(ServedModels([]), ListeningSettings(), LimitSettings())
    served = {(route.path.replace(":path", ""), method.lower()) for route in app.routes
              if getattr(route, "include_in_schema", False) for method in route.methods}
    described = {(path, method) for path, methods in app.openapi()["paths"].items() for method in methods
                 if method != "parameters"}
    assert served == described


def test_the_page_about_requests_names_every_field():
    from minimind_sft.serving import requests
    page = (REPOSITORY / "docs/serving_requests.md").read_text(encoding="utf-8")
    fields = {*requests.ChatRequest.model_fields, *requests.CompletionRequest.model_fields,
              *requests.UNSUPPORTED_IN_CHAT, *requests.UNSUPPORTED_IN_COMPLETIONS}
    rows = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert [name for name in sorted(fields) if f"`{name}`" not in rows] == []
