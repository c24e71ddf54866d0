"""Reading sidecars: a configuration, or an error in one line that names file and field."""

import json
from dataclasses import asdict, dataclass, field, fields, replace

import pytest
from tiny import TINY, TINY_MOE

from minimind_sft.errors import UserError
from minimind_sft.model import sidecar
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.sidecar import model_config, read_sidecar

MODEL = asdict(TINY)
YARN = asdict(RopeScaling())


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        model_config(read_sidecar(path), path)
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(("value", "message"), [
    ({"command": 3}, "command: expected a string, found 3"),
    ({"experience": []}, "experience: expected an object, found an empty list"),
    ({"experience": {"tokens": "AA==", "longest": "x"}}, 'experience.longest: expected a whole number, found "x"'),
    ({"experience": {"tokens": None, "longest": 0.5}}, "experience.longest: expected a whole number, found 0.5"),
])
def test_bad_fields_inside_are_named(tmp_path, value, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": MODEL, "training": value}))
    assert refused(path) == f": training.{message}"


@pytest.mark.parametrize("config", [TINY, TINY_MOE, replace(TINY, rope_scaling=RopeScaling(factor=4))])
def test_a_configuration_is_read_back(tmp_path, config):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": asdict(config)}))
    assert model_config(read_sidecar(path), path) == config


def test_a_missing_sidecar_is_none_and_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "a.json"
    assert read_sidecar(path) is None
    path.write_text("\ufeff" + json.dumps({"model": MODEL}), encoding="utf-8")
    assert model_config(read_sidecar(path), path) == TINY


@pytest.mark.parametrize(("text", "message"), [
    ("", ": expected a JSON object, the file is empty"),
    ("{", ": expected a JSON object, found broken JSON at column 2: Expecting property name"),
    ("[" * 100000, ": the JSON is nested too deeply"),
    ('{"model": ' + "9" * 5000 + "}", ": 9999999999999999999999999999999999999999... is too large a number"),
    ("\udcff", ": not valid UTF-8 (byte 1)"),
    ("[]", ": expected a JSON object, found an empty list"),
    ("null", ": expected a JSON object, found null"),
    ("{}", ": model: expected an object with the model's configuration, found no such field"),
    ('{"model": {"rope_theta": NaN}}', ": NaN is not a number in JSON"),
    ('{"model": 3}', ": model: expected an object with the model's configuration, found 3"),
    ("version https://git-lfs.github.com/spec/v1\n", ": a Git LFS pointer"),
])
def test_other_content_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(path).startswith(message)


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.json").mkdir()
    assert refused(tmp_path / "a.json") == ": a folder, expected a file"


@pytest.mark.parametrize(("field", "value", "message"), [
    ("hidden_size", "16", 'expected a whole number, found "16"'),
    ("hidden_size", 16.0, "expected a whole number, found 16.0"),
    ("hidden_size", None, "expected a whole number, found null"),
    ("hidden_size", True, "expected a whole number, found true"),
    ("num_hidden_layers", [2], "expected a whole number, found a list"),
    ("num_hidden_layers", 10**12, "expected a whole number, found 1000000000000"),
    ("rms_norm_eps", "1e-6", 'expected a number, found "1e-6"'),
    ("use_moe", 1, "expected true or false, found 1"),
    ("tie_word_embeddings", "yes", 'expected true or false, found "yes"'),
    ("aux_loss_scope", 1, "expected a string, found 1"),
    ("rope_scaling", 4.0, "expected an object, found 4.0"),
    ("vocab", 64, "unknown field (written by a later version, or misspelled)"),
])
def test_a_bad_field_of_the_model_is_named(tmp_path, field, value, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": {**MODEL, field: value}}))
    assert refused(path) == f": model.{field}: {message}"


@pytest.mark.parametrize("field", [one.name for one in fields(ModelConfig) if "since" not in one.metadata])
def test_a_missing_field_of_the_model_is_named(tmp_path, field):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": {name: value for name, value in MODEL.items() if name != field}}))
    assert refused(path) == f": model.{field}: missing; a sidecar has every field of the configuration"


def test_a_field_of_a_later_version_may_be_missing(tmp_path, monkeypatch):
    """Sidecars of earlier versions then mean its default; `since` marks the field."""
    @dataclass(frozen=True)
    class Later(ModelConfig):
        norm: str = field(default="rms", metadata={"since": "0.2.0"})

    monkeypatch.setattr(sidecar, "ModelConfig", Later)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": MODEL}))
    assert model_config(read_sidecar(path), path) == Later(**MODEL)
    path.write_text(json.dumps({"model": MODEL | {"norm": "layer"}}))
    assert model_config(read_sidecar(path), path).norm == "layer"
    path.write_text(json.dumps({"model": MODEL | {"norm": 3}}))
    assert refused(path) == ": model.norm: expected a string, found 3"


@pytest.mark.parametrize("field", ["head_dim", "intermediate_size", "moe_intermediate_size", "rope_scaling"])
def test_a_field_that_follows_from_others_may_be_null(tmp_path, field):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": MODEL | {field: None}}))
    assert model_config(read_sidecar(path), path) == ModelConfig(**MODEL | {field: None})


@pytest.mark.parametrize(("scaling", "message"), [
    ({**YARN, "factor": 0}, ".factor: expected a number above 0, found 0"),
    ({**YARN, "beta_fast": 5e-324}, ": beta_fast is 5e-324, expected a number from 1e-06 to 1,000,000"),
    ({**YARN, "attention_factor": 1e9},
     ": attention_factor is 1000000000.0, expected a number from 1e-06 to 1,000,000"),
    ({**YARN, "beta_fast": None}, ".beta_fast: expected a number, found null"),
    ({**YARN, "type": "yarn"}, ".type: unknown field (written by a later version, or misspelled)"),
    ({}, ".factor: missing; a sidecar has every field of the configuration"),
])
def test_a_bad_field_of_rope_scaling_is_named(tmp_path, scaling, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": {**MODEL, "rope_scaling": scaling}}))
    assert refused(path) == f": model.rope_scaling{message}"


@pytest.mark.parametrize(("field", "value", "message"), [
    ("num_attention_heads", 3, "model configuration: head"),
    ("num_hidden_layers", 0, "model configuration: num_hidden_layers is 0, expected at least 1"),
    ("rope_theta", -1, "model configuration: rope_theta is -1, expected more than 1"),
    ("rms_norm_eps", -1e-6, "model configuration: rms_norm_eps is -1e-06, expected at least 0"),
    ("dropout", 2.0, "model configuration: dropout is 2.0, expected 0 <= dropout < 1"),
])
def test_a_contradictory_model_names_the_file(tmp_path, field, value, message):
    path = tmp_path / "a.json"
    odd = {"head_dim": 7} if "head" in message else {}
    path.write_text(json.dumps({"model": {**MODEL, field: value, **odd}}))
    assert refused(path).startswith(f": {message}")


@pytest.mark.parametrize(("field", "value", "message"), [
    ("sha256", 3, "expected a string, found 3"),
    ("stage", ["full_sft"], "expected a string, found a list"),
    ("tokenizer", {"sha256": "x"}, "expected a string, found an object"),
    ("chat_template", False, "expected a string, found false"),
    ("tokenizer_facts", "x", 'expected an object, found "x"'),
    ("chat_template_facts", [], "expected an object, found an empty list"),
    ("training", "yesterday", 'expected an object, found "yesterday"'),
    ("parameters", -1, "expected a whole number, found -1"),
    ("parameters", True, "expected a whole number, found true"),
    ("parameters", 2**63, "expected a whole number, found 9223372036854775808"),
])
def test_other_bad_fields_are_named(tmp_path, field, value, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"model": MODEL, field: value}))
    assert refused(path) == f": {field}: {message}"
