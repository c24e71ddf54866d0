"""The descriptions of settings, and the lists derived from them."""

import json
import re
import sys
from dataclasses import dataclass

import pytest
from all_settings import PROGRAMS

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.settings.chat import ChatSettings, SamplingSettings
from minimind_sft.settings.command_line import FlagParser, parse_flags
from minimind_sft.settings.convert import ConvertModelSettings
from minimind_sft.settings.evaluate import EvaluateSettings
from minimind_sft.settings.merge import MergeSettings
from minimind_sft.settings.scripts import (
    CompareSettings,
    ConvertSettings,
    EstimateSettings,
    InspectSettings,
    PlotSettings,
    TokenizerSettings,
    WatchSettings,
)
from minimind_sft.settings.serve import ServeSettings
from minimind_sft.settings.spec import as_typed, changed, flags_of, names_of, problems, recorded, setting
from minimind_sft.settings.training import LoraSFTSettings, PretrainSettings, SFTSettings
from minimind_sft.training.identity import CHANGEABLE, common_settings


@dataclass(frozen=True)
class Garden:
    """Where things grow."""

    plants: int = setting(3, "number of plants", min=1, max=1000)
    water: float = setting(0.5, "litres per day", above=0, below=2)
    shade: float = setting(0.2, "share of the ground in the shade", kind="share")
    fence: bool = setting(False, "keep the deer out", decides="samples", recorded_as="has_fence")

    def problems(self) -> list[str]:
        return ["--plants 13 brings bad luck"] if self.plants == 13 else []


@dataclass(frozen=True)
class Farm:
    """A program with one group and one setting of its own."""

    garden: Garden = Garden(plants=5)
    name: str = setting("farm", "its name", kind="name")


def test_a_program_has_the_flags_of_its_groups_with_its_own_defaults():
    flags = flags_of(Farm)
    assert [(flag.name, flag.group, flag.type, flag.value) for flag in flags] == [
        ("plants", "garden", int, 5), ("water", "garden", float, 0.5), ("shade", "garden", float, 0.2),
        ("fence", "garden", bool, False), ("name", "", str, "farm")]
    assert [flag.value for flag in flags_of(changed(Farm(), plants=7, name="x"))] == [7, 0.5, 0.2, False, "x"]


def test_values_as_typed_and_as_recorded():
    farm = changed(Farm(), fence=True)
    assert as_typed(farm) == {"plants": 5, "water": 0.5, "shade": 0.2, "fence": 1, "name": "farm"}
    assert type(as_typed(farm)["fence"]) is int
    assert recorded(farm, "samples") == {"has_fence": 1}


@pytest.mark.parametrize(("values", "expected"), [
    ({}, []),
    ({"plants": 0}, ["--plants is 0, expected 1 to 1,000"]),
    ({"plants": 1001}, ["--plants is 1001, expected 1 to 1,000"]),
    ({"plants": 13}, ["--plants 13 brings bad luck"]),
    ({"water": 0.0}, ["--water is 0.0, expected more than 0 and less than 2"]),
    ({"water": 2.0}, ["--water is 2.0, expected more than 0 and less than 2"]),
    ({"water": float("nan")}, ["--water is nan, expected a finite number"]),
    ({"shade": 1.5}, ["--shade is 1.5, expected 0 to 1"]),
    ({"shade": float("inf")}, ["--shade is inf, expected a finite number"]),
    ({"name": "a/b"}, ["--name is 'a/b', expected a name; --save_dir is the folder"]),
    ({"name": "", "shade": -1.0}, ["--shade is -1.0, expected 0 to 1",
                                   "--name is '', expected a name; --save_dir is the folder"]),
])
def test_all_problems_are_listed(values, expected):
    assert problems(changed(Farm(), **values)) == expected


def test_a_step_of_more_rows_than_can_be_counted_is_refused():
    assert problems(changed(SFTSettings(), batch_size=10**5, accumulation_steps=10**4)) == []
    assert problems(changed(SFTSettings(), batch_size=10**9, accumulation_steps=10**9)) == [
        "--batch_size times --accumulation_steps is 1,000,000,000,000,000,000, expected at most 1,000,000,000 rows"]


def test_an_alpha_that_would_overflow_is_refused():
    assert problems(changed(LoraSFTSettings(), lora_alpha=10.0**6)) == []
    assert problems(changed(LoraSFTSettings(), lora_alpha=1e300)) == [
        "--lora_alpha is 1e+300, expected more than 0 and at most 1,000,000"]


@pytest.mark.parametrize("package", ["wandb", "swanlab", "tensorboard"])
def test_a_logger_that_is_not_installed_is_reported_before_anything_is_loaded(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert problems(changed(SFTSettings(), loggers=(package,))) == [
        f"--loggers {package} needs the package {package}: pip install {package}, or leave --loggers {package} out"]
    assert problems(changed(SFTSettings(), use_wandb=True)) == [
        "--use_wandb needs the package wandb: pip install wandb, or leave --use_wandb out"] * (package == "wandb")
    assert problems(SFTSettings()) == []


def test_use_wandb_is_one_of_the_loggers():
    chosen = [changed(SFTSettings(), loggers=loggers, use_wandb=use_wandb).logging.programs
              for loggers, use_wandb in (((), False), ((), True), (("tensorboard", "wandb"), True))]
    assert chosen == [[], ["wandb"], ["wandb", "tensorboard"]]


@pytest.mark.parametrize("program", PROGRAMS)
def test_defaults_have_no_problems_and_names_are_unique(program):
    names = [flag.name for flag in flags_of(program)]
    assert len(names) == len(set(names))
    assert problems(program()) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_80_columns(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = FlagParser(program, "Does something.").format_help()
    long = [line for line in page.splitlines() if len(line) > 80]
    assert [line for line in long if "{" not in line] == []  # a list of choices is never broken
    for flag in flags_of(program):
        assert flag.setting.help[0].islower() or re.match(r"[A-Z]", flag.setting.help)
        assert not flag.setting.help.endswith(".")


def test_help_has_a_heading_and_a_line_for_each_group(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = FlagParser(Farm, "Grows things.").format_help()
    assert "garden:\n  Where things grow.\n\n  --plants N\n      number of plants (default: 5)\n" in page
    assert "  --fence [{0,1}]\n      keep the deer out (default: 0)\n" in page


def test_groups_and_names_of_fine_tuning_settings():
    """Resume states, the comparison of ranks and Weights & Biases know settings by these names."""
    groups: dict[str, list[str]] = {}
    for flag in flags_of(SFTSettings):
        groups.setdefault(flag.group, []).append(flag.name)
    assert groups == {
        "data": ["data_path", "eval_data_path", "eval_share", "bad_rows", "prepared_dir", "tokenizer_path",
                 "max_seq_len", "seed", "truncation", "train_turns", "train_on_prompt", "chat_template",
                 "end_of_turn"],
        "model": ["from_weight", "preset", "hidden_size", "num_hidden_layers", "use_moe", "dropout", "freeze"],
        "optimizer": ["epochs", "max_steps", "batch_size", "accumulation_steps", "learning_rate", "schedule",
                      "min_lr_ratio", "decay_share", "warmup_steps", "weight_decay", "grad_clip", "max_bad_steps"],
        "runtime": ["device", "dtype", "micro_batch_tokens", "use_compile", "gradient_checkpointing", "parallel",
                    "rank_timeout", "local_rank", "num_workers"],
        "evaluation": ["eval_interval", "eval_samples", "eval_max_new_tokens", "best_by", "early_stop_patience"],
        "saving": ["save_dir", "save_dtype", "from_resume", "overwrite", "allow_changed_data", "keep_checkpoints",
                   "save_interval", "async_save", "keep_best", "save_weight"],
        "logging": ["log_interval", "loggers", "use_wandb", "wandb_project"],
    }


PATHS = {
    SFTSettings: ["data_path", "eval_data_path", "prepared_dir", "tokenizer_path", "chat_template", "from_weight",
                  "save_dir"],
    ChatSettings: ["weight", "save_dir", "tokenizer_path", "load_from", "chat_template", "score", "score_out",
                   "batch_in", "tools"],
    InspectSettings: ["data_path", "eval_data_path", "from_weight", "tokenizer_path", "chat_template"],
    EstimateSettings: ["from_weight", "save_dir", "tokenizer_path"],
    TokenizerSettings: ["data_path", "save_dir"],
    ConvertSettings: ["files", "tokenizer_path", "drop_in"],
    ConvertModelSettings: ["weight", "save_dir", "tokenizer_path", "chat_template", "lora_weight", "output"],
    MergeSettings: ["weight", "save_dir", "tokenizer_path", "chat_template"],
    EvaluateSettings: ["weight", "save_dir", "tokenizer_path", "load_from", "chat_template", "data_path", "choices",
                       "few_shot_path", "text_path", "against"],
    PlotSettings: ["metrics"],
    CompareSettings: ["metrics"],
    WatchSettings: ["metrics"],
    ServeSettings: ["weight", "save_dir", "tokenizer_path", "load_from", "chat_template"],
}


@pytest.mark.parametrize("program", PATHS)
def test_settings_that_are_paths(program):
    assert [flag.name for flag in flags_of(program) if flag.setting.kind == "path"] == PATHS[program]


def test_settings_that_change_only_with_allow_changed_data():
    assert set(CHANGEABLE) == {"data", "eval_data", "eval_share", "max_seq_len", "truncation", "supervised_turns",
                               "supervised_prompt", "bad_rows", "seed"}


def test_settings_recorded_in_the_resume_state():
    assert list(recorded(SFTSettings, "weights")) == [
        "dropout", "freeze", "epochs", "max_steps", "learning_rate", "schedule", "min_lr_ratio", "decay_share",
        "warmup_steps", "weight_decay", "grad_clip", "best_by", "early_stop_patience", "keep_best"]


def test_ranks_may_differ_in_paths_and_machines_only():
    assert set(as_typed(SFTSettings())) - set(common_settings(SFTSettings())) == {
        "data_path", "eval_data_path", "prepared_dir", "tokenizer_path", "chat_template", "save_dir", "from_weight",
        "device", "local_rank", "num_workers"}


def test_settings_repeated_in_suggested_commands():
    assert names_of(SFTSettings, "tokens") == ["tokenizer_path", "chat_template", "end_of_turn"]


@pytest.mark.parametrize("program", [PretrainSettings, ChatSettings, EstimateSettings, ConvertModelSettings,
                                     MergeSettings, EvaluateSettings])
def test_shape_settings_are_fields_of_the_model_config(program):
    assert names_of(program, "shape") == ["hidden_size", "num_hidden_layers", "use_moe"]
    assert all(hasattr(ModelConfig(), name) for name in names_of(program, "shape"))


def test_switches_are_recorded_as_0_and_1():
    """Resume states of version 0.1.0 have 0 and 1; true and false mean the same."""
    now = recorded(SFTSettings(), "weights")["keep_best"]
    assert (type(now), now) == (int, 1)
    assert all(json.loads(text) == now for text in ("1", "true"))
    assert all(json.loads(text) != now for text in ("0", "false"))


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("max_new_tokens", 0, "at least 1"), ("temperature", -0.1, "at least 0"), ("top_k", -1, "at least 0"),
    ("top_p", 0.0, "more than 0 and at most 1"), ("top_p", 1.1, "more than 0 and at most 1"),
    ("temperature", float("nan"), "a finite number"), ("repetition_penalty", 0.0, "0.001 to 1,000.0"),
])
def test_a_sampling_setting_out_of_range_is_refused(name, value, expected):
    with pytest.raises(UserError, match=f"^--{name} is {value}, expected {expected}$"):
        SamplingSettings(**{name: value})


def test_sampling_out_of_range_hides_no_other_flag_out_of_range():
    with pytest.raises(UserError, match=r"--batch_size is 0, expected at least 1\n +--top_k is -1, expected "):
        parse_flags(ChatSettings, "", ["--top_k", "-1", "--batch_size", "0"])


def test_the_inspector_plans_the_run_of_the_trainer_with_the_same_flags():
    inspector = changed(InspectSettings(), data_path=("a.jsonl",), batch_size=4, max_seq_len=9000)
    trainer = inspector.trainer()
    assert isinstance(trainer, SFTSettings) and problems(trainer) == []
    assert (trainer.data.data_path, trainer.optimizer.batch_size, trainer.optimizer.epochs) == (("a.jsonl",), 4, 2)
    text = changed(inspector, rows="text").trainer()
    assert isinstance(text, PretrainSettings) and text.optimizer.accumulation_steps == 8


@pytest.mark.parametrize("name", ["truncation", "train_turns", "train_on_prompt", "chat_template", "end_of_turn",
                                  "check_prompts"])
def test_the_inspector_refuses_conversation_flags_for_text(name):
    value = {"truncation": "drop", "train_turns": "last"}.get(name, True)
    assert problems(changed(InspectSettings(), **{name: value})) == []
    assert problems(changed(InspectSettings(), rows="text", **{name: value})) == [
        f"--{name}: expected only with --rows conversations"]


@pytest.mark.parametrize(("values", "expected"), [
    ({"score": ("q.jsonl",), "prompt": ("x",)}, ["--prompt does not go with --score"]),
    ({"score": ("q.jsonl",), "system": "x", "tools": "y"}, ["--system does not go with", "--tools does not go with"]),
    ({"score": ("q.jsonl",), "open_thinking": True}, []),
    ({"score_out": "o.jsonl"}, ["--score_out needs --score, whose results it holds"]),
    ({"batch_in": "q.jsonl"}, ["--batch_in and --batch_out need each other"]),
    ({"batch_in": "q.jsonl", "batch_out": "a.jsonl", "system": "x"}, ["--system does not go with --batch_in"]),
    ({"batch_in": "q.jsonl", "batch_out": "a.txt"}, ["--batch_out a.txt: expected a name that ends in .jsonl"]),
    ({"historys": -2}, ["--historys is -2, expected -1 (all that fit), 0 or more"]),
])
def test_conflicting_chat_flags_are_refused(values, expected):
    found = problems(changed(ChatSettings(), **values))
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(("values", "expected"), [
    ({"to": "gguf", "output": "a.gguf", "dtype": "q8_0"}, []),
    ({"to": "minimind", "output": "a.pth", "dtype": "float32"}, []),
    ({"to": "huggingface", "output": "SmolLM2-1.7B"}, []),
    ({"to": "gguf", "output": "folder"}, ["--output folder: expected a name that ends in .gguf for --to gguf"]),
    ({"to": "minimind", "output": "a.safetensors"},
     ["--output a.safetensors: expected a name that ends in .pth for --to minimind"]),
    ({"to": "huggingface", "output": "model.safetensors", "dtype": "q8_0"},
     ["--output model.safetensors: expected the name of a folder for --to huggingface, not of a file",
      "--dtype q8_0: --to huggingface has float32, float16, bfloat16"]),
])
def test_outputs_that_the_format_does_not_have_are_refused(values, expected):
    assert problems(changed(ConvertModelSettings(), **values)) == expected
