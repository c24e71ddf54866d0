"""Reads how a model's makers sample from it: the `generation_config.json` of a Hugging Face folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError, describe
from minimind_sft.files import read_configuration
from minimind_sft.set_aside import is_there
from minimind_sft.settings.chat import CHAT_SAMPLING, ChatSamplingSettings, SamplingSettings
from minimind_sft.settings.spec import flags_of, value_problems

FILE = "generation_config.json"
ABSENT = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
"""transformers' values for fields that the file does not have."""
NOT_USED = {"min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "no_repeat_ngram_size": 0,
            "num_beams": 1, "penalty_alpha": None, "encoder_repetition_penalty": 1.0, "bad_words_ids": None,
            "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None, "top_h": None}
"""Fields that change the choice of tokens in transformers and not here, and their values without effect."""


def chat_sampling(typed: ChatSamplingSettings, weights: Path) -> tuple[SamplingSettings, list[str]]:
    """Returns how to choose tokens, and lines about what comes from the model's generation_config.json.

    Flags win. Without the file, or if it says nothing about sampling, the defaults of the chat apply.

    Raises:
        UserError: if the file says something impossible; names the file and the field.
    """
    path = weights / FILE
    found = read_configuration(path) if is_there(path) else {}
    own = _own_sampling(found, path)
    used = [f"{name} {getattr(own, name):g}" for name in ABSENT
            if getattr(typed, name) is None and getattr(own, name) != getattr(CHAT_SAMPLING, name)]
    notices = [f"{', '.join(used)} (from the model's {FILE})"] if used else []
    if others := ", ".join(_not_used(found)):
        notices.append(f"{FILE} names {others}: not used here")
    return typed.complete(own), notices


def _own_sampling(found: dict[str, Any], path: Path) -> SamplingSettings:
    """Returns the sampling that a generation_config.json asks for; the chat's defaults if it does not mention any.

    `do_sample: false` means the most likely token. Where the file gives values without `do_sample`, they count: its
    makers sample with them.
    """
    samples = found.get("do_sample")
    if not isinstance(samples, bool | None):
        raise UserError(f"{path}: do_sample: expected true or false, found {describe(samples)}")
    given = {name: found[name] for name in ABSENT if found.get(name) is not None}
    if samples is None and not given:
        return CHAT_SAMPLING
    for flag in flags_of(SamplingSettings):
        if flag.name not in given:
            continue
        value = given[flag.name]
        # Numbers that do not fit 64 bits overflow when they meet tensors.
        if (type(value) not in (int, float) or (flag.type is int and type(value) is not int)
                or (type(value) is int and abs(value) >= 2**63)):
            raise UserError(f"{path}: {flag.name}: expected a number, found {describe(value)}")
        if problems := value_problems([flag._replace(value=value)]):
            raise UserError(f"{path}: {problems[0].removeprefix('--')}")
    values: dict[str, Any] = ABSENT | given | ({"temperature": 0.0} if samples is False else {})
    return replace(CHAT_SAMPLING, **values)


def _not_used(found: dict[str, Any]) -> Iterator[str]:
    """Yields the fields that would change the choice of tokens in transformers, with their values."""
    for name, neutral in NOT_USED.items():
        if found.get(name) not in (None, neutral, 0, []):
            yield f"{name} {describe(found[name])}"
