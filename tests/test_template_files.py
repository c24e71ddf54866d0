"""Chat templates in files and in tokenizer_config.json that are none, too many or too large."""

import json
import shutil

import pytest

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.template_sandbox import MAX_SOURCE_BYTES
from minimind_sft.data.tokenizer import MAX_NAMED_TEMPLATES, Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.paths import in_repository


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(in_repository("model"), tmp_path / "model")
    return tmp_path / "model"


def configure(folder, chat_template) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": chat_template}))


def refusal(folder, choice=None) -> str:
    with pytest.raises(UserError) as refused:
        make_template(Tokenizer.from_folder(folder), choice)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("chat_template, because", [
    (5, "expected a string, found 5"), (True, "expected a string, found true"), ([5], "expected a list of objects"),
    ([{"name": "default"}], "default: expected a string, found null"),
    ([{"template": "x"}], "expected a list of objects"), ([{"name": ["a"], "template": "x"}], "a list of objects"),
    ({"default": {"a": "b"}}, "default: expected a string, found an object"), ([], "has no chat template"),
    ({}, "has no chat template"), ("", "does not write the text of an answer"), ("\ud800", "surrogate"),
    ([{"name": "default", "template": "a"}, {"name": "default", "template": "b"}], "2 templates have this name"),
    ({"default": "{{ 'a' * 10**10 }}"}, "steps for a conversation"), ("{% if", "chat template: unexpected 'end of"),
    ("x" * 150_000, "expected at most 100,000 characters, found 150,000"), ("\0", "does not write the text"),
    ({"tool_use": "x"}, "no chat template of the name default"), ("\U000F0002", "private-use characters"),
])
def test_odd_templates_in_the_configuration_are_refused(folder, chat_template, because):
    configure(folder, chat_template)
    assert because in refusal(folder)


def test_large_files_are_refused(folder):
    (folder / "chat_template.jinja").write_text(" " * (MAX_SOURCE_BYTES + 1))
    too_large = f"chat_template.jinja: expected at most {MAX_SOURCE_BYTES:,} bytes, found {MAX_SOURCE_BYTES + 1:,}"
    assert too_large in refusal(folder)
    (folder / "chat_template.jinja").rename(folder.parent / "chat_template.jinja")
    assert too_large in refusal(folder, str(folder.parent / "chat_template.jinja"))


def test_too_many_named_templates_are_refused(folder):
    (folder / "additional_chat_templates").mkdir()
    for number in range(MAX_NAMED_TEMPLATES + 1):
        (folder / "additional_chat_templates" / f"{number}.jinja").write_text("x")
    assert "additional_chat_templates: expected at most 100 templates" in refusal(folder)
