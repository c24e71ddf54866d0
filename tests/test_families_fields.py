"""Every field of every family's configuration: a changed value changes our computation as transformers', or is refused.

Nothing here lists fields by hand: they are those of transformers' configuration classes, those that older versions
wrote, and those inside RoPE's parameters.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers
from family_models import CASES, Batch, as_old, batch, our_logits, our_model, their_logits, their_model

from minimind_sft.errors import UserError
from minimind_sft.model.families.registry import FAMILIES

DOCUMENTS = batch((3, 30))
ONE_PER_FAMILY = ("llama biases", "qwen2 windows", "qwen3 biases, windows", "qwen3_moe normalised", "mistral", "gpt2",
                  "smollm3 biases, windows", "phi3 window")
SCALED = ("llama linear", "llama dynamic", "llama llama3", "llama yarn mscale", "qwen2 yarn")
COMMON = set(transformers.PreTrainedConfig().to_dict()) - {"tie_word_embeddings"}
"""Fields of every configuration, which are changed in one family only."""
WORDS = ("gelu", "sliding_attention", "full_attention", "linear", "longrope", "default")


def complete(name: str) -> dict[str, Any]:
    """Returns the config.json of a case, with every field that transformers writes."""
    model_type, values = CASES[name]
    config = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(values))
    return json.loads(json.dumps(config.to_dict())) | {"model_type": model_type}


def other_values(value: Any) -> list[Any]:
    """Returns values of the same type and of others that a file may have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2]
    if isinstance(value, float):
        return [value + 0.25, value * 2]
    if isinstance(value, str):
        return [word for word in WORDS if word != value]
    if isinstance(value, list):
        return [value[::-1], [*value[1:], *value[:1]], [*value, *value[:1]], value[:1], [], None]
    return [True, 2, "gelu", {"factor": 2.0}] if value is None else [None]


def changes(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a field and the configuration with that field changed or removed, at any depth."""
    inner = values
    for name in path:
        inner = inner[name]
    for name, value in list(inner.items()):
        if name == "model_type" or (not path and name in ("bos_token_id", "eos_token_id", "pad_token_id")):
            continue
        if isinstance(value, dict) and name.startswith("rope"):
            yield from changes(values, (*path, name))
        for other in (*other_values(value), "removed"):
            changed = copy.deepcopy(values)
            place = changed
            for step in path:
                place = place[step]
            place[name] = other
            if other == "removed":
                del place[name]
            yield ".".join((*path, name)), changed


def difference(values: dict[str, Any], folder: Path, documents: Batch) -> float | None:
    """Returns how far our logits are from transformers', or None if transformers refuses the configuration."""
    try:
        theirs = their_model(values["model_type"], {k: v for k, v in values.items() if k != "model_type"})
        expected = their_logits(theirs, documents)
        theirs.save_pretrained(folder)
    except Exception:  # of any kind
        return None
    (folder / "config.json").write_text(json.dumps(values))
    return (our_logits(our_model(folder), documents) - expected).abs().max().item()


@pytest.mark.parametrize("written_by", ["5", "4"])
@pytest.mark.parametrize("name", [*ONE_PER_FAMILY, *SCALED])
def test_a_changed_field_changes_both_or_is_refused(name: str, written_by: str, tmp_path: Path):
    values = complete(name)
    fields = set(values)
    if written_by == "4":
        values = as_old(values)
        fields = set(values) - fields  # the others are in the test above
    elif name in SCALED:
        fields = {"rope_parameters", "max_position_embeddings"}
    elif name != ONE_PER_FAMILY[0]:
        fields -= COMMON
    family = FAMILIES[values["model_type"]]
    unchanged, without_influence = family.read_config(values), Counter()
    wrong, compared = [], 0
    for field, changed in changes(values):
        if field.split(".")[0] not in fields or without_influence[field] == 2:
            continue
        try:
            without_influence[field] += family.read_config(changed) == unchanged
        except UserError as error:
            assert ": " in str(error) and "\n" not in str(error)
            continue
        found = difference(changed, tmp_path, DOCUMENTS)
        compared += found is not None
        if found is not None and not found < 1e-4:
            wrong.append(f"{field}: {found:.1e}")
    assert not wrong and compared


def test_the_measure_can_tell(tmp_path: Path):
    """A configuration read as another one is noticed."""
    values = complete("qwen2 windows")
    their_model("qwen2", {k: v for k, v in values.items() if k != "model_type"}).save_pretrained(tmp_path)
    expected = our_logits(our_model(tmp_path), DOCUMENTS)
    for field, other in (("sliding_window", 6), ("rms_norm_eps", 0.25)):
        (tmp_path / "config.json").write_text(json.dumps(values | {field: other}))
        assert (our_logits(our_model(tmp_path), DOCUMENTS) - expected).abs().max() > 1e-2
