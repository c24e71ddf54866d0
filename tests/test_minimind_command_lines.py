"""The command lines of MiniMind's README at commit d65ef2c work here; docs/minimind.md lists them."""

import re
import shlex
from pathlib import Path

import pytest
from programs import PRETRAIN, REPOSITORY, SFT, final_weights, questions, refuse, succeed, write_rows

from minimind_sft.errors import UserError
from minimind_sft.settings.chat import ChatSettings
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.serve import ServeSettings
from minimind_sft.settings.spec import as_typed
from minimind_sft.settings.training import PretrainSettings, SFTSettings

pytestmark = pytest.mark.slow

PROGRAMS = {"train_pretrain.py": PretrainSettings, "train_full_sft.py": SFTSettings, "eval_llm.py": ChatSettings,
            "serve_openai_api.py": ServeSettings}

RUN = [
    "python train_pretrain.py",
    "python train_full_sft.py",
    "python train_pretrain.py --from_resume 1",
    "python train_full_sft.py --from_resume 1",
    "torchrun --nproc_per_node 1 train_pretrain.py",
    "torchrun --nproc_per_node 1 train_full_sft.py",
    "python train_pretrain.py --use_wandb",
    "python train_full_sft.py --use_wandb",
    "python eval_llm.py --weight full_sft",
    "python eval_llm.py --weight pretrain",
    "python eval_llm.py --load_from ./model --weight full_sft",
    "python eval_llm.py --weight full_sft --inference_rope_scaling",
    "python eval_llm.py --weight full_sft --lora_weight lora_medical",
    "python eval_llm.py --weight full_sft --lora_weight lora_identity",
    "python serve_openai_api.py",
]

WHOLE_MODEL = [
    "python eval_llm.py --load_from ./minimind-3",
    "python eval_llm.py --load_from ./minimind-3 --open_thinking 1",
]

TRAINER_DEFAULTS = {
    "save_dir": "../out", "epochs": 2, "device": "cuda:0", "dtype": "bfloat16", "num_workers": 8, "grad_clip": 1.0,
    "log_interval": 100, "save_interval": 1000, "hidden_size": 768, "num_hidden_layers": 8, "use_moe": 0,
    "from_resume": 0, "use_wandb": 0, "use_compile": 0,
}
DEFAULTS = {
    "train_pretrain.py": {
        **TRAINER_DEFAULTS, "save_weight": "pretrain", "batch_size": 32, "learning_rate": 5e-4, "accumulation_steps": 8,
        "max_seq_len": 340, "data_path": "../dataset/pretrain_t2t_mini.jsonl", "from_weight": "none",
        "wandb_project": "MiniMind-Pretrain",
    },
    "train_full_sft.py": {
        **TRAINER_DEFAULTS, "save_weight": "full_sft", "batch_size": 16, "learning_rate": 1e-5, "accumulation_steps": 1,
        "max_seq_len": 768, "data_path": "../dataset/sft_t2t_mini.jsonl", "from_weight": "pretrain",
        "wandb_project": "MiniMind-Full-SFT",
    },
    "eval_llm.py": {
        "load_from": "model", "save_dir": "out", "weight": "full_sft", "lora_weight": "None", "hidden_size": 768,
        "num_hidden_layers": 8, "use_moe": 0, "inference_rope_scaling": 0, "max_new_tokens": 8192, "temperature": 0.85,
        "top_p": 0.95, "open_thinking": 0, "historys": 0, "show_speed": 1, "device": "cuda",
    },
    "serve_openai_api.py": {
        "load_from": "model", "save_dir": "out", "weight": "full_sft", "lora_weight": "None", "hidden_size": 768,
        "num_hidden_layers": 8, "use_moe": 0, "inference_rope_scaling": 0, "device": "cuda",
    },
}
"""All flags of the programs with MiniMind's defaults, except for --max_seq_len of its server."""


def parse(line: str) -> dict:
    """Returns the settings that a command line gives the program it names, by their flags."""
    words = shlex.split(line)
    at = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return as_typed(parse_flags(PROGRAMS[words[at]], "", words[at + 1:]))


@pytest.mark.parametrize("folder", [".", "trainer"])
@pytest.mark.parametrize("line", RUN)
def test_a_command_line_of_minimind_is_understood(line, folder, monkeypatch):
    monkeypatch.chdir(REPOSITORY / folder)
    if "--load_from" in line and folder == "trainer":
        line = line.replace("./model", "../model")  # eval_llm.py is in the root of both projects
    settings = parse(line)
    assert settings.get("use_wandb", 0) == ("--use_wandb" in line)
    assert settings.get("inference_rope_scaling", 0) == ("--inference_rope_scaling" in line)
    assert settings.get("from_resume", 0) == ("--from_resume 1" in line)
    if "--load_from" in line:
        assert Path(settings["tokenizer_path"]).resolve() == REPOSITORY / "model"


@pytest.mark.parametrize("line", WHOLE_MODEL)
def test_load_from_may_name_a_whole_model(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minimind-3").mkdir()
    (tmp_path / "minimind-3/model.safetensors").touch()
    settings = parse(line)
    assert (settings["weight"], settings["tokenizer_path"]) == ("./minimind-3", None)


@pytest.mark.parametrize("folder", [".", "trainer"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_every_flag_of_minimind_accepts_minimind_s_default(name, folder, monkeypatch):
    monkeypatch.chdir(REPOSITORY / folder)
    flags = {flag: value for flag, value in DEFAULTS[name].items() if (flag, folder) != ("load_from", "trainer")}
    settings = parse(shlex.join([name, *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]))
    paths = {"save_dir", "data_path", "load_from"}
    expected = {flag: () if flag == "lora_weight" else value for flag, value in flags.items() if flag not in paths}
    assert {flag: settings[flag] for flag in expected} == expected
    is_beside_trainer = not name.startswith("train_") and folder == "trainer"
    assert Path(settings["save_dir"]).resolve() == REPOSITORY / ("trainer" if is_beside_trainer else "") / "out"


def test_the_page_lists_these_command_lines_and_flags():
    page = (REPOSITORY / "docs/minimind.md").read_text(encoding="utf-8")
    for line in (*RUN, *WHOLE_MODEL):
        assert line in page
    for name in {flag for flags in DEFAULTS.values() for flag in flags}:
        assert f"`--{name}`" in page


def test_the_page_s_commands_reproduce_minimind_s_defaults():
    page = (REPOSITORY / "docs/minimind.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1].replace("\\\n", "").splitlines()
    assert len(commands) == 2
    for command in commands:
        settings, expected = parse(command), DEFAULTS[shlex.split(command)[1]]
        for name in ("epochs", "batch_size", "accumulation_steps", "learning_rate", "grad_clip", "hidden_size",
                     "max_seq_len", "from_weight", "save_weight", "use_wandb", "use_compile"):
            assert settings[name] == expected[name], name
        shared = ("min_lr_ratio", "warmup_steps", "dropout", "eval_share")
        assert [settings[name] for name in shared] == [0.1, 0, 0.0, 0.0]


def test_the_length_of_minimind_s_server_is_that_of_the_cache():
    with pytest.raises(UserError, match="unknown flag --max_seq_len: here it is --cache_tokens, of all requests"):
        parse("python serve_openai_api.py --max_seq_len 8192")


@pytest.mark.parametrize(("argv", "message"), [
    ("--load_from nowhere", "--load_from nowhere: no such folder"),
    ("--load_from one --tokenizer_path two",
     "--load_from one and --tokenizer_path two both name the tokenizer's folder: give one of them"),
    ("--load_from hf --weight bin", "--load_from hf and --weight bin both name the weights: give one of them"),
])
def test_an_unusable_load_from_is_refused(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hf/model.safetensors", "one/tokenizer.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="load_from") as error:
        parse(f"eval_llm.py {argv}")
    assert message in str(error.value)


def test_load_from_names_the_tokenizer(tmp_path):
    assert parse(f"eval_llm.py --load_from {tmp_path}")["tokenizer_path"] == str(tmp_path)
    assert parse(f"eval_llm.py --load_from {tmp_path} --tokenizer_path {tmp_path}")["tokenizer_path"] == str(tmp_path)


def test_local_rank_must_agree_with_the_environment(monkeypatch):
    assert parse("train_full_sft.py --local_rank 0")["local_rank"] == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parse("train_full_sft.py --local-rank=1")["local_rank"] == 1
    with pytest.raises(UserError, match="--local_rank is 0, but the environment's LOCAL_RANK is 1"):
        parse("train_full_sft.py --local-rank=0")


@pytest.fixture
def pasted(tmp_path):
    """Runs a trainer with a pasted command line from a folder beside dataset/ and out/, as MiniMind's users do."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "trainer").mkdir()
    write_rows(tmp_path / "dataset/pretrain.jsonl", [{"text": f"{i} comes after {i - 1}."} for i in range(24)])
    write_rows(tmp_path / "dataset/sft.jsonl", questions(24))

    def run(script: str, line: str) -> str:
        return succeed(script, *shlex.split(line), cwd=tmp_path / "trainer", WANDB_MODE="disabled")

    return run


def test_pasted_command_lines_pretrain_and_fine_tune(pasted, tmp_path):
    said = pasted(PRETRAIN, "--data_path ../dataset/pretrain.jsonl --save_dir ../out --from_weight none "
                            "--hidden_size 32 --num_hidden_layers 2 --use_moe 0 --epochs 1 --batch_size 4 "
                            "--accumulation_steps 2 --max_seq_len 340 --learning_rate 5e-4 --dtype bfloat16 "
                            "--device cpu --grad_clip 1.0 --num_workers 1 --log_interval 1 --save_interval 100 "
                            "--from_resume 0 --use_compile 0 --save_weight pretrain --use_wandb --wandb_project "
                            "MiniMind-Pretrain --local_rank 0")
    assert f"--weight {tmp_path}/out/pretrain_32.pth" in said  # not .../trainer/../out
    pasted(SFT, "--data_path ../dataset/sft.jsonl --save_dir ../out --from_weight pretrain --hidden_size 32 "
                "--num_hidden_layers 2 --epochs 1 --batch_size 4 --max_seq_len 340 --learning_rate 1e-5 "
                "--dtype float32 --log_interval 1 --save_interval 100 --from_resume 1")
    weights = final_weights(tmp_path / "out")
    assert weights["model.embed_tokens.weight"].shape == (6400, 32)
    assert "model.layers.1.mlp.down_proj.weight" in weights


def test_a_missing_gpu_is_refused_in_one_line(monkeypatch):
    assert "--device cuda:0: PyTorch finds no CUDA device here" in refuse(
        SFT, *shlex.split("--device cuda:0 --hidden_size 768"), CUDA_VISIBLE_DEVICES="")
