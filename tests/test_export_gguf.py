"""GGUF files that we write: transformers and llama.cpp compute from them what we compute."""

from dataclasses import replace

import gguf
import pytest
import torch
from chats import TOKENIZER
from export_models import CONFIGS, LLAMA, LONG, QWEN3, UNNORMALISED, random_weights
from exports import export_of
from llama_cpp_judge import INSTALL, ask, node_modules

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.export.check import compare
from minimind_sft.export.choice import choose_family
from minimind_sft.export.gguf import DTYPES, write_gguf
from minimind_sft.gguf_file import GGUFFile
from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.model.config import RopeScaling
from minimind_sft.model.families.gguf_registry import GGUF_FAMILIES
from minimind_sft.model.weights import read_weights

YARN = RopeScaling("yarn", 4.0, 16, attention_factor=1.25)
MODELS = {
    "qwen3": QWEN3,
    "qwen3moe": CONFIGS["qwen3_moe"],
    "qwen2": CONFIGS["qwen2"],
    "llama": LLAMA,
    "gpt2": CONFIGS["gpt2"],
    "smollm3": replace(LLAMA, num_hidden_layers=4, layers_without_rope=(3,)),
    "llama biases, untied": replace(LLAMA, attention_bias="all", mlp_bias=True, tie_word_embeddings=False),
    "llama llama3": replace(LONG, head_dim=16),
    "llama other llama3": replace(LONG, head_dim=16, rope_scaling=RopeScaling(
        "llama3", 3.0, 40, low_freq_factor=0.5, high_freq_factor=6.0)),
    "qwen3 linear": replace(QWEN3, rope_scaling=RopeScaling("linear", 2.5)),
    "qwen3 yarn": replace(QWEN3, rope_theta=1000.0, rope_scaling=YARN),
    "gpt2 untied": replace(CONFIGS["gpt2"], tie_word_embeddings=False),
    "qwen3 padded vocabulary": replace(QWEN3, vocab_size=6464),
}
"""Configurations by the architecture they are written in, and what is special about them."""
FILE_TYPE_NAMES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
IDS = [1, 400, 4000, 17, 6000, 2, 77, 1024, 5, 900, 31, 3333] * 3


def write(path, export):
    write_gguf(path, export, choose_family(export.weights.config, GGUF_FAMILIES, None))
    return path


def our_logits(weights):
    with torch.inference_mode():
        return weights.build_model().eval().document_logits(torch.tensor(IDS), [0, len(IDS)])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_as_the_same_model(name, tmp_path):
    export = export_of(MODELS[name])
    path = write(tmp_path / "model.gguf", export)
    written = read_weights(path)
    assert written.family == GGUFFile(path).metadata["general.architecture"] == name.split()[0]
    assert "equal" in str(compare(export, written, Tokenizer.from_gguf(path)))


@pytest.mark.parametrize("name", ["qwen3", "qwen3moe", "qwen2", "llama", "gpt2", "gpt2 untied"])
def test_transformers_computes_the_same(name, tmp_path):
    """Some sizes are the only ones that transformers' reader of GGUF files knows; it does not ask the file."""
    transformers = pytest.importorskip("transformers")
    sizes = {"qwen3": {"head_dim": 128}, "qwen3moe": {"moe_intermediate_size": 768},
             "gpt2": {"max_position_embeddings": 1024}}.get(name.split()[0], {})
    export = export_of(replace(MODELS[name], **sizes))
    write(tmp_path / "model.gguf", export)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs.eval()(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(our_logits(export.weights), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """llama.cpp's answers about every model, from one process."""
    folder = tmp_path_factory.mktemp("models")
    requests = [{"model": write(folder / f"{index}.gguf", export_of(config)), "contextSize": 256, "score": [IDS],
                 "generate": [{"ids": IDS, "count": 24}]} for index, config in enumerate(MODELS.values())]
    return dict(zip(MODELS, ask(requests), strict=True))


@pytest.mark.skipif(node_modules() is None, reason=INSTALL)
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same(name, judged):
    """The most likely token after each position, and a greedy answer, beyond the original context of scaled RoPE."""
    model = random_weights(MODELS[name]).build_model().eval()
    logits = model.document_logits(torch.tensor(IDS), [0, len(IDS)])
    assert judged[name]["score"] == [logits.argmax(-1).tolist()]
    settings = SamplingSettings(max_new_tokens=24, temperature=0.0)
    assert judged[name]["generate"] == generate_batch(model, [IDS], settings, ())


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_have_the_dtype_and_the_rest_is_float32(dtype, tmp_path):
    export = export_of(replace(CONFIGS["qwen3_moe"], head_dim=12), dtype)
    file = GGUFFile(write(tmp_path / "model.gguf", export))
    kind = DTYPES[dtype]
    types = {name: stored.type for name, stored in file.stored.items()}
    assert types["token_embd.weight"] == types["blk.0.attn_k.weight"] == types["blk.1.ffn_down_exps.weight"] == kind
    for name in ("output_norm.weight", "blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight"):
        assert types[name] == "F32"
    # Rows of 48 values are no whole number of Q8_0's blocks of 32.
    assert types["blk.0.attn_output.weight"] == ("F16" if kind == "Q8_0" else kind)
    assert file.metadata["general.file_type"] == gguf.LlamaFileType[FILE_TYPE_NAMES[kind]].value
    expected = export.weights.tensors["model.embed_tokens.weight"]
    if kind == "Q8_0":
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        expected = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(expected.numpy(), q8_0), q8_0))
    else:
        expected = expected.to(getattr(torch, dtype))
    torch.testing.assert_close(file.read("token_embd.weight"), expected, rtol=0, atol=0)
    assert "rounded" in str(compare(export, read_weights(file.path), TOKENIZER)) or dtype == "float32"


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
def test_values_too_large_for_the_dtype_are_refused(dtype, tmp_path):
    export = export_of(LLAMA, dtype)
    export.weights.tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e30
    with pytest.raises(UserError, match=f"^--dtype {dtype}: .* has values too large for it"):
        write(tmp_path / "model.gguf", export)


@pytest.mark.parametrize(("config", "field"), [
    (CONFIGS["mistral"], "sliding_window 8"),
    (UNNORMALISED, "norm_topk_prob False"),
    (replace(LLAMA, layers_without_rope=(1,)), "layers_without_rope (1,)"),
    (replace(CONFIGS["qwen3_moe"], num_shared_experts=1), "num_shared_experts 1"),
    (replace(CONFIGS["qwen3_moe"], qk_norm=False), "qk_norm False"),
    (replace(QWEN3, attention_bias="qkv"), "attention_bias 'qkv'"),
    (replace(QWEN3, norm="layer"), "norm 'layer'"),
    (replace(QWEN3, rope_scaling=RopeScaling("dynamic", 2.0)), "rope_scaling dynamic (factor 2"),
    (replace(QWEN3, rope_scaling=replace(YARN, beta_fast=8.0)), "rope_scaling yarn (factor 4"),
], ids=lambda value: value.split()[0] if isinstance(value, str) else "")
def test_what_llama_cpp_does_not_compute_is_refused(config, field):
    with pytest.raises(UserError) as error:
        choose_family(config, GGUF_FAMILIES, None)
    message = str(error.value)
    assert message.startswith("no family among qwen3, qwen3moe, qwen2, llama, smollm3, gpt2 can express this model; ")
    assert f"has no place for {field}" in message


def test_the_experts_of_a_layer_are_read_once(tmp_path, monkeypatch):
    """A file keeps all experts' matrices of a kind together; to build a model, each is asked for by itself."""
    path = write(tmp_path / "model.gguf", export_of(CONFIGS["qwen3_moe"]))
    read, names = GGUFFile.read, []
    monkeypatch.setattr(GGUFFile, "read", lambda file, name: names.append(name) or read(file, name))
    read_weights(path).build_model()
    assert sorted(names) == sorted(GGUFFile(path).shapes)
