"""Weights, tokenizer and chat template that do not belong together are refused, with the flag to use."""

import json
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chats import MODEL
from chats import TOKENIZER as BUNDLED

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.matching import (
    check_template,
    check_tokenizer,
    template_facts,
    tokenizer_facts,
)
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.loaded import Weights

CONFIG = ModelConfig(hidden_size=32, num_hidden_layers=2)
NO_TENSORS: dict[str, torch.Tensor] = {}


def weights(sidecar: dict | None, vocab_size: int = 6400) -> Weights:
    return Weights(Path("w.pth"), replace(CONFIG, vocab_size=vocab_size), NO_TENSORS, sidecar)


def other_tokenizer(folder: Path, **config: str) -> Tokenizer:
    """Returns the bundled tokenizer with these entries of tokenizer_config.json replaced."""
    shutil.copy(MODEL / "tokenizer.json", folder)
    content = json.loads((MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, **config}), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def named(name: str | None, tokenizer: Tokenizer = BUNDLED) -> Tokenizer:
    """Returns the tokenizer as if it had been read from `name`."""
    renamed = copy(tokenizer)
    renamed.name = name or "bundled"
    return renamed


def refused(check, *arguments) -> str:
    with pytest.raises(UserError) as error:
        check(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("sidecar", "reason"), [
    (None, "it has no sidecar"), ({"model": {}, "stage": "full_sft"}, "its sidecar has no field tokenizer")])
def test_weights_without_a_recorded_tokenizer_need_the_flag(sidecar, reason):
    assert refused(check_tokenizer, weights(sidecar), BUNDLED, None) == (
        f"w.pth: nothing says which tokenizer these weights were trained with ({reason}): give --tokenizer_path FOLDER "
        "(for MiniMind's weights, its folder model/), or --tokenizer_path bundled for the one of this "
        "repository")
    assert check_tokenizer(weights(sidecar), named("mine"), "mine") == [
        "w.pth: assuming the tokenizer mine, as --tokenizer_path says"]
    assert check_tokenizer(weights(sidecar), BUNDLED, "bundled") == [
        "w.pth: assuming the tokenizer bundled, as --tokenizer_path says; MiniMind's own weights need "
        "MiniMind's tokenizer, a different one"]


def test_the_same_tokenizer_needs_no_flag():
    assert check_tokenizer(weights({"tokenizer": BUNDLED.fingerprint}), BUNDLED, None) == []


def test_more_rows_than_tokens_are_padding_with_a_notice():
    (notice,) = check_tokenizer(weights({"tokenizer": BUNDLED.fingerprint}, 6528), BUNDLED, None)
    assert notice == ("w.pth: the embedding has 6,528 rows, the tokenizer bundled 6,400 tokens; the extra rows "
                      "count as padding and never appear in an answer")


def test_fewer_rows_than_tokens_are_refused():
    assert refused(check_tokenizer, weights(None, 6399), named("x"), "x") == (
        "w.pth: the embedding has 6,399 rows, but the tokenizer x has 6,400 tokens: --tokenizer_path must name the one "
        "they were trained with")


def test_a_base_model_s_own_tokenizer_needs_no_flag():
    own = named("w.pth")
    assert check_tokenizer(weights(None), own, None) == []
    assert refused(check_tokenizer, weights(None, 6399), own, None).startswith(
        "w.pth: the embedding has 6,399 rows, but its own tokenizer has 6,400 tokens: --tokenizer_path must name")


def command(*flags: str) -> dict:
    return {"command": " ".join(["python trainer/train_full_sft.py", *flags])}


@pytest.mark.parametrize(("recorded", "choice", "message"), [
    ({"tokenizer_facts": {"name": "mine", "vocab_size": 325}}, None,
     "the tokenizer mine, not with the bundled one: vocab_size was 325, here it is 6,400; give --tokenizer_path mine"),
    ({"tokenizer_facts": {"name": "bundled", "eos_token": "<|endoftext|>"}}, "mine",
     "the bundled tokenizer, not with mine: eos_token was '<|endoftext|>', here it is '<|im_end|>'; leave out "
     "--tokenizer_path"),
    ({"tokenizer_facts": {"name": "mine"}}, "mine",
     "the tokenizer mine, not with this version of it: they differ in what the sidecar does not spell out; "
     "--tokenizer_path must name the folder that they were trained with, as it was then"),
    ({"training": command("--tokenizer_path", "'my folder'")}, None,
     "the tokenizer my folder, not with the bundled one: they differ in what the sidecar does not spell out; give "
     "--tokenizer_path 'my folder'"),
    ({"training": command("--tokenizer_path=mine")}, None,
     "the tokenizer mine, not with the bundled one: they differ in what the sidecar does not spell out; give "
     "--tokenizer_path mine"),
    ({"training": command()}, "mine",
     "the bundled tokenizer, not with mine: they differ in what the sidecar does not spell out; leave out "
     "--tokenizer_path"),
    ({}, None,
     "another tokenizer, not with the bundled one: they differ in what the sidecar does not spell out; "
     "--tokenizer_path must name the folder that they were trained with, as it was then"),
    ({"training": {"command": "an 'unclosed quote"}, "tokenizer_facts": {"name": 3, "tokens": [], "added_tokens": 1}},
     None, "another tokenizer, not with the bundled one: added_tokens was 1, here it is "),
])
def test_another_tokenizer_is_described(recorded, choice, message):
    """Sidecars of earlier versions have no facts, only the command that made the weights."""
    line = refused(check_tokenizer, weights({"tokenizer": "0" * 64, **recorded}), named(choice), choice)
    assert line.startswith(f"w.json: the weights were trained with {message}")


def test_tokenizer_facts_explain_the_difference(tmp_path):
    other = other_tokenizer(tmp_path, eos_token="<|endoftext|>", bos_token=None)
    sidecar = {"tokenizer": other.fingerprint, "tokenizer_facts": tokenizer_facts(named("mine", other))}
    sidecar = json.loads(json.dumps(sidecar))
    assert check_tokenizer(weights(sidecar), other, "elsewhere/mine") == []
    mine = sidecar["tokenizer_facts"]["name"]
    assert ("bos_token was None, here it is '<|im_start|>', eos_token was '<|endoftext|>', here it is '<|im_end|>'; "
            f"give --tokenizer_path {mine}") in refused(check_tokenizer, weights(sidecar), BUNDLED, None)


def test_facts_of_the_bundled_tokenizer_and_template():
    facts = tokenizer_facts(BUNDLED)
    assert facts["name"] == "bundled" and facts["vocab_size"] == 6400 and facts["eos_token"] == "<|im_end|>"
    assert facts["added_tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert list(facts["tokens"]) == ["1600", "3200", "6399"]
    facts = template_facts(ChatTemplate(BUNDLED), None)
    assert facts == {"name": "the tokenizer's own", "end_of_turn": "<|im_end|>",
                     "example": "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
                                "ANSWER<|im_end|>\n"}


@pytest.fixture(scope="module")
def alpaca() -> ChatTemplate:
    return make_template(BUNDLED, "alpaca", "<|im_end|>")


def test_another_template_is_described(alpaca):
    own = ChatTemplate(BUNDLED)
    sidecar = json.loads(json.dumps({"chat_template": alpaca.fingerprint, "training": command(
        "--chat_template alpaca --end_of_turn '<|im_end|>'"),
        "chat_template_facts": template_facts(alpaca, "alpaca")}))
    check_template(weights(sidecar), alpaca, "alpaca", "<|im_end|>")
    line = refused(check_template, weights(sidecar), own, None, None)
    assert line.startswith("w.json: the weights were trained with --chat_template alpaca, not with the tokenizer's "
                           "own: a question and its answer were ...'")
    assert "### Instruction" in line and "<|im_start|>user" in line
    assert line.endswith("; give --chat_template alpaca and --end_of_turn '<|im_end|>'")

    own_sidecar = {"chat_template": own.fingerprint, "training": command()}  # as earlier versions wrote it
    assert refused(check_template, weights(own_sidecar), alpaca, "alpaca", "<|im_end|>") == (
        "w.json: the weights were trained with the tokenizer's own chat template, not with alpaca: they differ in what "
        "the sidecar does not spell out; leave out --chat_template and --end_of_turn")


def test_a_changed_version_of_the_same_template_is_explained(alpaca):
    facts = {"name": "alpaca", "end_of_turn": "</s>"}
    sidecar = {"chat_template": "0" * 64, "chat_template_facts": facts}
    assert refused(check_template, weights(sidecar), alpaca, "alpaca", None) == (
        "w.json: the weights were trained with --chat_template alpaca, not with this version of it: end_of_turn was "
        "'</s>', here it is '<|im_end|>'; --chat_template must name the template that they were trained with, as it "
        "was then")
    facts["example"] = 3  # a sidecar that someone edited
    assert "example was 3, here it is" in refused(check_template, weights(sidecar), alpaca, "alpaca", None)


def test_a_pretrained_model_takes_any_template(alpaca):
    check_template(weights(None), alpaca, None, None)
    check_template(weights({"chat_template": None}), alpaca, None, None)
