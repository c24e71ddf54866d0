"""QLoRA as people run it: the same base as in transformers, and resumed runs that end with the same bits."""

import shutil
from hashlib import sha256

import pytest
import torch
from programs import LORA, TORCHRUN, succeed
from safetensors.torch import load_file
from tiny_adapters import write_base

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.lora_targets import projections
from minimind_sft.model.quantized import NF4Linear, base_model
from minimind_sft.model.weights import read_weights

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, which the extra [qlora] installs")
pytestmark = pytest.mark.slow

TINY = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   intermediate_size=96)


def test_a_stopped_run_with_a_4_bit_base_resumes_to_the_same_bits(sft_data, tmp_path):
    """Runs killed at any moment are in test_kill_and_resume.py."""
    base = write_base(tmp_path, TINY)
    common = ["--from_weight", base, "--data_path", sft_data, "--quantize", "nf4", "--dtype", "bfloat16",
              "--batch_size", 2, "--lora_dropout", 0.1, "--keep_best", 0, "--save_dtype", "float32", "--device", "cpu",
              "--save_interval", 4, "--max_steps", 8]
    shown = succeed(LORA, *common, "--save_dir", tmp_path / "whole")
    assert "quantised   24,576 weights in 4 bits (nf4): " in shown

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (*tmp_path.glob("cut/lora_adapter_32.*"), *tmp_path.glob("cut/checkpoints/*/step-00000008")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shown = succeed(LORA, *common, "--save_dir", tmp_path / "cut", "--from_resume", 1)
    assert "resume " in shown and "no resume state" not in shown
    for pattern in ("lora_adapter_32.safetensors", "checkpoints/*/step-*/*.safetensors"):
        whole, cut = ({path.relative_to(folder): sha256(path.read_bytes()).hexdigest()
                       for path in folder.glob(pattern)} for folder in (tmp_path / "whole", tmp_path / "cut"))
        assert whole and whole == cut


def test_two_ranks_end_with_the_adapter_of_one(sft_data, tmp_path):
    common = ["--from_weight", write_base(tmp_path, TINY), "--data_path", sft_data, "--quantize", "nf4", "--dtype",
              "float32", "--save_dtype", "float32", "--save_dir", tmp_path, "--device", "cpu", "--eval_samples", 0,
              "--max_steps", 3]
    succeed(LORA, *common, "--lora_name", "one", "--batch_size", 4)
    succeed(LORA, *common, "--lora_name", "two", "--batch_size", 2, module=TORCHRUN)
    one, two = (load_file(tmp_path / f"lora_{name}_32.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=0, atol=2e-5)


def test_the_base_is_the_one_that_transformers_quantises(tmp_path):
    """The 4 bits, the statistics and the logits of a Qwen3 folder, read by both."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=128, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True)
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, device_map="cpu", quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32)).train()  # otherwise some CPUs round the statistics to bfloat16
    ours = base_model(read_weights(tmp_path), "nf4").eval()
    for name in projections(ours):
        matrix = ours.get_submodule(name)
        assert isinstance(matrix, NF4Linear)
        assert torch.equal(matrix.packed.flatten(), theirs.get_submodule(name).weight.data.flatten())
    ids = torch.arange(1, 33)
    with torch.no_grad():
        expected, found = theirs(ids[None]).logits[0], ours.document_logits(ids, (0, 32))
    assert (found - expected).abs().max() < 1e-5
