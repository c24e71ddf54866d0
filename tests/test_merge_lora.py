"""scripts/merge_lora.py, called in this process."""

import runpy
import sys

import pytest
import torch
from export_models import QWEN3, UNNORMALISED
from programs import REPOSITORY, locked_by_another
from safetensors.torch import load_file
from tiny_adapters import write_base, write_lora

from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.model.adapters import merging
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.weights import read_weights

SCRIPT = "scripts/merge_lora.py"


@pytest.fixture
def merge(monkeypatch, capsys):
    """Runs the program with the given flags and returns what it prints."""
    main = runpy.run_path(str(REPOSITORY / SCRIPT))["main"]

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, flags)])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call


def names(folder):
    """Returns the names of the files, without the folder of locks."""
    return sorted(path.name for path in folder.iterdir() if path.name != "checkpoints")


def product(path, name):
    """Returns B A of a projection in an adapter's file."""
    tensors = load_file(path)
    return tensors[f"{name}.lora_B"].double() @ tensors[f"{name}.lora_A"].double()


def assert_changed(before, after, name, change):
    assert torch.allclose(after.tensors[name].double(), before.tensors[name].double() + change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [QWEN3, UNNORMALISED], ids=["dense", "experts"])
def test_two_weighted_adapters(merge, tmp_path, config):
    base = write_base(tmp_path, config)
    style = write_lora(tmp_path, base, "style", seed=1)
    calls = write_lora(tmp_path, base, "calls", seed=2, rank=2, alpha=2.0, targets="q_proj")
    printed = merge("--save_dir", tmp_path, "--lora_weight", "style:0.5", "lora_calls", "--save_weight", "chat",
                    "--save_dtype", "float32")
    assert "merged and unmerged logits differ by at most" in printed

    before, after = read_weights(base), read_weights(tmp_path / base.name.replace("full_sft", "chat"))
    name = "model.layers.1.self_attn.q_proj"
    change = 0.5 * 2 * product(style, name) + product(calls, name)
    assert_changed(before, after, f"{name}.weight", change)
    if config.use_moe:
        change = 0.5 * 2 * product(style, "model.layers.1.mlp.experts.up_proj")
        assert_changed(before, after, "model.layers.1.mlp.experts.2.up_proj.weight", change[2])
    assert torch.equal(after.tensors["model.norm.weight"], before.tensors["model.norm.weight"])
    assert after.config == before.config
    assert after.sidecar["stage"] == "merged" and after.sidecar["tokenizer"] == before.sidecar["tokenizer"]
    assert after.sidecar["merged"] == [{"base": fingerprint(before), "base_name": base.name, "adapters": [
        {"name": style.name, "sha256": sha256_of_file(style), "weight": 0.5},
        {"name": calls.name, "sha256": sha256_of_file(calls), "weight": 1.0}]}]


def test_merged_weights_are_a_base_again(merge, tmp_path):
    base = write_base(tmp_path, QWEN3)
    write_lora(tmp_path, base, "style", saved=("model.norm",))
    merge("--save_dir", tmp_path, "--lora_weight", "style", "--save_weight", "one")
    one = tmp_path / "one_32.pth"
    sidecar = read_weights(one).sidecar
    assert sidecar["dtype"] == "float16" and sidecar["training"] == {"step": 3}
    norm = read_weights(base).tensors["model.norm.weight"] * 1.25
    assert torch.equal(read_weights(one).tensors["model.norm.weight"], norm.half())
    write_lora(tmp_path, one, "calls", seed=2)
    merge("--save_dir", tmp_path, "--weight", "one", "--lora_weight", "calls", "--save_weight", "two")
    history = read_weights(tmp_path / "two_32.pth").sidecar["merged"]
    assert [[adapter["name"] for adapter in step["adapters"]] for step in history] == [
        ["lora_style_32.safetensors"], ["lora_calls_32.safetensors"]]


def test_overwriting_is_asked_for(merge, tmp_path):
    base = write_base(tmp_path, QWEN3)
    write_lora(tmp_path, base, "style")
    flags = ("--save_dir", tmp_path, "--lora_weight", "style", "--save_weight", "chat")
    merge(*flags)
    with pytest.raises(UserError, match=r"chat_32\.pth: exists already; choose another --save_weight, or --overwrite"):
        merge(*flags)
    merge(*flags, "--overwrite")
    assert names(tmp_path / "chat_32.previous") == ["chat_32.json", "chat_32.pth"]
    with pytest.raises(UserError, match="is what --weight names"):
        merge(*flags[:-1], "full_sft", "--overwrite")


def test_no_two_processes_write_under_one_name(merge, tmp_path):
    """The lock is that of a run with --save_weight chat."""
    write_lora(tmp_path, write_base(tmp_path, QWEN3), "style")
    flags = ("--save_dir", tmp_path, "--lora_weight", "style", "--save_weight", "chat")
    (tmp_path / "checkpoints").mkdir()
    with (locked_by_another(tmp_path / "checkpoints" / "chat_32_resume.lock") as holder,
          pytest.raises(UserError, match=rf"another run is writing there \(process {holder} on .*--save_weight")):
        merge(*flags, "--overwrite")
    assert not (tmp_path / "chat_32.pth").exists()
    merge(*flags)


@pytest.mark.parametrize(("flags", "expected"), [
    (["--lora_weight", "style"], r"lora_style_32\.safetensors: was trained on other weights"),
    (["--lora_weight", "mine", "--chat_template", "alpaca"], "trained with the tokenizer's own chat template, not"),
    (["--lora_weight", "mine", "--tokenizer_path", "{tokenizer}"], "tokenizer"),
])
def test_what_does_not_belong_together_is_refused(merge, tmp_path, flags, expected):
    base, other = write_base(tmp_path, QWEN3), write_base(tmp_path, QWEN3, "other", scale=2.0)
    write_lora(tmp_path, other, "style")
    write_lora(tmp_path, base, "mine")
    before = names(tmp_path)
    with pytest.raises(UserError, match=expected):
        merge("--save_dir", tmp_path, "--save_weight", "chat", *flags)
    assert names(tmp_path) == before


def test_a_model_that_merging_changed_is_not_written(merge, tmp_path, monkeypatch):
    base = write_base(tmp_path, QWEN3)
    write_lora(tmp_path, base, "style")
    before = names(tmp_path)
    monkeypatch.setattr(merging, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"lora_style_32\.safetensors: merged and unmerged logits differ by"):
        merge("--save_dir", tmp_path, "--lora_weight", "style", "--save_weight", "chat")
    assert names(tmp_path) == before
