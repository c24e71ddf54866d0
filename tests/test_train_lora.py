"""trainer/train_lora.py from its data to a chat, in this process unless several ranks are needed."""

import json
import re

import pytest
import torch
from programs import CHAT, LORA, REPOSITORY, TORCHRUN, questions, succeed, write_rows
from safetensors.torch import load_file
from tiny_adapters import write_base, write_lora

from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.weights import read_weights

pytestmark = pytest.mark.slow

SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture
def flags(tmp_path, sft_data) -> list:
    """Returns the flags of a short run on weights that it writes to the test's folder."""
    write_base(tmp_path, SMALL)
    return ["--save_dir", tmp_path, "--from_weight", "full_sft", "--lora_name", "style", "--device", "cpu",
            "--data_path", sft_data, "--batch_size", 4, "--max_steps", 6, "--dtype", "float32", "--eval_samples", 0]


def test_an_adapter_is_trained_used_and_trained_further(run_here, flags, tmp_path):
    base = tmp_path / "full_sft_32.pth"
    before = sha256_of_file(base)
    learn = [*flags, "--max_steps", 0, "--epochs", 25, "--learning_rate", "2e-2", "--eval_share", "0.1"]
    shown = run_here(LORA, *learn)
    losses = [float(x) for x in re.findall(r"validation loss ([\d.]+)", shown)]
    assert min(losses) < 0.5 * losses[0]
    assert "0.3M parameters, of which 22.5K train; float32" in shown
    assert sha256_of_file(base) == before
    tensors, sidecar = load_file(tmp_path / "lora_style_32.safetensors"), json.loads(
        (tmp_path / "lora_style_32.json").read_text())
    assert len(tensors) == 2 * 7 * 2 and {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sidecar["base"] == fingerprint(read_weights(base))
    assert sidecar["stage"] == "lora" and sidecar["model"]["hidden_size"] == 32
    assert "trainer/train_lora.py" in sidecar["training"]["command"]
    (state,) = sorted((tmp_path / "checkpoints/lora_style_32_resume").glob("step-*"))[-1:]
    assert set(load_file(state / "weights-00001-of-00001.safetensors")) == set(tensors)
    assert set(load_file(state / "optimizer-00001-of-00001.safetensors")) == {
        f"{kind}|{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in tensors}

    held = write_rows(tmp_path / "held.jsonl", questions(6))
    score = ["--save_dir", tmp_path, "--score", held, "--max_new_tokens", 8, "--device", "cpu", "--dtype", "float32"]
    plain, adapted = (run_here(CHAT, *score, *adapter) for adapter in ([], ["--lora_weight", "style"]))
    exact = [float(re.search(r"exact match: ([\d.]+)%", one)[1]) for one in (plain, adapted)]
    assert exact[0] == 0 < exact[1]

    shown = run_here(LORA, *flags, "--from_lora", "style", "--lora_name", "more", "--eval_share", "0.1",
                     "--eval_samples", 2)
    assert re.search(r'^ +"Say \d+\." -> ".*" \((right|expected "It is \d+\.")\)$', shown, re.MULTILINE)
    assert f"adapter     {tmp_path / 'lora_style_32.safetensors'}: rank 16, scale 2, 14 projections" in shown
    first = float(re.search(r"validation loss ([\d.]+)", shown)[1])
    assert first == pytest.approx(min(losses), abs=1e-3), "it starts where the first run was best"


def test_the_commands_at_the_end_can_be_pasted(run_here, flags, tmp_path):
    shown = run_here(LORA, *flags, "--max_steps", 1)
    base, adapter = tmp_path / "full_sft_32.pth", tmp_path / "lora_style_32.safetensors"
    chat = f"eval_llm.py --weight {base} --lora_weight {adapter}"
    for line in (f"chat        python {chat}", f"score       python {chat} --score FILE",
                 f"merge       python scripts/merge_lora.py --weight {base} --lora_weight {adapter} "
                 f"--save_weight style_merged --save_dir {tmp_path}"):
        assert line in shown.replace(f"{REPOSITORY}/", "")
    run_here(*shown[shown.index("merge"):].splitlines()[0].split()[2:])
    assert (tmp_path / "style_merged_32.pth").exists()


def test_two_ranks_end_with_the_adapter_of_one_and_either_resumes(run_here, flags, tmp_path):
    one = [*flags, "--save_interval", 2]
    run_here(LORA, *one, "--lora_name", "one")
    two = [*one, "--batch_size", 2, "--lora_name", "two", "--parallel", "fsdp"]
    succeed(LORA, *two, module=TORCHRUN)
    expected, found = (load_file(tmp_path / f"lora_{name}_32.safetensors") for name in ("one", "two"))
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-5)
    assert "that run is finished (6 steps)" in run_here(LORA, *two, "--from_resume", 1)


BAD = {
    "a pattern without a match": (["--target_modules", "query"], "--target_modules query: matches no projection; "),
    "a module without a match": (["--modules_to_save", "head"], "--modules_to_save head: matches no module; "),
    "a missing base": (["--from_weight", "nobody"], "--from_weight nobody: "),
    "a missing adapter": (["--from_lora", "nobody"], "--from_lora nobody: "),
    "an adapter of other weights": (["--from_weight", "other", "--from_lora", "known"],
                                    "--from_lora .*lora_known_32.safetensors: was trained on other weights than "),
    "a size that the base does not have": (["--hidden_size", 64, "--from_weight", "{folder}/full_sft_32.pth"],
                                           "--hidden_size is 64, but .*full_sft_32.pth has hidden_size 32"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_named_in_one_line_and_nothing_is_written(run_here, flags, tmp_path, fault):
    own, message = BAD[fault]
    write_lora(tmp_path, tmp_path / "full_sft_32.pth", "known")
    write_base(tmp_path, SMALL, "other", scale=2.0)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        run_here(LORA, *flags, *(str(flag).format(folder=tmp_path) for flag in own))
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_is_not_resumed_on_another_base_or_replaced_unasked(run_here, flags, tmp_path):
    run_here(LORA, *flags, "--max_steps", 2)
    write_base(tmp_path, SMALL, "other", scale=2.0)
    with pytest.raises(UserError, match=r"^--from_resume 1: base was [0-9a-f]{64} in .*step-00000002, now it is"):
        run_here(LORA, *flags, "--max_steps", 2, "--from_weight", "other", "--from_resume", 1)
    with pytest.raises(UserError, match=r"lora_style_32.safetensors exists already \(step 2 of 2, .*\): "
                                        r"--from_resume 1 continues that run, --lora_name NAME writes beside it, "):
        run_here(LORA, *flags)
