"""From the folder of a base model to a chat: its own tokenizer and chat template, on the way in and later."""

import json
import shutil
from pathlib import Path

import pytest
from chats import MODEL
from programs import CHAT, PRETRAIN, SFT, refuse, succeed, write_rows

pytestmark = pytest.mark.slow

@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """Two tiny base models as transformers saves them: qwen, with a chat template, and gpt2 in its oldest layout."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bases")
    shape = {"vocab_size": 6464, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "intermediate_size": 48, "max_position_embeddings": 512}
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape)).save_pretrained(folder / "qwen")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / "qwen")
    gpt2 = transformers.GPT2Config(vocab_size=6400, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    model = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "gpt2/vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "gpt2/merges.txt").write_text("\n".join(merges), encoding="utf-8")
    return folder


def test_a_chat_model_and_its_tokenizer(bases, sft_data, tmp_path):
    given = ("--from_weight", "./qwen", "--data_path", sft_data, "--save_dir", tmp_path, "--save_weight", "mine",
             "--max_seq_len", 256, "--batch_size", 4, "--eval_share", 0, "--save_interval", 1, "--num_workers", 0)
    said = succeed(SFT, *given, "--max_steps", 1, cwd=bases)
    assert "tokenizer   that of qwen, 6,400 tokens\n" in said
    assert "the embedding has 6,464 rows, the tokenizer qwen 6,400 tokens" in said
    chat = next(line for line in said.splitlines() if line.startswith("chat "))
    assert "--tokenizer_path" not in chat

    sidecar = json.loads((tmp_path / "mine_32.json").read_text(encoding="utf-8"))
    assert sidecar["tokenizer_facts"]["name"] == str(bases / "qwen") and sidecar["family"] == "qwen2"
    assert "step      2/2" in succeed(SFT, *given, "--max_steps", 2, "--from_resume", 1, cwd=bases)

    asked = (CHAT, "--save_dir", tmp_path, "--weight", "mine", "--prompt", "x", "--max_new_tokens", 2)
    said = succeed(*asked, cwd=tmp_path)
    assert f"tokenizer   that of {bases / 'qwen'}, as {tmp_path / 'mine_32.json'} says\n" in said
    (bases / "qwen").rename(tmp_path / "elsewhere")
    assert refuse(*asked) == (f"error: {tmp_path / 'mine_32.json'}: the weights were trained with the tokenizer "
                              f"{bases / 'qwen'}, which is no longer there: give --tokenizer_path FOLDER, with the "
                              "folder or GGUF file where it is now")


def test_a_model_without_a_chat_template_learns_and_continues_texts(bases, tmp_path):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"This is text number {i}."} for i in range(20)])
    succeed(PRETRAIN, "--from_weight", bases / "gpt2", "--data_path", texts, "--save_dir", tmp_path, "--max_steps", 1,
            "--eval_share", 0, "--num_workers", 0, "--max_seq_len", 128)
    assert "chat template" not in succeed(CHAT, "--save_dir", tmp_path, "--weight", "pretrain", "--prompt", "This is",
                                          "--max_new_tokens", 2)
