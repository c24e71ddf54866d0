"""scripts/convert_model.py --lora_weight, called in this process."""

import json
import runpy
import sys

import pytest
import torch
from export_models import LLAMA, QWEN3
from programs import REPOSITORY
from tiny_adapters import write_base, write_lora

from minimind_sft.errors import UserError
from minimind_sft.export.adapters import compare_adapters
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.reading import read_adapter
from minimind_sft.settings.convert import ConvertModelSettings
from minimind_sft.settings.spec import changed, problems

SCRIPT = "scripts/convert_model.py"


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the program with the given flags and returns what it prints."""
    main = runpy.run_path(str(REPOSITORY / SCRIPT))["main"]

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, flags)])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call


def product(adapter, name):
    change = adapter.changes[name]
    return change.scale * (change.b @ change.a)


def test_to_peft_and_back(convert, tmp_path):
    own = write_lora(tmp_path, write_base(tmp_path, QWEN3), "style")
    printed = convert("--save_dir", tmp_path, "--lora_weight", "style", "--to", "peft", "--output", tmp_path / "peft")
    assert "an adapter of PEFT for a model of qwen3, float32" in printed
    assert "read back   14 changes: all equal" in printed
    assert f"model = PeftModel.from_pretrained(base, '{tmp_path}/peft')" in printed
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 4)
    before, after = read_adapter(own, QWEN3), read_adapter(tmp_path / "peft", QWEN3)
    assert before.changes.keys() == after.changes.keys()
    assert all(torch.equal(product(before, name), product(after, name)) for name in before.changes)
    with pytest.raises(UserError, match=r"peft: exists already; choose another --output"):
        convert("--save_dir", tmp_path, "--lora_weight", "style", "--to", "peft", "--output", tmp_path / "peft")


def test_from_peft_to_minimind(convert, tmp_path):
    base = write_base(tmp_path, LLAMA)
    write_lora(tmp_path, base, "style", targets="self_attn.q_proj")
    flags = ("--save_dir", tmp_path, "--weight", base)
    convert(*flags, "--lora_weight", "style", "--to", "peft", "--output", tmp_path / "peft")
    printed = convert(*flags, "--lora_weight", tmp_path / "peft", "--to", "minimind", "--output", tmp_path / "a_32.pth")
    assert "nothing in it identifies the weights it was trained on" in printed
    assert "read back   2 changes: rounded by at most " in printed
    assert "    python eval_llm.py --lora_weight a\n" in printed
    names = {f"model.layers.{layer}.self_attn.{name}_proj.lora.{part}.weight"
             for layer in range(2) for name in "qo" for part in "AB"}
    assert torch.load(tmp_path / "a_32.pth", weights_only=True).keys() == names


@pytest.mark.parametrize(("flags", "expected"), [
    (["--to", "minimind", "--output", "a.pth"], r"MiniMind has adapters only for square matrices, here k_proj, v_proj"),
    (["--to", "minimind", "--output", "a.pth", "--weight", "other"], "was trained on other weights than"),
    (["--to", "peft", "--output", "a", "--lora_weight", "style:2"], "converted as it is, without a weight"),
    (["--to", "peft", "--output", "a", "--lora_weight", "stile"], r"did you mean style\?"),
    (["--to", "peft", "--output", "a.json"], "expected the name of a folder for --to peft, not of a file"),
])
def test_what_is_refused(convert, tmp_path, flags, expected, monkeypatch):
    write_lora(tmp_path, write_base(tmp_path, QWEN3), "style")
    write_base(tmp_path, QWEN3, "other", scale=2.0)
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        convert("--save_dir", tmp_path, "--lora_weight", "style", *flags)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("values", "expected"), [
    ({"to": "peft", "output": "a"}, ["--to peft is a format of adapters: name one with --lora_weight, and the weights "
                                     "that it belongs to with --weight"]),
    ({"to": "gguf", "output": "a.gguf", "lora_weight": "x"},
     ["--to gguf is a format of whole models: merge the adapter first (scripts/merge_lora.py), then convert the "
      "result"]),
    ({"to": "minimind", "output": "a.pth", "lora_weight": "x"}, []),
])
def test_formats_of_models_and_of_adapters(values, expected):
    assert problems(changed(ConvertModelSettings(), **values)) == expected


def test_another_change_is_noticed(tmp_path):
    before = Change(torch.ones(2, 4), torch.ones(4, 2), 1.0)
    adapter = Adapter(tmp_path, {"x": before}, {"y": torch.ones(2)})
    assert compare_adapters(adapter, adapter, "float16") == "1 change: all equal"
    for written, expected in ((Adapter(tmp_path, {"x": before._replace(scale=1.01)}, adapter.saved), "the change of x"),
                              (Adapter(tmp_path, {}, adapter.saved), "the change of x"),
                              (Adapter(tmp_path, {"x": before, "z": before}, adapter.saved), "the change of z"),
                              (Adapter(tmp_path, {"x": before}), "trained in full are , but were y"),
                              (Adapter(tmp_path, {"x": before}, {"y": torch.zeros(2)}), "y is another one")):
        with pytest.raises(UserError, match=f"reading back what was written: {expected}"):
            compare_adapters(adapter, written, "float16")
