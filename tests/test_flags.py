"""A dataclass becomes a command line; what is wrong with it is told in one line."""

from dataclasses import fields

import pytest

from minimind_sft.config import ChatConfig, PretrainConfig, SFTConfig, TokenizerConfig
from minimind_sft.errors import UserError
from minimind_sft.flags import parse_flags
from minimind_sft.foreign_flags import NOT_HERE, OURS
from minimind_sft.model.config import PRESETS, ModelConfig
from minimind_sft.paths import REPOSITORY
from minimind_sft.script_config import EstimateConfig, InspectConfig


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
    (["--epochs", "two"], "--epochs: expected a whole number, found 'two'"),
    (["--grad_clip", "much"], "--grad_clip: expected a number, found 'much'"),
    (["--epochs"], "--epochs: expected one argument"),
    (["more"], "unrecognized arguments: more"),
    (["--learning_rate", "nan"], "--learning_rate is nan, expected more than 0"),
    (["--micro_batch_tokens", "100"], "--micro_batch_tokens 100 is below --max_seq_len 768"),
    (["--use_moe", "2"], "--use_moe: expected 0 or 1, found '2'"),
    (["--use_wandb", "yes"], "--use_wandb: expected 0 or 1, found 'yes'"),
    (["--local_rank", "1"], "--local_rank is 1, but the environment's LOCAL_RANK is 0"),
    (["--save_weight", "a/b"], "--save_weight is 'a/b', expected a name"),
    (["--truncation", "middle"], "--truncation: expected tail, turns or drop, found 'middle' (--help lists all flags)"),
    (["--data_path"], "--data_path: expected one or more files"),
])
def test_an_unusable_value_names_its_flag(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value)


@pytest.mark.parametrize(("found", "meant"), [
    ("bf16", "bfloat16"), ("fp16", "float16"), ("Float32", "float32"), ("int8", None)])
def test_a_mistyped_choice_is_answered_with_the_one_that_may_be_meant(found, meant):
    with pytest.raises(UserError) as error:
        parse("--dtype", found)
    assert str(error.value) == (f"--dtype: expected auto, float32, bfloat16 or float16, found '{found}'"
                                + (f"; did you mean {meant}?" if meant else "") + " (--help lists all flags)")


@pytest.mark.parametrize(("argv", "message"), [
    (["--learning_rat", "1"], "--learning_rat: did you mean --learning_rate?"),
    (["--learning-rat=1"], "--learning-rat: did you mean --learning_rate?"),
    (["-epochs", "1"], "-epochs: did you mean --epochs?"),
    (["--EPOCHS", "1"], "--EPOCHS: did you mean --epochs?"),
    (["--warmup", "1"], "--warmup: did you mean --warmup_steps?"),
    (["--lr", "1"], "--lr: here it is --learning_rate"),
    (["--per_device_train_batch_size", "1"], "--per_device_train_batch_size: here it is --batch_size"),
    (["--num_train_epochs", "1"], "--num_train_epochs: here it is --epochs"),
    (["--output_dir", "x"], "--output_dir: here it is --save_dir"),
    (["--model_name_or_path", "x"], "--model_name_or_path: here it is --from_weight"),
    (["--gradient_accumulation_steps", "1"], "--gradient_accumulation_steps: here it is --accumulation_steps"),
    (["--max_length", "1"], "--max_length: here it is --max_seq_len"),
    (["--bf16", "True"], "--bf16: here it is --dtype bfloat16"),
    (["--warmup_ratio", "0.1"], "--warmup_ratio: here it is --warmup_steps, in steps"),
    (["--m", "0.1"], "--m: did you mean --max_seq_len?"),
    (["--bf16=True"], "--bf16: here it is --dtype bfloat16"),
    (["--out_dir", "x"], "--out_dir: here it is --save_dir"),
    (["--lora_name", "x"], "--lora_name: LoRA is not here yet; trainer/train_full_sft.py trains all weights"),
    (["--beta", "1"], "--beta: preference optimisation and reinforcement learning are not here yet"),
    (["--zzz"], "--zzz"),
])
def test_an_unknown_flag_is_answered_with_what_may_be_meant(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert str(error.value) == f"unknown flag {message} (--help lists all flags)"


def test_what_a_program_does_not_have_is_not_suggested():
    for config, message in ((ChatConfig, "here it is --max_new_tokens"), (SFTConfig, "here it is --max_seq_len")):
        with pytest.raises(UserError, match=message):
            parse("--max_length", "5", config=config)
    with pytest.raises(UserError, match=r"^unknown flag --lr \("):
        parse("--lr", "5", config=ChatConfig)


def test_every_suggestion_is_a_flag_of_some_program():
    programs = (PretrainConfig, SFTConfig, ChatConfig, TokenizerConfig, InspectConfig, EstimateConfig)
    ours = {f"--{flag.name}" for program in programs for flag in fields(program)} | {"FILE", "--out"}
    assert {suggestion.split()[0].rstrip(",") for suggestion in OURS} <= ours
    assert all(isinstance(names, tuple) for names in (*OURS.values(), *NOT_HERE.values()))


def test_all_unknown_flags_are_told_at_once():
    with pytest.raises(UserError, match=r"(?s)--lr: .*\n.*--bf16: "):
        parse("--lr", "1", "--epochs", "2", "--bf16")


def test_a_list_that_is_given_twice_would_lose_its_first_part():
    with pytest.raises(UserError) as error:
        parse("--data_path", "a.jsonl", "b.jsonl", "--epochs", "2", "--data-path=c.jsonl", "--epochs", "3")
    assert str(error.value) == ("--data_path is given 2 times, and only the last would count: put all values behind "
                                "one (--help lists all flags)")
    assert parse("--epochs", "2", "--epochs", "3").epochs == 3


@pytest.mark.parametrize(("argv", "message"), [
    (["\u2013epochs", "2"], "\u2013epochs: a flag begins with two plain dashes, --epochs"),
    (["\u2014\u2014epochs", "2"], "\u2014\u2014epochs: a flag begins with two plain dashes, --epochs"),
    (["--epochs\u30002"], "'--epochs\\u30002': expected a plain space after --epochs"),
    (["--epochs\xa02"], "'--epochs\\xa02': expected a plain space after --epochs"),
])
def test_dashes_and_spaces_of_a_web_page_are_named(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert str(error.value) == f"{message} (--help lists all flags)"


def test_a_prompt_may_begin_with_any_dash():
    for prompt in ("——你好", "-- 你好", "--prompt 你好", "–5"):
        assert parse("--prompt", prompt, config=ChatConfig).prompt == [prompt]


def test_dashes_and_equals_signs_in_flags():
    config = parse("--learning-rate=1e-5", "--save-dir", "a-b", "--data_path=x=y.jsonl", "--use-wandb")
    assert (config.learning_rate, config.save_dir, config.data_path) == (1e-5, "a-b", ("x=y.jsonl",))
    assert config.use_wandb == 1


@pytest.mark.parametrize("switch", [flag.name for flag in fields(SFTConfig) if flag.metadata["choices"] == (0, 1)])
def test_every_switch_works_bare_and_with_a_value(switch):
    assert getattr(parse(f"--{switch}"), switch) == 1
    assert getattr(parse(f"--{switch}", "--epochs", "1"), switch) == 1
    assert getattr(parse(f"--{switch}", "1"), switch) == 1
    assert getattr(parse(f"--{switch}", "0"), switch) == 0
    assert getattr(parse(f"--{switch}=0"), switch) == 0


def test_a_bare_switch_leaves_the_file_behind_it_alone():
    config = parse("--strict", "0.jsonl", config=InspectConfig)
    assert (config.strict, config.data_path) == (1, ("0.jsonl",))
    config = parse("--strict", "0", "a.jsonl", "b.jsonl", "--json", config=InspectConfig)
    assert (config.strict, config.data_path, config.json) == (0, ("a.jsonl", "b.jsonl"), 1)


def test_a_prompt_may_begin_with_a_dash_and_hold_anything_after_two():
    assert parse("--prompt", "-5", "- a list", "--x=1 is what?", config=ChatConfig).prompt == \
        ["-5", "- a list", "--x=1 is what?"]
    assert parse("--", "--lr", config=InspectConfig).data_path == ("--lr",)


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


def test_a_path_that_minimind_takes_from_trainer_is_found_in_the_root_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert parse("--data_path", "../pyproject.toml").data_path == (str(REPOSITORY / "pyproject.toml"),)
    assert parse("--data_path", "../pyproject.toml:0.5").data_path == (str(REPOSITORY / "pyproject.toml:0.5"),)
    assert "taken relative to trainer/" in capsys.readouterr().err
    assert parse("--data_path", "../nowhere.jsonl").data_path == ("../nowhere.jsonl",)
    monkeypatch.chdir(tmp_path)
    assert parse("--save_dir", "../out").save_dir == "../out"  # not this repository's: nobody would look for it there


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
