"""eval_llm.py: prompts from the command line, a dialogue in a terminal, and scoring."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from chats import MODEL, TOOLS, tiny_model
from programs import CHAT, refuse, run_here, succeed, write_rows
from terminals import Terminal
from tiny_adapters import FACTS, write_base, write_lora

from minimind_sft.model.adapters.merging import merge
from minimind_sft.model.adapters.reading import read_adapters
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.weights import read_weights, weights_path, write_weights

pytestmark = pytest.mark.slow

USER = {"role": "user", "content": "Who are you?"}
ANSWER = {"role": "assistant", "content": "I am Mini."}
ASKED = ["--max_new_tokens", "2", "--num_hidden_layers", "1", "--tokenizer_path", MODEL, "--show_speed", "0"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Returns a folder with untrained weights in MiniMind's format."""
    folder = tmp_path_factory.mktemp("weights")
    model = tiny_model()
    for name in ("full_sft", "pretrain"):
        torch.save(model.state_dict(), folder / f"{name}_16.pth")
    return folder


def test_a_refused_prompt_is_one_error_line_and_the_others_are_answered(weights):
    done = run_here(CHAT, *ASKED, "--save_dir", weights, "--prompt", "one", "x " * 40_000, "three")
    assert done.returncode == 2
    assert [line[:7] for line in done.stdout.splitlines() if line.startswith("> ")] == ["> one", "> x x x", "> three"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --prompt: the prompt has ") and "leaves no room" in line


def test_tools_need_a_template_that_renders_them(weights, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    given = [*ASKED, "--save_dir", weights, "--tools", tmp_path / "tools.json", "--prompt", "x"]
    assert "> x\n" in succeed(CHAT, *given)
    assert "--tools: " in refuse(CHAT, *given, "--chat_template", "alpaca")
    (tmp_path / "tools.json").write_text("[1]", encoding="utf-8")
    assert "tools.json: tools[0]: expected an object that describes a function, found 1" in refuse(CHAT, *given)


def test_flags_that_pretrained_weights_do_not_use_are_named(weights):
    shown = succeed(CHAT, *ASKED, "--weight", weights / "pretrain_16.pth", "--system", "x", "--historys", 2,
                    "--prompt", "The")
    assert "--system, --historys: not used; weights that have only been pretrained continue" in shown


@pytest.mark.parametrize("columns", [80, 40])
def test_a_dialogue_in_a_terminal(weights, columns, tmp_path):
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    program = [sys.executable, str(MODEL.parent / CHAT), *map(str, ASKED), "--save_dir", str(weights),
               "--historys", "-1"]
    prompt = "\x1b[?2004h" if find_spec("prompt_toolkit") else "> "
    terminal = Terminal(program, columns=columns, XDG_STATE_HOME=str(tmp_path))
    try:
        terminal.wait_for("/help lists commands, Ctrl-D ends.\r\n")
        for message in ("hello", "", "你好"):
            terminal.wait_for(prompt)
            terminal.type(f"{message}\r")
        terminal.wait_for(prompt)
        terminal.type("/exit\r")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown
    finally:
        terminal.close()


def test_score_finds_files_like_data_path_and_writes_results(weights, tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [{"messages": [USER, ANSWER, USER], "kind": name}])
    out = tmp_path / "results.jsonl"
    shown = succeed(CHAT, *ASKED, "--save_dir", weights, "--score", tmp_path / "?.jsonl",
                    "--score_out", out)
    assert shown.splitlines()[-1] == "exact match: 0.0% (2 questions)"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["kind"], row["expected"], row["exact"]) for row in rows] == [("a", "I am Mini.", False),
                                                                             ("b", "I am Mini.", False)]
    succeed(CHAT, *ASKED, "--save_dir", weights, "--score", tmp_path / "?.jsonl",
            "--score_out", out)  # its own results are replaced


BAD_SCORES = {
    "no file": (["--score", "nowhere.jsonl"], r"--score nowhere.jsonl: no such file"),
    "no assistant": (["--score", "{folder}/asks.jsonl"], r"asks.jsonl:1: messages: expected at least one assistant"),
    "other content": (["--score", "{folder}/good.jsonl", "--score_out", "{folder}/asks.jsonl"],
                      r"asks.jsonl: the file exists and holds something other than results of --score"),
    "same file": (["--score", "{folder}/good.jsonl", "--score_out", "{folder}/good.jsonl"],
                  r"good.jsonl: this is the file with the questions"),
    "no score": (["--score_out", "x.jsonl"], r"--score_out needs --score, whose results it holds"),
    "with a prompt": (["--score", "{folder}/good.jsonl", "--prompt", "x"], r"--prompt does not go with --score"),
}


@pytest.mark.parametrize("fault", BAD_SCORES)
def test_unusable_files_to_score_are_refused_in_one_line(tmp_path, fault):
    write_rows(tmp_path / "good.jsonl", [{"messages": [USER, ANSWER]}])
    write_rows(tmp_path / "asks.jsonl", [{"messages": [USER]}])
    arguments, message = BAD_SCORES[fault]
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    line = refuse(CHAT, "--weight", "nobody", *[argument.format(folder=tmp_path) for argument in arguments])
    assert message in line
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == kept


def test_several_weighted_adapters_answer_as_their_sum_does(tmp_path):
    config = ModelConfig(vocab_size=6400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=48)
    base = write_base(tmp_path, config)
    for name, seed in (("style", 1), ("calls", 2)):
        write_lora(tmp_path, base, name, seed)
    chat = [CHAT, "--save_dir", tmp_path, "--prompt", "x", "--temperature", 0, "--max_new_tokens", 24,
            "--show_speed", 0]
    shown = succeed(*chat, "--lora_weight", "style:0.5", "calls")
    assert [" ".join(line.split()) for line in shown.splitlines() if line.startswith("adapter ")] == [
        f"adapter {tmp_path / 'lora_style_32.safetensors'}: 14 projections, weight 0.5",
        f"adapter {tmp_path / 'lora_calls_32.safetensors'}: 14 projections, weight 1"]
    weights = read_weights(base)
    merged = merge(weights, read_adapters(["style:0.5", "calls"], str(tmp_path), weights, "--lora_weight"), [[1, 2, 3]])
    write_weights(weights_path(tmp_path, "merged", config), merged.model, "float32", {"stage": "merged", **FACTS})
    answers = [one[one.index("> x"):] for one in (shown, succeed(*chat, "--weight", "merged"), succeed(*chat))]
    assert answers[0] == answers[1] != answers[2]
