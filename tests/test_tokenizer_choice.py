"""The tokenizer that --tokenizer_path asks for."""

import json
import shutil
from pathlib import Path

import pytest
from chats import MODEL
from chats import TOKENIZER as BUNDLED

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import load_tokenizer, recorded_name, tokenizer_name
from minimind_sft.errors import UserError


def test_the_bundled_tokenizer_is_recognised_under_several_names(monkeypatch):
    monkeypatch.chdir(MODEL.parent / "trainer")
    for choice in (None, "bundled", "../model", str(MODEL)):
        assert tokenizer_name(choice) == "bundled"
        assert load_tokenizer(choice).fingerprint == BUNDLED.fingerprint
    assert tokenizer_name("model") == "model", "trainer/ has no folder of this name, so it is not the bundled one"


def other(folder: Path, **config: str) -> Path:
    """Writes the bundled tokenizer into a folder, with these entries of tokenizer_config.json replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODEL / "tokenizer.json", folder)
    content = json.loads((MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, **config}), encoding="utf-8")
    return folder


def weights(path: Path, name: object, fingerprint: str | None) -> Path:
    """Writes a sidecar that names a tokenizer, and returns the path of its weights."""
    path.with_suffix(".json").write_text(json.dumps(
        {"tokenizer": fingerprint, "tokenizer_facts": {"name": name}}), encoding="utf-8")
    return path


def test_a_model_s_folder_brings_its_tokenizer(tmp_path):
    base = other(tmp_path / "base", eos_token="<|endoftext|>")
    assert load_tokenizer(None, base).fingerprint == BUNDLED.fingerprint, "the folder holds no model"
    (base / "config.json").write_text("{}", encoding="utf-8")
    tokenizer = load_tokenizer(None, base)
    assert tokenizer.special["eos_token"] == "<|endoftext|>" and tokenizer.name == str(base)
    assert tokenizer.notices[0] == f"that of {base}, 6,400 tokens"
    assert load_tokenizer("bundled", base).fingerprint == BUNDLED.fingerprint
    (base / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer.json in it; .*, unless --tokenizer_path names one\)$"):
        load_tokenizer(None, base)


def test_a_folder_without_a_model_is_refused_when_its_weights_are_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for base in (Path(), tmp_path):
        assert load_tokenizer(None, base).fingerprint == BUNDLED.fingerprint


def test_a_sidecar_finds_the_tokenizer_from_any_folder(tmp_path, monkeypatch):
    base = other(tmp_path / "bases/mine", eos_token="<|endoftext|>")
    fingerprint = Tokenizer.from_folder(base).fingerprint
    monkeypatch.chdir(tmp_path)
    assert recorded_name("bases/mine") == str(base)
    monkeypatch.chdir(base)
    for name in (str(base), "bases/mine"):  # earlier versions recorded the name as typed
        tokenizer = load_tokenizer(None, weights(tmp_path / "w.pth", name, fingerprint))
        assert tokenizer.fingerprint == fingerprint
        assert tokenizer.notices[0] == f"that of {base}, as {tmp_path / 'w.json'} says"


def test_names_inside_the_repository_are_relative_to_it():
    assert recorded_name(str(MODEL.parent / "bases/mine")) == "bases/mine"
    assert recorded_name("bundled") == "bundled"


def test_a_tokenizer_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"w\.json: the weights were trained with the tokenizer /nowhere/x, which is no "
                                        r"longer there: give --tokenizer_path FOLDER"):
        load_tokenizer(None, weights(tmp_path / "w.pth", "/nowhere/x", "0" * 64))


def test_a_tokenizer_that_has_changed_is_left_to_the_check(tmp_path):
    """`matching.check_tokenizer` describes the difference."""
    base = other(tmp_path / "mine")
    assert load_tokenizer(None, weights(tmp_path / "w.pth", str(base), "0" * 64)).name == str(base)


@pytest.mark.parametrize(("name", "fingerprint"), [("bundled", "0" * 64), (None, "0" * 64), (3, "0" * 64),
                                                   ("/nowhere/x", None)])
def test_without_a_recorded_name_it_is_the_bundled_one(name, fingerprint, tmp_path):
    assert load_tokenizer(None, weights(tmp_path / "w.pth", name, fingerprint)).name == "bundled"
    assert load_tokenizer(None, tmp_path / "without_a_sidecar.pth").name == "bundled"
