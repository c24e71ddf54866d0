"""A dataclass becomes a command line; what is wrong with it is told in one line."""

import pytest

from minimind_sft.config import PRESETS, REPOSITORY, ModelConfig, PretrainConfig, SFTConfig
from minimind_sft.errors import UserError
from minimind_sft.flags import parse_flags


def parse(*argv: str, config=SFTConfig):
    return parse_flags(config, "A test.", argv)


def test_minimind_command_lines_are_understood():
    config = parse("--save_dir", "o", "--epochs", "3", "--batch_size", "8", "--learning_rate", "1e-5", "--use_moe", "1",
                   "--accumulation_steps", "2", "--from_resume", "1", "--hidden_size", "768", "--dtype", "bfloat16")
    assert (config.save_dir, config.epochs, config.batch_size, config.learning_rate) == ("o", 3, 8, 1e-5)
    assert (config.use_moe, config.accumulation_steps, config.from_resume, config.hidden_size) == (1, 2, 1, 768)


def test_defaults_are_those_of_the_design():
    pretrain, sft = parse(config=PretrainConfig), parse()
    assert (pretrain.learning_rate, pretrain.max_seq_len, pretrain.from_weight) == (5e-4, 512, "none")
    assert (pretrain.epochs, pretrain.batch_size, pretrain.accumulation_steps) == (1, 32, 8)
    assert (sft.epochs, sft.batch_size, sft.accumulation_steps, sft.max_seq_len) == (2, 16, 1, 768)
    assert sft.from_weight == "pretrain"
    assert sft.data_path == (str(REPOSITORY / "dataset/sft_demo.jsonl"),)


@pytest.mark.parametrize(("argv", "message"), [
    (["--epochs", "0"], "--epochs is 0, expected at least 1"),
    (["--epochs", "two"], "argument --epochs: invalid int value: 'two'"),
    (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["--learning_rat", "1"], "unrecognized arguments: --learning_rat 1"),
    (["--learning_rate", "nan"], "--learning_rate is nan, expected more than 0"),
    (["--micro_batch_tokens", "100"], "--micro_batch_tokens 100 is below --max_seq_len 768"),
    (["--use_moe", "2"], "argument --use_moe: invalid choice: 2"),
    (["--save_weight", "a/b"], "--save_weight is 'a/b', expected a name"),
    (["--truncation", "middle"], "argument --truncation: invalid choice: 'middle'"),
    (["--data_path"], "--data_path: expected one or more files"),
])
def test_an_unusable_value_names_its_flag(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError, match=r"(?s)--epochs.*--eval_share"):
        parse("--epochs", "0", "--eval_share", "2")


def test_help_shows_defaults_relative_to_the_repository(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "dataset/sft_demo.jsonl" in shown
    assert str(REPOSITORY) not in shown


def test_a_path_that_minimind_takes_from_trainer_is_found_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert parse("--data_path", "../pyproject.toml").data_path == (str(REPOSITORY / "pyproject.toml"),)
    assert parse("--data_path", "../pyproject.toml:0.5").data_path == (str(REPOSITORY / "pyproject.toml:0.5"),)
    assert "taken relative to trainer/" in capsys.readouterr().err
    assert parse("--data_path", "../nowhere.jsonl").data_path == ("../nowhere.jsonl",)


def test_presets_have_the_sizes_of_their_names():
    assert (PRESETS["26m"].hidden_size, PRESETS["26m"].num_hidden_layers) == (512, 8)
    assert PRESETS["26m"].intermediate_size == 1664
    assert (PRESETS["64m-moe"].hidden_size, PRESETS["64m-moe"].use_moe) == (768, True)


@pytest.mark.parametrize(("fields", "message"), [
    ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple"),
    ({"head_dim": 7}, "head_dim is 7, expected an even number"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 exceeds num_experts 4"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected at least 1"),
])
def test_a_contradictory_model_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**fields)


def test_a_sidecar_with_an_unknown_field_is_refused_by_name():
    with pytest.raises(UserError, match=r"x\.json: model configuration: unknown field 'hiden_size'"):
        ModelConfig.from_dict({"hiden_size": 3}, "x.json")


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("--rank_timeout", "nan", "--rank_timeout is nan, expected a finite number"),
    ("--learning_rate", "inf", "--learning_rate is inf, expected a finite number"),
    ("--rank_timeout", "0", "--rank_timeout is 0.0, expected at least 1"),
    ("--epochs", "100000000000000000000", "--epochs is 100000000000000000000, expected at most 1,000,000,000"),
])
def test_a_number_that_cannot_be_used_is_one_line(flag, value, message):
    with pytest.raises(UserError) as error:
        parse(flag, value)
    assert str(error.value) == message
