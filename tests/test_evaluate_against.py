"""scripts/evaluate.py --against and --blind on small weights, called in this process."""

import builtins
import json
import runpy
import sys

import pytest
from chats import chat
from programs import REPOSITORY, write_rows
from tiny_adapters import write_base, write_lora

from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.model.config import ModelConfig

EVALUATE = "scripts/evaluate.py"
SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Compares weights with and without an adapter on a few rows, and returns what the program prints."""
    base = write_base(tmp_path, SMALL)
    adapter = write_lora(tmp_path, base, "style")
    rows = [chat(f"Say {n}.", f"It is {n}.") | {"kind": "odd" if n % 2 else "even"} for n in range(7)]
    data = write_rows(tmp_path / "a.jsonl", rows)

    def call(*flags) -> str:
        monkeypatch.setattr(sys, "argv", [
            EVALUATE, "--weight", str(base), "--lora_weight", str(adapter), "--data_path", str(data),
            "--max_new_tokens", "5", "--device", "cpu", "--out", str(tmp_path / "r.json"), *map(str, flags)])
        capsys.readouterr()
        runpy.run_path(str(REPOSITORY / EVALUATE))["main"]()
        return capsys.readouterr().out

    call.base, call.adapter = base, adapter
    return call


def test_a_base_is_compared_with_its_adapter(evaluate, tmp_path):
    alone = json.loads((evaluate() and tmp_path / "r.json").read_text())
    shown = evaluate("--against", evaluate.base)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["conversations"] == alone["conversations"], "the items of --weight are not measured again"
    assert found["against"]["model"]["adapters"] == [] != found["model"]["adapters"]
    assert found["against"]["model"]["weights"] == found["model"]["weights"] == sha256_of_file(evaluate.base)
    loss = found["comparison"]["scores"]["loss"]
    assert loss["weight"] == pytest.approx(found["conversations"]["all"]["loss"])
    assert loss["against"] == pytest.approx(found["against"]["conversations"]["all"]["loss"])
    assert loss["low"] <= loss["difference"] <= loss["high"] and loss["items"] == 7
    assert set(found["comparison"]["by_kind"]) == {"even", "odd"}
    assert found["comparison"]["answers"]["asked"] == 7
    assert f"\n--against {evaluate.base}\n" in shown and "\nchanged answers: " in shown
    repeated = evaluate("--against", evaluate.base)
    assert repeated.splitlines()[1:] == shown.splitlines()[1:] and repeated.startswith("resumed ")


def test_the_same_weights_differ_in_nothing(evaluate, tmp_path):
    evaluate("--against", evaluate.base, "--against_lora", evaluate.adapter)
    found = json.loads((tmp_path / "r.json").read_text())["comparison"]
    assert {(one["low"], one["high"]) for one in found["scores"].values()} == {(0.0, 0.0)}
    assert found["answers"]["changed"] == 0 and found["examples"] == []


def test_votes_come_before_anything_tells_whose_the_answers_are_and_are_kept(evaluate, tmp_path, monkeypatch):
    typed = iter(["1", "=", "q"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    flags = ["--against", evaluate.base, "--blind"]
    shown = evaluate(*flags)
    votes = json.loads((tmp_path / "r.json").read_text())["votes"]
    assert votes["weight"] + votes["against"] == 1 and votes["ties"] == 1 and votes["p_value"] == 1.0
    order = ["--- question 1 of ", "\nvotes: 2 of ", "\n--weight ", "\n--against ", "\nchanged answers: "]
    assert [shown.index(part) for part in order] == sorted(shown.index(part) for part in order)
    typed = iter(["q"])
    assert "--- question 3 of " in evaluate(*flags)
    monkeypatch.setattr(builtins, "input", None)
    kept = (tmp_path / "r.answers.jsonl").read_text()
    with pytest.raises(UserError, match="holds votes with another answers"):
        evaluate(*flags, "--comparison_seed", 7)
    assert (tmp_path / "r.answers.jsonl").read_text() == kept


@pytest.mark.parametrize(("flags", "message"), [
    (["--against", "nothing"], "^--against nothing: no nothing_"),
    (["--against", "full_sft", "--against_lora", "nothing"], "^--against_lora nothing: "),
    (["--against_lora", "style"], "^--against_lora needs --against$"),
    (["--blind"], "^--blind needs --against$"),
    (["--blind", "--against", "full_sft", "--answers", 0], "^--blind needs --data_path, whose questions are answered$"),
])
def test_refused(evaluate, flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate("--save_dir", tmp_path, *flags)
