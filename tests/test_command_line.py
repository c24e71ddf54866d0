"""Reading a program's settings from its command line, and reporting bad flags."""

import pytest
from all_settings import PROGRAMS

from minimind_sft.errors import UserError
from minimind_sft.paths import REPOSITORY
from minimind_sft.settings.chat import ChatSettings
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.foreign_flags import NOT_HERE, OURS
from minimind_sft.settings.scripts import InspectSettings
from minimind_sft.settings.spec import as_typed, flags_of
from minimind_sft.settings.training import PretrainSettings, SFTSettings


def parse(*argv: str, program=SFTSettings):
    return parse_flags(program, "A test.", argv)


def test_flags_land_in_their_groups():
    settings = parse("--save_dir", "o", "--epochs", "3", "--batch_size", "8", "--learning_rate", "1e-5", "--use_moe",
                     "1", "--from_resume", "1", "--hidden_size", "768", "--dtype", "bfloat16", "--max_seq_len", "64")
    optimizer, model, saving = settings.optimizer, settings.model, settings.saving
    assert (optimizer.epochs, optimizer.batch_size, optimizer.learning_rate) == (3, 8, 1e-5)
    assert (model.use_moe, model.hidden_size, saving.from_resume, saving.save_dir) == (True, 768, True, "o")
    assert (settings.runtime.dtype, settings.data.max_seq_len) == ("bfloat16", 64)


def test_defaults_are_those_of_the_design():
    pretrain, sft = as_typed(parse(program=PretrainSettings)), as_typed(parse())
    names = ("learning_rate", "max_seq_len", "from_weight", "epochs", "batch_size", "accumulation_steps")
    assert [pretrain[name] for name in names] == [5e-4, 512, "none", 1, 32, 8]
    assert [sft[name] for name in names] == [5e-4, 768, "pretrain", 2, 16, 1]
    assert sft["data_path"] == (str(REPOSITORY / "dataset/sft_demo.jsonl"),)


@pytest.mark.parametrize(("argv", "message"), [
    (["--epochs", "0"], "--epochs is 0, expected 1 to 1,000,000,000"),
    (["--epochs", "two"], "--epochs: expected a whole number, found 'two'"),
    (["--grad_clip", "much"], "--grad_clip: expected a number, found 'much'"),
    (["--epochs"], "--epochs: expected one argument"),
    (["more"], "these words belong to no flag: more"),
    (["--learning_rate", "nan"], "--learning_rate is nan, expected a finite number"),
    (["--micro_batch_tokens", "100"], "--micro_batch_tokens 100 is below --max_seq_len 768"),
    (["--use_moe", "2"], "--use_moe: expected 0 or 1, found '2'"),
    (["--use_wandb", "yes"], "--use_wandb: expected 0 or 1, found 'yes'"),
    (["--local_rank", "1"], "--local_rank is 1, but the environment's LOCAL_RANK is 0"),
    (["--save_weight", "a/b"], "--save_weight is 'a/b', expected a name"),
    (["--truncation", "middle"], "--truncation: expected tail, turns or drop, found 'middle' (--help lists all flags)"),
    (["--data_path"], "--data_path: expected at least one argument"),
    (["--data_path", "a.jsonl", ""], "--data_path: expected a path, found nothing"),
    (["--save_dir", ""], "--save_dir: expected a path, found nothing"),
    (["--from_weight="], "--from_weight: expected a path, found nothing"),
    (["--seed=--"], "--seed: expected a value, found '--'"),
    (["--epochs", "9" * 9000], f"--epochs: expected a whole number, found '{'9' * 40}'"),
    (["--truncation", "x" * 9000], f"found '{'x' * 40}'"),
    (["--wandb_project", "a\udcff"], r"--wandb_project: expected text in valid UTF-8, found 'a\udcff'"),
    (["--save_weight", "\udcff"], r"--save_weight: expected text in valid UTF-8, found '\udcff'"),
])
def test_an_unusable_value_names_its_flag(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value)


@pytest.mark.parametrize(("found", "meant"), [
    ("bf16", "bfloat16"), ("fp16", "float16"), ("Float32", "float32"), ("int8", None)])
def test_a_mistyped_choice_gets_a_suggestion(found, meant):
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
    (["--lora_name", "x"], "--lora_name: trainer/train_lora.py trains adapters"),
    (["--beta", "1"], "--beta: preference optimisation and reinforcement learning are not here yet"),
    (["--zzz"], "--zzz"),
])
def test_an_unknown_flag_gets_a_suggestion(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert str(error.value) == f"unknown flag {message} (--help lists all flags)"


def test_only_flags_of_the_program_are_suggested():
    for program, message in ((ChatSettings, "here it is --max_new_tokens"), (SFTSettings, "here it is --max_seq_len")):
        with pytest.raises(UserError, match=message):
            parse("--max_length", "5", program=program)
    with pytest.raises(UserError, match=r"^unknown flag --lr \("):
        parse("--lr", "5", program=ChatSettings)


def test_every_suggestion_is_a_flag_of_some_program():
    ours = {str(flag) for program in PROGRAMS for flag in flags_of(program)} | {"FILE"}
    assert {suggestion.split()[0].rstrip(",") for suggestion in OURS} <= ours
    assert all(isinstance(names, tuple) for names in (*OURS.values(), *NOT_HERE.values()))


def test_all_unknown_flags_are_reported_at_once():
    with pytest.raises(UserError, match=r"(?s)--lr: .*\n.*--bf16: "):
        parse("--lr", "1", "--epochs", "2", "--bf16")


def test_a_list_given_twice_is_refused():
    with pytest.raises(UserError) as error:
        parse("--data_path", "a.jsonl", "b.jsonl", "--epochs", "2", "--data-path=c.jsonl", "--epochs", "3")
    assert str(error.value) == ("--data_path is given 2 times, and only the last would count: put all values behind "
                                "one (--help lists all flags)")
    assert parse("--epochs", "2", "--epochs", "3").optimizer.epochs == 3


@pytest.mark.parametrize(("argv", "message"), [
    (["\u2013epochs", "2"], "\u2013epochs: a flag begins with two plain dashes, --epochs"),
    (["\u2014\u2014epochs", "2"], "\u2014\u2014epochs: a flag begins with two plain dashes, --epochs"),
    (["--epochs\u30002"], "'--epochs\\u30002': expected a plain space after --epochs"),
    (["--epochs\xa02"], "'--epochs\\xa02': expected a plain space after --epochs"),
])
def test_typographic_dashes_and_spaces_are_named(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert str(error.value) == f"{message} (--help lists all flags)"


def test_a_prompt_may_begin_with_any_dash():
    for prompt in ("——你好", "-- 你好", "--prompt 你好", "–5"):
        assert parse("--prompt", prompt, program=ChatSettings).questions.prompt == (prompt,)


def test_flags_may_use_dashes_and_equals_signs():
    settings = parse("--learning-rate=1e-5", "--save-dir", "a-b", "--data_path=x=y.jsonl", "--use-wandb")
    assert (settings.optimizer.learning_rate, settings.saving.save_dir) == (1e-5, "a-b")
    assert (settings.data.data_path, settings.logging.use_wandb) == (("x=y.jsonl",), True)


SWITCHES = ["train_on_prompt", "use_moe", "use_compile", "gradient_checkpointing", "from_resume", "overwrite",
            "allow_changed_data", "async_save", "keep_best", "use_wandb"]


def test_switches_of_a_trainer():
    assert [flag.name for flag in flags_of(SFTSettings) if flag.type is bool] == SWITCHES


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_works_bare_and_with_a_value(switch):
    def value(*argv: str):
        return next(flag.value for flag in flags_of(parse(*argv)) if flag.name == switch)

    assert value(f"--{switch}") is value(f"--{switch}", "--epochs", "1") is value(f"--{switch}", "1") is True
    assert value(f"--{switch}", "0") is value(f"--{switch}=0") is False


def test_a_bare_switch_does_not_consume_the_file_after_it():
    settings = parse("--strict", "0.jsonl", program=InspectSettings)
    assert (settings.report.strict, settings.data.data_path) == (True, ("0.jsonl",))
    settings = parse("--strict", "0", "a.jsonl", "b.jsonl", "--json", program=InspectSettings)
    assert (settings.report.strict, settings.data.data_path) == (False, ("a.jsonl", "b.jsonl"))
    assert settings.report.json


def test_prompts_and_files_may_begin_with_dashes():
    assert parse("--prompt", "-5", "- a list", "--x=1 is what?", program=ChatSettings).questions.prompt == \
        ("-5", "- a list", "--x=1 is what?")
    assert parse("--", "--lr", program=InspectSettings).data.data_path == ("--lr",)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UserError, match=r"(?s)--eval_share.*--epochs"):
        parse("--epochs", "0", "--eval_share", "2")


def test_help_shows_defaults_relative_to_the_repository(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "dataset/sft_demo.jsonl" in shown
    assert str(REPOSITORY) not in shown


def test_a_path_relative_to_trainer_is_found_from_the_root_with_a_notice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert parse("--data_path", "../pyproject.toml").data.data_path == (str(REPOSITORY / "pyproject.toml"),)
    with_share = parse("--data_path", "../pyproject.toml:0.5").data.data_path
    assert with_share == (str(REPOSITORY / "pyproject.toml:0.5"),)
    assert "taken relative to trainer/" in capsys.readouterr().err
    assert parse("--data_path", "../nowhere.jsonl").data.data_path == ("../nowhere.jsonl",)
    monkeypatch.chdir(tmp_path)
    # Nobody would look for it in this repository.
    assert parse("--save_dir", "../out").saving.save_dir == "../out"


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("--rank_timeout", "nan", "--rank_timeout is nan, expected a finite number"),
    ("--learning_rate", "inf", "--learning_rate is inf, expected a finite number"),
    ("--rank_timeout", "0", "--rank_timeout is 0.0, expected 1 to 1,000,000,000"),
    ("--hidden_size", "9" * 4000, f"--hidden_size is {'9' * 40}, expected at most 1,000,000,000"),
    ("--micro_batch_tokens", "1000000001", "--micro_batch_tokens is 1000000001, expected at most 1,000,000,000"),
    ("--num_workers", "2000", "--num_workers is 2000, expected 0 to 1,024"),
    ("--seed", str(2**64), f"--seed is {2**64}, expected 0 to 4,611,686,018,427,387,904"),
    ("--epochs", "100000000000000000000", "--epochs is 100000000000000000000, expected 1 to 1,000,000,000"),
])
def test_an_unusable_number_is_reported_in_one_line(flag, value, message):
    with pytest.raises(UserError) as error:
        parse(flag, value)
    assert str(error.value) == message
