"""Hugging Face folders that are incomplete, damaged or something else, and how their files are found."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimind_sft.data.tokenizer_choice import brings_tokenizer
from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.gpt2 import GPT2
from minimind_sft.model.families.llama import LLAMA
from minimind_sft.model.finding import AN_ADAPTER
from minimind_sft.model.folder import read_folder
from minimind_sft.model.weights import read_weights

CONFIG = ModelConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                     intermediate_size=24, max_position_embeddings=32, qk_norm=False)
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 269060552\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes a Llama in two shards, as transformers does."""
    torch.manual_seed(0)
    tensors = MiniMindForCausalLM(CONFIG).state_dict()
    del tensors["lm_head.weight"]
    write_config(tmp_path)
    names = list(tensors)
    for shard, part in zip(SHARDS, (names[:7], names[7:]), strict=True):
        save_file({name: tensors[name] for name in part}, tmp_path / shard)
    weight_map = {name: SHARDS[index >= 7] for index, name in enumerate(names)}
    write_index(tmp_path, weight_map)
    return tmp_path


def write_config(folder: Path, **changed: object) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA.write_config(CONFIG) | changed))


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in SHARDS for name, tensor in load_file(folder / shard).items()}


def in_one_file(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    for file in (*SHARDS, INDEX):
        (folder / file).unlink()
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder


def refusal(folder: Path) -> str:
    """Returns the one line that reading the folder ends with, with `FOLDER` for its path."""
    with pytest.raises(UserError) as error:
        read_folder(folder).build_model()
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(folder), "FOLDER")


def test_shards_one_file_and_pytorch_s_format_are_the_same_weights(folder: Path):
    expected = everything(folder)
    for name in (None, "model.safetensors", "pytorch_model.bin"):
        if name is not None:
            for old in folder.glob("*model*"):
                old.unlink()
            (save_file if name.endswith("safetensors") else torch.save)(expected, folder / name)
        weights = read_weights(folder)
        assert (weights.family, weights.config, weights.sidecar) == ("llama", CONFIG, None)
        torch.testing.assert_close(dict(weights.tensors), expected, rtol=0, atol=0)
        weights.build_model()


def test_opening_reads_no_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise AssertionError("read a tensor")

    monkeypatch.setattr("minimind_sft.model.weights_file.SafetensorsFile.read", fail)
    assert len(read_folder(folder).tensors) == 20


def test_tables_of_rope_in_old_llama_files_are_left_out(folder: Path):
    in_one_file(folder, everything(folder) | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert len(read_folder(folder).tensors) == 20


def test_dtypes_stay_as_stored(folder: Path):
    in_one_file(folder, {name: tensor.bfloat16() for name, tensor in everything(folder).items()})
    weights = read_folder(folder)
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in weights.build_model().parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_s_masks_are_left_out_and_joined_parts_read_once(prefix: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch):
    """The files of GPT-2 itself have no prefix, those of its fine-tuned versions do."""
    values = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8,
              "layer_norm_epsilon": 1e-5}
    config = GPT2.read_config(values)
    ours = MiniMindForCausalLM(config).state_dict()
    theirs = {entry.theirs: entry.to_theirs([ours[name] for name in entry.ours]) for entry in GPT2.entries(config)}
    theirs |= {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
               "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    save_file({prefix + name.removeprefix("transformer."): tensor for name, tensor in theirs.items()},
              tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    weights, read = read_folder(tmp_path), []
    original = type(weights.tensors._source).read
    monkeypatch.setattr(type(weights.tensors._source), "read",
                        lambda source, name: read.append(name) or original(source, name))
    model = weights.build_model()
    assert len(read) == len(set(read)) == len(theirs) - 2
    torch.testing.assert_close(dict(model.state_dict()), dict(ours), rtol=0, atol=0)


# Heads


def test_a_tied_head_in_the_file_must_be_the_embedding(folder: Path):
    tensors = everything(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    in_one_file(folder, tensors)
    assert "lm_head.weight" not in dict(read_folder(folder).tensors)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "model.safetensors")
    assert refusal(folder) == (
        "FOLDER: lm_head.weight: differs from the embedding, but tie_word_embeddings is on: set that to false in "
        "config.json if the model has a head of its own")


def test_a_head_of_its_own_must_be_in_the_file(folder: Path):
    write_config(folder, tie_word_embeddings=False)
    assert refusal(folder) == ("FOLDER: lm_head.weight: missing: the weights are incomplete or belong to another "
                               "configuration")


# Damaged and incomplete folders


def add_tensor(folder: Path) -> None:
    in_one_file(folder, everything(folder) | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})


def drop_tensors(folder: Path) -> None:
    in_one_file(folder, {name: tensor for name, tensor in everything(folder).items() if "layers.1" not in name})


def index_another(folder: Path) -> None:
    names = weight_map(folder)
    write_index(folder, {**names, "model.norm.weight": SHARDS[0]})


def index_too_few(folder: Path) -> None:
    write_index(folder, {name: shard for name, shard in weight_map(folder).items() if "norm" not in name})


def with_both(folder: Path) -> None:
    save_file(everything(folder), folder / "model.safetensors")


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / SHARDS[1]).unlink(),
     f"FOLDER/{INDEX}: missing: 1 of 2 shards, the first is {SHARDS[1]}: download the model again"),
    (index_another, f"FOLDER/{SHARDS[0]}: model.norm.weight is in the index, but not in this file: download the model "
     "again"),
    (index_too_few, f"FOLDER/{SHARDS[0]}: model.layers.0.input_layernorm.weight (and 1 more) is in this file, but not "
     "in the index, or there in another file: download the model again"),
    (lambda folder: write_index(folder, {"a": "../../secret.safetensors"}), f"FOLDER/{INDEX}: weight_map: a: expected "
     'the name of a file in the same folder, found "../../secret.safetensors"'),
    (lambda folder: write_index(folder, {"a": "/etc/passwd"}),
     f'FOLDER/{INDEX}: weight_map: a: expected the name of a file in the same folder, found "/etc/passwd"'),
    (lambda folder: write_index(folder, {"a": ".."}),
     f'FOLDER/{INDEX}: weight_map: a: expected the name of a file in the same folder, found ".."'),
    (lambda folder: write_index(folder, {"a": "..\\secret"}),
     f'FOLDER/{INDEX}: weight_map: a: expected the name of a file in the same folder, found "..\\\\secret"'),
    (lambda folder: write_index(folder, {"a": 1}),
     f"FOLDER/{INDEX}: weight_map: a: expected the name of a file in the same folder, found 1"),
    (lambda folder: write_index(folder, ["a"]),
     f"FOLDER/{INDEX}: weight_map: expected an object with the shard of each tensor, found a list"),
    (lambda folder: (folder / INDEX).write_text("{"),
     f"FOLDER/{INDEX}: expected a JSON object, found broken JSON at column 2: Expecting property name enclosed in "
     "double quotes"),
    (lambda folder: (folder / INDEX).write_text(POINTER),
     f"FOLDER/{INDEX}: a Git LFS pointer, not the file itself: run git lfs pull in its repository"),
    (lambda folder: (folder / SHARDS[1]).write_text(POINTER),
     f"FOLDER/{SHARDS[1]}: a Git LFS pointer, not the file itself: run git lfs pull in its repository"),
    (lambda folder: (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-10]),
     f"FOLDER/{SHARDS[1]}: not a weights file that can be read (damaged: it has fewer bytes than its tensors)"),
    (lambda folder: (folder / "config.json").write_text("[]"),
     "FOLDER/config.json: expected a JSON object, found an empty list"),
    (lambda folder: (folder / "config.json").write_text(POINTER),
     "FOLDER/config.json: a Git LFS pointer, not the file itself: run git lfs pull in its repository"),
    (lambda folder: (folder / "config.json").write_text('{"vocab_size": 61, "vocab_size": 64}'),
     "FOLDER/config.json: vocab_size is there twice"),
    (lambda folder: write_config(folder, num_attention_heads=10**9, num_key_value_heads=10**9, head_dim=10**9),
     "FOLDER/config.json: model configuration: num_attention_heads x head_dim is "
     "1,000,000,000,000,000,000, expected at most 1,000,000,000"),
    (lambda folder: write_config(folder, vocab_size=None),
     "FOLDER/config.json: vocab_size: expected a whole number from 1, found null"),
    (lambda folder: write_config(folder, vocab_size=62),
     "FOLDER: model.embed_tokens.weight: has shape [61, 16], but the configuration says [62, 16]"),
    (lambda folder: write_config(folder, num_hidden_layers=9000),
     "FOLDER: 20 tensors cannot be the 9,000 layers or experts of config.json: download the model again"),
    (with_both, None),
    (lambda folder: [(folder / name).unlink() for name in (*SHARDS, INDEX)],
     "FOLDER: has a config.json but no weights: expected model.safetensors, or model.safetensors.index.json and its "
     "shards; there is neither"),
    (lambda folder: (folder / INDEX).unlink(), "FOLDER: has a config.json but no weights: expected model.safetensors, "
     f"or model.safetensors.index.json and its shards; there is {SHARDS[0]}, {SHARDS[1]}"),
    (add_tensor, "FOLDER: model.layers.0.self_attn.q_norm.weight: unknown in a model of the family llama with this "
     "configuration"),
    (drop_tensors, "FOLDER: model.layers.1.input_layernorm.weight, model.layers.1.self_attn.q_proj.weight, "
     "model.layers.1.self_attn.k_proj.weight and 6 more: missing: the weights are incomplete or belong to another "
     "configuration"),
    (lambda folder: in_one_file(folder, everything(folder) | {
        "model.norm.weight": torch.ones(16, dtype=torch.int8)}),
     "FOLDER: model.norm.weight: is int8, expected float16, bfloat16 or float32; quantized weights cannot be used"),
    (lambda folder: in_one_file(folder, everything(folder) | {"model.norm.weight": torch.full((16,), torch.nan)}),
     "FOLDER: model.norm.weight: 16 of its 16 values are NaN or infinite: the run that wrote the file diverged; use "
     "earlier weights"),
])
def test_damaged(folder: Path, damage: Callable[[Path], object], message: str):
    damage(folder)
    assert refusal(folder) == (message or (
        f"FOLDER: has model.safetensors as well as {INDEX}, which lists other files: remove the one that does not "
        "belong to the model"))


def test_a_shard_s_name_that_no_file_can_have(folder: Path):
    write_index(folder, {"a": "b" * 300})
    assert refusal(folder).endswith("bbb: cannot be read (File name too long)")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission(folder: Path):
    folder.chmod(0)
    try:
        assert refusal(folder) == "FOLDER/adapter_config.json: cannot be read (Permission denied)"
        with pytest.raises(UserError, match=r"config\.json: cannot be read \(Permission denied\)$"):
            brings_tokenizer(folder)
    finally:
        folder.chmod(0o755)


# Folders of other kinds


@pytest.mark.parametrize(("files", "message"), [
    ({}, ""),
    ({"adapter_config.json": '{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}', "config.json": "{}"},
     "for Qwen/Qwen2.5-0.5B"),
    ({"adapter_config.json": '{"base_model_name_or_path": "a\\nb"}'}, "for a\\nb"),
    ({"b.gguf": "", "a.gguf": ""}, "; it holds weights: give the file, such as FOLDER/a.gguf"),
    ({"full_sft_512.pth": ""}, "; it holds weights: give the file, such as FOLDER/full_sft_512.pth"),
    ({"checkpoint-20/config.json": "{}"}, "; it holds the checkpoints of a run: give one of them, such as "
     "FOLDER/checkpoint-20"),
    ({"step-00000010/manifest.json": "{}"}, "; it holds the resume states of a run: continue with --from_resume 1, or "
     "give its weights in --save_dir"),
    ({"params.json": "{}", "consolidated.00.pth": "", "tokenizer.model": ""}, "; it is in the layout of the model's "
     "maker: get the version for transformers"),
    ({"tokenizer.model": ""}, "; it is in the layout of the model's maker: get the version for transformers"),
])
def test_folders_of_other_kinds(tmp_path: Path, files: dict[str, str], message: str):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert refusal(tmp_path) == (
        f"FOLDER (for {message[4:]}): {AN_ADAPTER}" if message.startswith("for ") else
        f"FOLDER: a folder without config.json, expected a model's folder as Hugging Face has them{message}")
