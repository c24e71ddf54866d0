"""The inspector finds what chat templates do not render and what tokenizers do not know."""

import json
from pathlib import Path

import pytest
from chats import TOKENIZER
from programs import refuse, run_here, write_rows

from minimind_sft.data.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SCRIPT = "scripts/inspect_data.py"
SIMPLE = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}")
CALL = {"messages": [{"role": "user", "content": "time?"},
                     {"role": "assistant", "content": "", "tool_calls": [{"name": "now", "arguments": {}}]}]}
FINE = {"messages": [{"role": "user", "content": "time?"}, {"role": "assistant", "content": "noon"}]}


@pytest.fixture
def simple(tmp_path) -> Path:
    (tmp_path / "simple.jinja").write_text(SIMPLE)
    return tmp_path / "simple.jinja"


def test_rows_that_the_template_cannot_render_are_bad_naming_the_field(tmp_path, simple):
    data = write_rows(tmp_path / "data.jsonl", [FINE, CALL])
    done = run_here(SCRIPT, data, "--chat_template", simple)
    assert done.returncode == 1
    assert f"{data}:2: messages[1].tool_calls: the chat template does not render tool calls" in done.stdout
    assert "template    it has no generation prompt; answers are asked for with '<|im_start|>assis" in done.stdout
    report = json.loads(run_here(SCRIPT, data, "--chat_template", simple, "--json").stdout)
    assert report["template"][0].startswith("it has no generation prompt")
    assert report["files"][0]["bad_rows"] == 1


def word_level(folder: Path) -> Path:
    """Writes a tokenizer that knows only four words."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "time", "noon", "user", "assistant"]
    state = {"version": "1.0", "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
             "decoder": None, "truncation": None, "padding": None,
             "added_tokens": [{"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                               "normalized": False, "special": True} for i, word in enumerate(words[:4])],
             "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"}}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": SIMPLE}))
    return folder


def test_unknown_tokens_are_found(tmp_path):
    folder = word_level(tmp_path / "words")
    assert Tokenizer.from_folder(folder).unknown_id == 3
    assert TOKENIZER.unknown_id is None  # bytes spell everything
    known = {"messages": [{"role": "user", "content": "time"}, {"role": "assistant", "content": "noon"}]}
    data = write_rows(tmp_path / "data.jsonl", [known, FINE, {"text": "noon and midnight"}])
    report = json.loads(run_here(SCRIPT, data, "--tokenizer_path", folder, "--json").stdout)
    found = report["files"][0]["findings"]["unknown"]
    assert (found["weight"], found["count"]) == ("warning", 2)
    assert [(row["line"], row["detail"]) for row in found["rows"]] == [(2, "1 token"), (3, "2 tokens")]


def test_a_template_that_writes_the_unknown_token_is_refused(tmp_path):
    """Any text that the vocabulary lacks would become that control token."""
    folder = word_level(tmp_path / "words")
    config = {"eos_token": "<|im_end|>", "chat_template": SIMPLE.replace("{% for", "<unk>{% for")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    data = write_rows(tmp_path / "data.jsonl", [FINE])
    error = refuse(SCRIPT, data, "--tokenizer_path", folder)
    assert error == (f"error: the tokenizer {folder}: text that its vocabulary cannot spell becomes '<unk>', which the "
                     "chat template writes as a control token")


def test_a_base_model_brings_its_tokenizer_and_template(tmp_path):
    folder = word_level(tmp_path / "words")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    data = write_rows(tmp_path / "data.jsonl", [FINE])
    done = run_here(SCRIPT, data, "--from_weight", folder)
    assert "‹<|im_start|>›" in done.stdout and "<unk>" in done.stdout
    assert f"--from_weight {folder}" in done.stdout.splitlines()[-1]
