"""The programs run as a user runs them, on small data with good and bad input."""

import json
import re
from pathlib import Path

import pytest
import torch
from programs import (
    CHAT,
    NEW,
    PRETRAIN,
    REPOSITORY,
    SFT,
    TORCHRUN,
    final_weights,
    questions,
    refuse,
    succeed,
    write_rows,
)

from minimind_sft.device import compiles_rightly

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """Returns a folder with pretrain_32.pth, made by the recipe."""
    folder = tmp_path_factory.mktemp("out")
    data = write_rows(folder / "text.jsonl", [{"text": f"The number {i} comes before {i + 1}."} for i in range(60)])
    shown = succeed(PRETRAIN, "--data_path", data, "--save_dir", folder, "--hidden_size", 32, "--num_hidden_layers", 2,
                    "--batch_size", 8, "--accumulation_steps", 2, "--max_seq_len", 64)
    assert "wrote" in shown
    return folder


def test_pretrain_then_sft_then_chat(pretrained, sft_data, tmp_path):
    shown = succeed(SFT, "--from_weight", pretrained / "pretrain_32.pth", "--data_path", sft_data, "--save_dir",
                    tmp_path, "--batch_size", 4, "--learning_rate", "3e-3", "--epochs", 30, "--eval_share", "0.1")
    losses = [float(x) for x in re.findall(r"validation loss ([\d.]+)", shown)]
    assert len(losses) >= 10 and min(losses) < 0.5 * losses[0], "the validation loss falls"
    assert "perplexity" in shown

    sidecar = json.loads((tmp_path / "full_sft_32.json").read_text())
    assert sidecar["stage"] == "full_sft"
    assert sidecar["model"]["hidden_size"] == 32
    assert "trainer/train_full_sft.py" in sidecar["training"]["command"]
    best = min(json.loads(line)["eval_loss"] for line in (tmp_path / "full_sft_32_metrics.jsonl").open()
               if "eval_loss" in json.loads(line))
    assert sidecar["training"]["eval_loss"] == pytest.approx(best)
    tensors = torch.load(tmp_path / "full_sft_32.pth", weights_only=True)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}

    chatted = succeed(CHAT, "--save_dir", tmp_path, "--temperature", 0, "--show_speed", 0, "--max_new_tokens", 12,
                      typed="Say 2.\nSay 3.\n\n")
    assert "It is" in chatted
    scored = succeed(CHAT, "--save_dir", tmp_path, "--score", sft_data, "--max_new_tokens", 12)
    rows = scored.strip().splitlines()
    assert rows[0].split() == ["kind", "questions", "exact", "match"]
    assert [row.split()[:2] for row in rows[1:3]] == [["even", "20"], ["odd", "20"]]
    assert re.fullmatch(r"exact match: \d+\.\d% \(40 questions\)", rows[-1])


def test_pretrained_weights_continue_text(pretrained):
    shown = succeed(CHAT, "--save_dir", pretrained, "--weight", "pretrain", "--prompt", "The number",
                    "--temperature", 0, "--max_new_tokens", 5)
    assert shown.startswith("> The number\n")
    assert "tokens/s" in shown


def test_sampled_answers_depend_only_on_the_seed(pretrained):
    answer = [succeed(CHAT, "--save_dir", pretrained, "--weight", "pretrain", "--prompt", "The", "--show_speed", 0,
                      "--max_new_tokens", 20, "--temperature", 1.5, "--top_k", 50, "--top_p", 0.95,
                      "--repetition_penalty", 1.2, "--seed", seed) for seed in (1, 1, 2)]
    assert answer[0] == answer[1] != answer[2]


def test_mixture_of_experts_weights_have_their_own_file(sft_data, tmp_path):
    succeed(SFT, *NEW, "--use_moe", 1, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 3)
    tensors = torch.load(tmp_path / "full_sft_32_moe.pth", weights_only=True)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in tensors
    metrics = [json.loads(line) for line in (tmp_path / "full_sft_32_moe_metrics.jsonl").open()]
    assert any("aux_loss" in line for line in metrics)
    assert "exact match" in succeed(CHAT, "--save_dir", tmp_path, "--score", sft_data, "--max_new_tokens", 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_training_works_in_half_precision(sft_data, tmp_path, dtype):
    shown = succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 6, "--dtype", dtype)
    assert f"parameters; {dtype}" in shown
    assert all(torch.isfinite(tensor).all() for tensor in final_weights(tmp_path).values())


def test_two_ranks_end_with_the_weights_of_one(sft_data, tmp_path):
    common = [*NEW, "--data_path", sft_data, "--max_steps", 6, "--save_dtype", "float32", "--dtype", "float32",
              "--save_interval", 1, "--async_save", 1]
    succeed(SFT, *common, "--batch_size", 4, "--save_dir", tmp_path / "one")
    succeed(SFT, *common, "--batch_size", 2, "--save_dir", tmp_path / "two",
            module=TORCHRUN)
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-5)


def test_a_run_shows_itself_to_its_loggers_and_does_not_need_them(sft_data, tmp_path):
    pytest.importorskip("tensorboard")
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "WANDB_MODE": "online"}
    shown = succeed(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--max_steps", 2, "--use_wandb",
                    "--loggers", "tensorboard", "--log_interval", 1, **nobody)
    assert re.search(r"(?m)^wandb: .*(No API key configured|no module|needs)", shown)
    assert f"tensorboard tensorboard --logdir {tmp_path / 'tensorboard'}\n" in shown
    (events,) = (tmp_path / "tensorboard").glob("full_sft_32-*/events.out.tfevents.*")
    assert b"learning_rate" in events.read_bytes()
    assert (tmp_path / "full_sft_32.pth").exists()


@pytest.mark.skipif(not compiles_rightly(), reason="ATEN_CPU_CAPABILITY hides AVX-512 from PyTorch's compiler")
def test_torch_compile_gives_the_same_losses(sft_data, tmp_path):
    common = [*NEW, "--num_hidden_layers", 1, "--data_path", sft_data, "--max_steps", 2, "--log_interval", 1,
              "--dtype", "float32"]
    losses = []
    for compiled in (0, 1):
        folder = tmp_path / str(compiled)
        succeed(SFT, *common, "--save_dir", folder, "--use_compile", compiled)
        losses.append([line["loss"] for line in map(json.loads, (folder / "full_sft_32_metrics.jsonl").open())
                       if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


GOOD_ROW = json.dumps(questions(1)[0]).encode() + b"\n"
BAD_DATA = {
    "broken JSON": (GOOD_ROW + b'{"conversations": [\n', r"bad\.jsonl:2: "),
    "invalid UTF-8": (GOOD_ROW + b'{"conversations": "\xff"}\n', r"bad\.jsonl:2: .*UTF-8"),
    "unknown role": (b'{"conversations": [{"role": "robot", "content": "x"}]}\n',
                     r"bad\.jsonl:1: conversations\[0\]\.role: expected system, user, assistant or tool"),
    "no assistant": (GOOD_ROW + b'{"conversations": [{"role": "user", "content": "x"}]}\n',
                     r"bad\.jsonl:2: conversations: expected at least one assistant turn"),
    "empty file": (b"", r"bad\.jsonl: the file has no rows"),
    "content is a number": (b'{"conversations": [{"role": "user", "content": 3}]}\n',
                            r"bad\.jsonl:1: conversations\[0\]\.content: expected a string"),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_data_is_named_in_one_line(tmp_path, fault):
    content, message = BAD_DATA[fault]
    out = tmp_path / "out"
    assert re.search(message, refuse(SFT, *NEW, "--data_path", damaged(tmp_path / "bad.jsonl", content),
                                     "--save_dir", out))
    assert not list(tmp_path.rglob("*.pth"))


def test_a_file_in_which_every_row_is_dropped_is_an_error(tmp_path):
    rows = [{"conversations": [{"role": "user", "content": "long " * 100}, {"role": "assistant", "content": "x"}]}]
    line = refuse(SFT, *NEW, "--data_path", write_rows(tmp_path / "a.jsonl", rows), "--save_dir", tmp_path,
                  "--max_seq_len", 32)
    assert "no row of 1 keeps a supervised token within --max_seq_len 32" in line


BAD_FLAGS = {
    "missing data": (["--data_path", "nowhere.jsonl"], r"nowhere\.jsonl"),
    "missing weights": (["--from_weight", "nobody"],
                        r"--from_weight nobody: no nobody_32\[_moe\]\.pth or \.safetensors in .*; there is "),
    "unknown dtype": (["--dtype", "int4"], r"--dtype: expected .*, found 'int4'"),
    "unknown device": (["--device", "abacus"], r"--device abacus: expected auto, cpu, cuda"),
    "unwritable folder": (["--save_dir", "/proc/out"], r"--save_dir /proc/out.*: cannot write there"),
}


@pytest.mark.parametrize("fault", BAD_FLAGS)
def test_a_bad_flag_is_named_in_one_line(sft_data, tmp_path, fault):
    flags, message = BAD_FLAGS[fault]
    data = [] if "--data_path" in flags else ["--data_path", sft_data]
    given = [*NEW, *data, "--save_dir", tmp_path, *flags]
    assert re.search(message, refuse(SFT, *given))


def test_flags_that_contradict_the_weights_are_refused_with_both_values(pretrained, sft_data, tmp_path):
    line = refuse(SFT, "--from_weight", pretrained / "pretrain_32.pth", "--num_hidden_layers", 8,
                  "--data_path", sft_data, "--save_dir", tmp_path)
    assert re.search(r"--num_hidden_layers is 8, but .*pretrain_32\.pth has num_hidden_layers 2", line)


def test_another_tokenizer_is_refused(pretrained, sft_data, tmp_path):
    other = tmp_path / "tokenizer"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((REPOSITORY / "model" / name).read_text(encoding="utf-8"), encoding="utf-8")
    state = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    state["added_tokens"][30]["content"] = "<|renamed|>"
    state["model"]["vocab"]["<|renamed|>"] = state["model"]["vocab"].pop("<|buffer4|>")
    (other / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    line = refuse(SFT, "--from_weight", pretrained / "pretrain_32.pth", "--data_path", sft_data,
                  "--save_dir", tmp_path, "--tokenizer_path", other)
    assert line == (f"error: {pretrained / 'pretrain_32.json'}: the weights were trained with the bundled tokenizer, "
                    f"not with {other}: the added token '<|buffer4|>' is only there, the added token '<|renamed|>' is "
                    "only here; leave out --tokenizer_path")


def test_a_vocabulary_of_another_size_is_refused(shared, sft_data, tmp_path):
    weights = shared / "reference/minimind/dense/weights.pth"
    for command in ((SFT, "--from_weight", weights, "--data_path", sft_data, "--save_dir", tmp_path),
                    (CHAT, "--weight", weights, "--prompt", "x")):
        line = refuse(*command, "--tokenizer_path", shared / "reference/minimind")
        assert re.search(r"weights\.pth: the embedding has 512 rows, but the tokenizer .*/minimind has 6,400", line)


def test_chat_with_missing_weights_says_what_makes_them(tmp_path):
    line = refuse(CHAT, "--save_dir", tmp_path, "--weight", "full_sft", "--hidden_size", 31)
    assert "python trainer/train_full_sft.py makes it" in line
