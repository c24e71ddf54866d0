"""Tests of the bodies that the server accepts: each field is honoured, or refused by name."""

import json

import pytest

pytest.importorskip("pydantic", reason="the extra [serve] is not installed")

from minimind_sft.serving.problems import ApiProblem
from minimind_sft.serving.requests import ChatRequest, parse_body

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "m", "messages": [USER]}
TEXT = {"model": "m", "prompt": "hi"}
TOOL = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "weather"}}


def parse(kind, **fields):
    base = CHAT if kind is ChatRequest else TEXT
    return parse_body(kind, json.dumps({**base, **fields}).encode())


def refusal(kind=ChatRequest, **fields):
    """Returns (param, code, message) of a refusal."""
    with pytest.raises(ApiProblem) as caught:
        parse(kind, **fields)
    problem = caught.value
    assert problem.status == 400 and problem.type == "invalid_request_error" and "\n" not in problem.message
    return problem.param, problem.code, problem.message


def test_a_field_that_nobody_knows_is_refused_by_name():
    assert refusal(min_p=0.1) == ("min_p", "unsupported_parameter", "min_p: this server knows no such field")
