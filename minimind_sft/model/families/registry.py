"""Lists the families by the `model_type` in their config.json."""

from collections.abc import Mapping
from typing import Any

from minimind_sft.errors import UserError, describe
from minimind_sft.model.families.family import Family
from minimind_sft.model.families.gpt2 import GPT2
from minimind_sft.model.families.llama import LLAMA
from minimind_sft.model.families.mistral import MISTRAL
from minimind_sft.model.families.phi3 import PHI3
from minimind_sft.model.families.qwen2 import QWEN2
from minimind_sft.model.families.qwen3 import QWEN3, QWEN3_MOE
from minimind_sft.model.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    family.name: family for family in (QWEN3, QWEN3_MOE, LLAMA, QWEN2, MISTRAL, GPT2, SMOLLM3, PHI3)}


def family_of(values: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Raises:
        UserError: if `model_type` is missing or unknown; lists the known ones.
    """
    name = values.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    found = f"is {describe(name)}" if "model_type" in values else "missing"
    raise UserError(f"model_type: {found}, expected {', '.join(FAMILIES)}: other families cannot be read")
