"""The sidecar of a weights file: a JSON object that describes the weights.

`out/full_sft_512.json` describes `out/full_sft_512.pth`. It holds the model's configuration (`model`), the SHA-256 of
the weights file, the fingerprints of the tokenizer and chat template used in training, some readable facts about both,
and how training went.

The user may write one for weights from elsewhere. It then holds `assume` in place of `model`: fields of the
configuration that the weights do not tell and that differ from what would be assumed.
"""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

from minimind_sft.errors import UserError, describe, printable
from minimind_sft.files import read_object
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.set_aside import is_there

Kinds = dict[str, Any]
OTHER_FIELDS: Kinds = {
    "sha256": str, "stage": str, "run": str, "family": str, "dtype": str, "parameters": int, "assume": dict,
    "tokenizer": str, "tokenizer_facts": {"name": str, "vocab_size": int, "added_tokens": list, "tokens": dict},
    "chat_template": str, "chat_template_facts": {"name": str, "end_of_turn": str, "example": str},
    "training": {"command": str, "experience": {"tokens": str, "longest": int}}}
"""The types of the fields that the code reads, besides `model`; each may be missing or null."""

MAX_SIZE = 10**9
MAX_COUNT = 2**63
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "an object",
         list: "a list", RopeScaling: "an object", tuple: "a list of whole numbers"}


def sidecar_path(weights: Path) -> Path:
    return weights.with_suffix(".json")


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Reads the sidecar at `path`; returns None if there is none.

    Raises:
        UserError: if it cannot be read or a field has the wrong type; names the file and the field.
    """
    if not is_there(path):
        return None
    sidecar = read_object(path)
    if "assume" in sidecar and "model" in sidecar:
        raise UserError(f"{path}: assume: not possible beside model, which has all fields")
    if "assume" not in sidecar and not isinstance(sidecar.get("model"), dict):
        raise UserError(f"{path}: model: expected an object with the model's configuration, "
                        f"found {describe(sidecar['model']) if 'model' in sidecar else 'no such field'}")
    _check_kinds(sidecar, OTHER_FIELDS, f"{path}: ")
    return sidecar


def _check_kinds(values: dict[str, Any], kinds: Kinds, place: str) -> None:
    """Checks the types of fields, and of those inside of them."""
    for name, kind in kinds.items():
        value = values.get(name)
        expected = dict if isinstance(kind, dict) else kind
        if value is None:
            continue
        if type(value) is not expected or (type(value) is int and not 0 <= value < MAX_COUNT):
            raise UserError(f"{place}{name}: expected {KINDS[expected]}, found {describe(value)}")
        if isinstance(kind, dict):
            _check_kinds(value, kind, f"{place}{name}.")


def model_config(sidecar: dict[str, Any], path: Path) -> ModelConfig:
    """Returns the model's configuration, which `dataclasses.asdict` wrote into the sidecar at `path`.

    Raises:
        UserError: if a field is missing, unknown or of the wrong type; names the file and the field.
    """
    values = _typed(sidecar["model"], f"{path}: model")
    try:
        return ModelConfig(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def assumed_fields(sidecar: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Returns the fields of the configuration that the user gave for weights that do not tell them.

    Raises:
        UserError: if a field is unknown, of the wrong type or impossible; names the file and the field.
    """
    assumed = _typed((sidecar or {}).get("assume") or {}, f"{path}: assume", partial=True)
    if (heads := assumed.get("num_attention_heads", 1)) < 1:
        raise UserError(f"{path}: assume.num_attention_heads: expected at least 1, found {heads}")
    return assumed


def _typed(values: dict[str, Any], place: str, partial: bool = False) -> dict[str, Any]:
    """Returns the fields of a configuration, read from JSON, with the types they have in `ModelConfig`."""
    values = _checked(ModelConfig, values, place, partial)
    if values.get("rope_scaling") is not None:
        inner = f"{place}.rope_scaling"
        scaling = _checked(RopeScaling, values["rope_scaling"], inner)
        for name, value in scaling.items():
            if type(value) in (int, float) and value <= 0:
                raise UserError(f"{inner}.{name}: expected a number above 0, found {value}")
        try:
            values["rope_scaling"] = RopeScaling(**scaling)
        except UserError as error:
            raise UserError(f"{inner}: {error}") from error
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _checked(config_class: type, values: dict[str, Any], place: str, partial: bool = False) -> dict[str, Any]:
    """Returns the values after checking that every field of the dataclass has one of the right type.

    A field whose metadata has `since`, the version that added it, may be missing; that means its default.

    Args:
        partial: any field may be missing.
    """
    known = {field.name: field for field in fields(config_class)}
    for name in values:
        if name not in known:
            raise UserError(f"{place}.{printable(name)}: unknown field (written by a later version, or misspelled)")
    for name, field in known.items():
        if name not in values:
            if partial or "since" in field.metadata:
                continue
            raise UserError(f"{place}.{name}: missing; a sidecar has every field of the configuration")
        if values[name] is None and field.default is None:
            continue
        kinds = (tuple,) if get_origin(field.type) is tuple else get_args(field.type) or (field.type,)
        if not any(_is(values[name], kind) for kind in kinds):
            raise UserError(f"{place}.{name}: expected {KINDS[kinds[0]]}, found {describe(values[name])}")
    return dict(values)


def _is(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and abs(value) <= MAX_SIZE
    if kind is float:
        return type(value) in (int, float) and abs(value) <= MAX_SIZE and math.isfinite(value)
    if kind is RopeScaling:
        return isinstance(value, dict)
    if kind is tuple:
        return isinstance(value, list) and all(_is(item, int) for item in value)
    return type(value) is kind
