"""scripts/convert_model.py, most of the time called in this process."""

import json
import os
import runpy
import signal
import subprocess
import sys
from shlex import quote

import pytest
import torch
from export_models import CONFIGS, QWEN3, UNNORMALISED, random_weights
from programs import CHAT, REPOSITORY, program, run_without_room, succeed, wait_for
from safetensors.torch import load_file

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError
from minimind_sft.matching import encoding_facts
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.weights import write_weights

SCRIPT = "scripts/convert_model.py"
TOKENIZER = load_tokenizer(None)


def write(path, config, template=None, choice=None, **sidecar):
    """Writes the weights of `exports` as a trainer would."""
    model = MiniMindForCausalLM(config)
    model.load_state_dict(random_weights(config).tensors, strict=not config.tie_word_embeddings)
    facts = encoding_facts(TOKENIZER, template or ChatTemplate(TOKENIZER), choice)
    write_weights(path, model, "float32", {**facts, **sidecar})
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return write(tmp_path_factory.mktemp("out") / "full_sft_32.pth", QWEN3)


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the program with the given flags and returns what it prints."""
    main = runpy.run_path(str(REPOSITORY / SCRIPT))["main"]

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, flags)])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_and_back(dense, convert, tmp_path):
    folder, file = tmp_path / "chat", tmp_path / "chat_32.pth"
    printed = convert("--save_dir", dense.parent, "--to", "huggingface", "--output", folder)
    assert "a Hugging Face folder in the layout of qwen3, float32" in printed
    assert "read back   all 24 tensors are equal; logits differ by at most 0.0e+00" in printed
    assert f"\nmodel = AutoModelForCausalLM.from_pretrained('{folder}')\n" in printed  # as one pastes it
    assert names(tmp_path) == ["chat"]

    printed = convert("--weight", folder, "--to", "minimind", "--output", file, "--dtype", "float32")
    assert f"--save_dir {quote(str(tmp_path))} --weight chat --hidden_size 32 --num_hidden_layers 2" in printed
    assert "num_attention_heads=4, num_key_value_heads=2, intermediate_size=64" in printed
    assert f"--load_from {quote(str(folder))}" in printed
    before, after = (torch.load(path, weights_only=True) for path in (dense, file))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_gguf_file_and_back(dense, convert, tmp_path):
    pytest.importorskip("gguf")
    file, folder = tmp_path / "chat.gguf", tmp_path / "chat"
    printed = convert("--weight", dense, "--to", "gguf", "--output", file)
    assert "a GGUF file of the architecture qwen3, float32" in printed and "all 24 tensors are equal" in printed
    assert f"ollama create chat -f {quote(str(tmp_path / 'chat.Modelfile'))}" in printed
    assert names(tmp_path) == ["chat.Modelfile", "chat.gguf"]
    assert "in the layout of qwen3, float32" in convert("--weight", file, "--to", "huggingface", "--output", folder)
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in random_weights(QWEN3).tensors.items())


def test_rounded_values_are_reported(dense, convert, tmp_path):
    printed = convert("--weight", dense, "--to", "huggingface", "--output", tmp_path / "a", "--dtype", "bfloat16")
    assert "24 of 24 tensors are rounded, by at most" in printed
    assert load_file(tmp_path / "a" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    pytest.importorskip("gguf")
    printed = convert("--weight", dense, "--to", "gguf", "--output", tmp_path / "a.gguf", "--dtype", "q8_0")
    assert "15 of 24 tensors are rounded, by at most" in printed


def test_the_template_of_the_weights_goes_along(dense, convert, tmp_path):
    file = write(tmp_path / "alpaca_32.pth", QWEN3, make_template(TOKENIZER, "alpaca", "<|im_end|>"), "alpaca")
    flags = ("--weight", file, "--to", "huggingface", "--output", tmp_path / "a")
    with pytest.raises(UserError, match="trained with --chat_template alpaca, not with the tokenizer's own"):
        convert(*flags)
    convert(*flags, "--chat_template", "alpaca", "--end_of_turn", "<|im_end|>")
    assert "### Instruction:" in (tmp_path / "a" / "chat_template.jinja").read_text()


def test_weights_that_have_only_been_pretrained_get_no_template(convert, tmp_path):
    file = write(tmp_path / "pretrain_32.pth", QWEN3, stage="pretrain", chat_template=None)
    printed = convert("--weight", file, "--to", "huggingface", "--output", tmp_path / "a")
    assert "template    none, as the weights have only been pretrained; --chat_template chatml adds one" in printed
    assert not (tmp_path / "a" / "chat_template.jinja").exists()
    convert("--weight", file, "--to", "huggingface", "--output", tmp_path / "b", "--chat_template", "chatml")
    assert (tmp_path / "b" / "chat_template.jinja").exists()


def test_overwriting_is_asked_for(dense, convert, tmp_path):
    flags = ("--weight", dense, "--to", "minimind", "--output", tmp_path / "a_32.pth")
    convert(*flags)
    with pytest.raises(UserError, match=r"a_32\.pth: exists already; choose another --output, or --overwrite moves it"):
        convert(*flags)
    convert(*flags, "--overwrite")
    assert names(tmp_path) == ["a_32.json", "a_32.json.previous", "a_32.pth", "a_32.pth.previous"]


def test_a_call_without_flags_explains_itself(convert):
    with pytest.raises(UserError, match=r"convert_model\.py --weight full_sft --to huggingface --output minimind-3"):
        convert()


@pytest.mark.parametrize(("config", "to", "output", "expected"), [
    (UNNORMALISED, "minimind", "x.pth", "norm_topk_prob is off: the chosen experts count by their probabilities"),
    (UNNORMALISED, "gguf", "x.gguf", "norm_topk_prob False; its readers divide .*--to huggingface says more"),
    (CONFIGS["gpt2"], "minimind", "x.pth", "norm is 'layer', MiniMind-2 has only 'rms'"),
    (CONFIGS["mistral"], "gguf", "x.gguf", "no place for sliding_window 8"),
    (QWEN3, "huggingface", "x.gguf", "expected the name of a folder for --to huggingface, not of a file"),
    (QWEN3, "gguf", "x", r"expected a name that ends in \.gguf for --to gguf"),
    (QWEN3, "huggingface", "weights.json/x", r"cannot write there \(Not a directory\)"),
])
def test_what_is_refused_before_any_work(config, to, output, expected, convert, tmp_path):
    weights = write(tmp_path / "weights.pth", config)
    with pytest.raises(UserError, match=expected):
        convert("--weight", weights, "--to", to, "--output", tmp_path / output)
    assert names(tmp_path) == ["weights.json", "weights.pth"]


def test_a_mixture_with_unnormalised_experts_leaves_as_a_folder(convert, tmp_path):
    weights = write(tmp_path / "full_sft_32_moe.pth", UNNORMALISED)
    convert("--weight", weights, "--to", "huggingface", "--output", tmp_path / "x")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["norm_topk_prob"] is False


def test_an_output_inside_the_weights_or_in_their_place_is_refused(dense, convert, tmp_path):
    convert("--weight", dense, "--to", "huggingface", "--output", tmp_path / "a")
    before = names(tmp_path / "a")
    for to, output, expected in (("minimind", "a/x.pth", "lies inside"), ("huggingface", "a", "would replace")):
        with pytest.raises(UserError, match=expected):
            convert("--weight", tmp_path / "a", "--overwrite", "--to", to, "--output", tmp_path / output)
    assert names(tmp_path / "a") == before and names(tmp_path) == ["a"]


def test_weights_of_unknown_origin_need_their_tokenizer(convert, tmp_path):
    torch.save(random_weights(QWEN3).tensors, tmp_path / "a.pth")
    with pytest.raises(UserError, match="nothing says which tokenizer these weights were trained with"):
        convert("--weight", tmp_path / "a.pth", "--to", "huggingface", "--output", tmp_path / "x")


@pytest.mark.slow
def test_as_a_user_runs_it(dense, tmp_path):
    printed = succeed(SCRIPT, "--weight", dense, "--to", "minimind", "--output", tmp_path / "chat_32.pth")
    assert "in a clone of MiniMind-3" in printed
    succeed(CHAT, "--weight", tmp_path / "chat_32.pth", "--prompt", "hi", "--max_new_tokens", 2)


@pytest.mark.slow
@pytest.mark.parametrize(("to", "output"), [("huggingface", "x"), ("gguf", "x.gguf"), ("minimind", "x_32.pth")])
def test_a_full_disk_leaves_nothing(to, output, dense, tmp_path):
    done = run_without_room(100_000, SCRIPT, "--weight", dense, "--to", to, "--output", tmp_path / output)
    assert f"error: --output {tmp_path / output}: cannot be written (" in done.stderr
    assert names(tmp_path) == []


SLOW = """
import runpy, sys, time
import minimind_sft.export.huggingface as huggingface
whole = huggingface.write_tokenizer
def slow(*arguments):
    whole(*arguments)
    print("half", flush=True)
    time.sleep(1e6)
huggingface.write_tokenizer = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_an_interruption_leaves_nothing(dense, tmp_path):
    command, options = program(SCRIPT, "--weight", dense, "--to", "huggingface", "--output", tmp_path / "x")
    with subprocess.Popen([sys.executable, "-c", SLOW, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          **options) as process:
        wait_for(lambda: "half" in process.stdout.readline(), process)
        assert list(tmp_path.glob(".minimind_sft.*.tmp/x/tokenizer.json"))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert "Traceback" not in process.stderr.read()
    assert names(tmp_path) == []
