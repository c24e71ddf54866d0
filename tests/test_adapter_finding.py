"""Finding the adapter that a name means."""

import pytest
from export_models import QWEN3, UNNORMALISED

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.finding import find_adapter


@pytest.fixture
def out(tmp_path):
    for name in ("lora_style_32.safetensors", "lora_style_32_moe.safetensors", "lora_style_64.safetensors",
                 "lora_medical_32.pth", "identity_32.pth", "full_sft_32.pth", "lora_both_32.pth",
                 "lora_both_32.safetensors", "lora_large_64.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(("name", "found"), [
    ("style", "lora_style_32.safetensors"), ("lora_style", "lora_style_32.safetensors"),
    ("lora_style_32", "lora_style_32.safetensors"), ("style_32", "lora_style_32.safetensors"),
    ("lora_medical", "lora_medical_32.pth"), ("medical", "lora_medical_32.pth"), ("identity", "identity_32.pth"),
    ("lora_style_64.safetensors", "lora_style_64.safetensors"), ("lora_both_32.pth", "lora_both_32.pth"),
])
def test_names(out, name, found):
    assert find_adapter(name, out, QWEN3, "--l") == out / found


def test_weights_of_the_same_name_are_not_meant(out):
    for name in ("style_32.pth", "style_32.json", "full_sft_32.json"):
        (out / name).touch()
    assert find_adapter("style", out, QWEN3, "--l") == out / "lora_style_32.safetensors"
    with pytest.raises(UserError, match=r"^--l full_sft: no lora_full_sft_32\.safetensors or \.pth in "):
        find_adapter("full_sft", out, QWEN3, "--l")


def test_the_model_decides_among_sizes(out):
    assert find_adapter("style", out, UNNORMALISED, "--l") == out / "lora_style_32_moe.safetensors"


def test_paths(out, tmp_path, monkeypatch):
    assert find_adapter(str(out), "nowhere", QWEN3, "--l") == out
    assert find_adapter(f"{out}/identity_32.pth", "nowhere", QWEN3, "--l") == out / "identity_32.pth"
    monkeypatch.chdir(tmp_path)
    assert str(find_adapter("identity_32.pth", "nowhere", QWEN3, "--l")) == "identity_32.pth"


@pytest.mark.parametrize(("name", "expected"), [
    ("both", r"^--l both means several files: .*lora_both_32\.pth, .*lora_both_32\.safetensors; give one by its path$"),
    ("large", r"^--l large: no lora_large_32\.safetensors or \.pth in .*; lora_large_64\.safetensors is for a model of "
              r"another size; there is .*lora_style_32\.safetensors"),
    ("stile", r"no lora_stile_32\.safetensors or \.pth in .*; did you mean style\?; there is "),
    ("./style", r"^--l \./style: no such file or folder"),
    ("lora_style_3.safetensors", r"no such file or folder \(looked here and in .*\); did you mean lora_style_32\."),
    ("owner/adapter", r"no such file or folder; to fetch it: hf download owner/adapter --local-dir adapter$"),
    ("folder", r"; for the folder of that name give --l \./folder; there is "),
])
def test_what_is_not_found(out, monkeypatch, name, expected):
    monkeypatch.chdir(out)
    (out / "folder").mkdir()
    (out / "folder/adapter_config.json").touch()
    with pytest.raises(UserError, match=expected):
        find_adapter(name, out, QWEN3, "--l")
