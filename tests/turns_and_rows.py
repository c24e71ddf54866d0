"""Turns of conversations, and the error of a refused row."""

import pytest

from minimind_sft.data.conversation import parse_row
from minimind_sft.errors import UserError

TOOL = {"name": "weather", "description": "of a city"}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def refusal(row: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_row(row, "a.jsonl:7")
    return str(error.value).removeprefix("a.jsonl:7: ")
