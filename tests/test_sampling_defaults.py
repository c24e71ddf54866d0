"""Sampling that a model's generation_config.json asks for, and flags that win over it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from minimind_sft.errors import UserError
from minimind_sft.inference.sampling_defaults import ABSENT, chat_sampling
from minimind_sft.settings.chat import CHAT_SAMPLING, ChatSamplingSettings, ChatSettings, SamplingSettings
from minimind_sft.settings.command_line import parse_flags

NOTHING_TYPED = ChatSamplingSettings()
QWEN3 = {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "temperature": 0.6, "top_k": 20,
         "top_p": 0.95}
LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


def folder(path: Path, found: object) -> Path:
    text = found if isinstance(found, str) else json.dumps(found)
    (path / "generation_config.json").write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("found", "values"), [
    (QWEN3, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
    (LLAMA, {"temperature": 0.6, "top_k": 50, "top_p": 0.9}),
    ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
    ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0, "top_k": 50, "top_p": 0.9}),
    ({"temperature": 0.3, "repetition_penalty": 1.05},
     {"temperature": 0.3, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.05}),
])
def test_a_models_own_sampling(found: dict, values: dict, tmp_path: Path):
    chosen, (notice,) = chat_sampling(NOTHING_TYPED, folder(tmp_path, found))
    assert chosen == SamplingSettings(512, seed=42, **values)
    assert notice.endswith("(from the model's generation_config.json)")


def test_the_fields_that_a_file_lacks_are_those_of_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    defaults = transformers.GenerationConfig()._get_default_generation_params()
    assert {name: defaults[name] for name in ABSENT} == ABSENT


@pytest.mark.parametrize("found", [None, {}, {"eos_token_id": [2, 0], "max_length": 100}, {"temperature": None}])
def test_a_file_without_sampling_leaves_the_defaults_of_the_chat(found: dict | None, tmp_path: Path):
    weights = tmp_path / "full_sft_256.pth" if found is None else folder(tmp_path, found)
    assert chat_sampling(NOTHING_TYPED, weights) == (CHAT_SAMPLING, [])


def test_flags_win_and_the_rest_is_said_once(tmp_path: Path):
    typed = parse_flags(ChatSettings, "", ["--temperature", "0.85", "--top_p", "0.5", "--seed", "7"]).sampling
    chosen, notices = chat_sampling(typed, folder(tmp_path, QWEN3))
    assert chosen == SamplingSettings(512, temperature=0.85, top_k=20, top_p=0.5, seed=7)
    assert notices == ["top_k 20 (from the model's generation_config.json)"]
    typed = replace(typed, top_k=0, repetition_penalty=1.1)
    assert chat_sampling(typed, tmp_path) == (SamplingSettings(512, 0.85, 0, 0.5, 1.1, 7), [])


def test_sampling_that_is_not_possible_here_is_named(tmp_path: Path):
    found = QWEN3 | {"min_p": 0.05, "num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 3, "epsilon_cutoff": 0.0}
    _, notices = chat_sampling(NOTHING_TYPED, folder(tmp_path, found))
    assert notices[1] == "generation_config.json names min_p 0.05, no_repeat_ngram_size 3: not used here"


@pytest.mark.parametrize(("found", "said"), [
    ({"temperature": -1}, "temperature is -1, expected at least 0"),
    ({"top_p": 0}, "top_p is 0, expected more than 0 and at most 1"),
    ({"top_k": 2.5}, "top_k: expected a number, found 2.5"),
    ({"temperature": 10**400}, f"1{39 * '0'}... is too large a number"),
    ({"top_k": 10**30}, "top_k: expected a number, found 1000"),
    ({"temperature": True}, "temperature: expected a number, found true"),
    ({"temperature": "hot"}, 'temperature: expected a number, found "hot"'),
    ('{"temperature": NaN}', "NaN is not a number in JSON"),
    ({"do_sample": "yes"}, 'do_sample: expected true or false, found "yes"'),
    ("[1]", "expected a JSON object, found a list"),
])
def test_impossible_values_are_refused_naming_file_and_field(found: object, said: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        chat_sampling(NOTHING_TYPED, folder(tmp_path, found))
    assert str(error.value).startswith(f"{tmp_path / 'generation_config.json'}: {said}")
