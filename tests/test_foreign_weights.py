"""Weights from other projects, in the programs run as a user runs them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from programs import CHAT, REPOSITORY, SFT, refuse, succeed

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

pytestmark = pytest.mark.slow

SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2)


@pytest.fixture(scope="module")
def from_minimind(shared, tmp_path_factory) -> tuple[Path, Path]:
    """Returns weights as MiniMind saves them (half precision, a head, no sidecar) and its tokenizer's folder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("minimind") / "pretrain_32.pth"
    torch.save(MiniMindForCausalLM(SMALL).half().state_dict(), path)
    return path, shared / "reference/minimind"


def test_minimind_weights_need_tokenizer_path(from_minimind, sft_data, tmp_path):
    """Both tokenizers have 6,400 tokens: with the wrong one a model would learn garbage."""
    weights, tokenizer = from_minimind
    commands = ((SFT, "--from_weight", weights, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2,
                 "--overwrite"),
                (CHAT, "--weight", weights, "--prompt", "x", "--max_new_tokens", 2),
                (CHAT, "--weight", weights, "--score", sft_data, "--max_new_tokens", 2))
    for command in commands:
        line = refuse(*command)
        assert "pretrain_32.pth: nothing says which tokenizer these weights were trained with" in line
        assert "--tokenizer_path FOLDER" in line and "--tokenizer_path bundled" in line
        for choice in (tokenizer, "bundled", "model", REPOSITORY / "model"):
            assert "has no sidecar; its shapes say 32 x 2 layers" in succeed(*command, "--tokenizer_path", choice)

    assert "nothing says which tokenizer" in refuse(*commands[1], "--load_from", "model")
    succeed(*commands[1], "--load_from", tokenizer)

    succeed(*commands[0], "--tokenizer_path", tokenizer)
    line = refuse(CHAT, "--save_dir", tmp_path, "--prompt", "x", "--tokenizer_path", "bundled")
    assert re.search(r"full_sft_32\.json: the weights were trained with the tokenizer .*/minimind, not with the "
                     r"bundled one: token 1600 was '.+', here it is '.+'; give --tokenizer_path .*/minimind", line)
    said = succeed(CHAT, "--save_dir", tmp_path, "--prompt", "x", "--max_new_tokens", 2, cwd=tmp_path)
    assert re.search(r"tokenizer +that of .*minimind, as .*full_sft_32\.json says", said)


def test_padding_rows_of_an_embedding_never_appear_in_answers(sft_data, tmp_path):
    """The padding rows have by far the highest scores, but they are left out when answering and scoring."""
    torch.manual_seed(0)
    padded = MiniMindForCausalLM(replace(SMALL, vocab_size=6528, tie_word_embeddings=False))
    with torch.no_grad():
        padded.lm_head.weight[6400:] = 100 * padded.lm_head.weight[:128].sign()
    torch.save(padded.state_dict(), tmp_path / "full_sft_32.pth")
    notice = "the embedding has 6,528 rows, the tokenizer bundled 6,400 tokens; the extra rows count as padding"
    for sampling in (("--temperature", 0), ("--temperature", 1)):
        said = succeed(CHAT, "--save_dir", tmp_path, "--prompt", "Say 2.", "--tokenizer_path", "bundled", *sampling,
                       "--max_new_tokens", 8, "--show_speed", 0)
        assert notice in said
        assert said.split("> Say 2.\n")[1].strip(), "padding rows have no text"
    assert notice in succeed(CHAT, "--save_dir", tmp_path, "--score", sft_data, "--tokenizer_path", "bundled",
                             "--max_new_tokens", 2)
    shown = succeed(SFT, "--from_weight", tmp_path / "full_sft_32.pth", "--tokenizer_path", "bundled", "--data_path",
                    sft_data, "--save_dir", tmp_path / "out", "--max_steps", 2)
    assert notice in shown
    assert json.loads((tmp_path / "out/full_sft_32.json").read_text())["model"]["vocab_size"] == 6528
    assert notice in succeed(CHAT, "--save_dir", tmp_path / "out", "--prompt", "x", "--max_new_tokens", 2)


def test_non_finite_weights_are_refused(sft_data, tmp_path):
    tensors = MiniMindForCausalLM(SMALL).state_dict()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    torch.save(tensors, tmp_path / "full_sft_32.pth")
    for command in ((SFT, "--from_weight", tmp_path / "full_sft_32.pth", "--data_path", sft_data),
                    (CHAT, "--save_dir", tmp_path, "--prompt", "x")):
        assert "full_sft_32.pth: model.layers.1.mlp.up_proj.weight: 1 of its 4,096 values are NaN" in refuse(
            *command, "--tokenizer_path", "bundled")
