"""Models read from GGUF files: what cannot be computed is refused by name, the rest is what transformers computes."""


from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_files import NEEDS_SMOLLM2, read_once, smollm2, write

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.families.gguf_rope import frequency_divisors
from minimind_sft.model.weights import read_weights

KINDS = gguf.GGUFValueType
VALUES = {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 16,
          "attention.head_count": 2, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5}
SHAPES = {
    "token_embd.weight": (5, 8), "output_norm.weight": (8,), "blk.0.attn_norm.weight": (8,),
    "blk.0.ffn_norm.weight": (8,), "blk.0.attn_q.weight": (8, 8), "blk.0.attn_k.weight": (4, 8),
    "blk.0.attn_v.weight": (4, 8), "blk.0.attn_output.weight": (8, 8), "blk.0.ffn_gate.weight": (16, 8),
    "blk.0.ffn_up.weight": (16, 8), "blk.0.ffn_down.weight": (8, 16),
}


def kind_of(value):
    kinds = {bool: KINDS.BOOL, int: KINDS.UINT32, float: KINDS.FLOAT32, str: KINDS.STRING, list: KINDS.ARRAY}
    return kinds[type(value)]


def llama(path, values=None, tensors=None, **general):
    """Writes a tiny Llama; a value or tensor that is None is left out."""
    values = {f"llama.{name}": value for name, value in {**VALUES, **(values or {})}.items()}
    values |= {f"general.{name}": value for name, value in general.items()}
    shapes = {name: torch.ones(shape).numpy() for name, shape in SHAPES.items()} | (tensors or {})
    return write(path, {name: tensor for name, tensor in shapes.items() if tensor is not None},
                 {name: (value, kind_of(value)) for name, value in values.items() if value is not None})


def config_with(path, values=None, tensors=None) -> ModelConfig:
    return read_weights(llama(path, values, tensors)).config


@pytest.fixture
def refusal(tmp_path):
    def refused(values=None, tensors=None, **general):
        path = llama(tmp_path / "m.gguf", values, tensors, **general)
        with pytest.raises(UserError) as error:
            read_weights(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and "\n" not in message
        return message.removeprefix(f"{path}: ")

    return refused


def test_a_llama(tmp_path):
    weights = read_weights(llama(tmp_path / "m.gguf"))
    assert weights.config == ModelConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        intermediate_size=16, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0, qk_norm=False)
    assert (weights.family, weights.sidecar, weights.notices) == ("llama", None, ())
    weights.build_model()


def test_what_the_tensors_say(tmp_path):
    path, ones = tmp_path / "m.gguf", {"output.weight": np.ones((5, 8), np.float32)}
    biases = {f"blk.0.attn_{part}.bias": np.ones(width, np.float32) for part, width in (("q", 8), ("k", 4), ("v", 4))}
    assert not config_with(path, tensors=ones).tie_word_embeddings
    assert config_with(path, tensors=biases).attention_bias == "qkv"
    biases |= {"blk.0.attn_output.bias": np.ones(8, np.float32)}
    assert config_with(path, tensors=biases).attention_bias == "all"


def test_numbers_per_layer_are_one_number_if_they_are_equal(tmp_path, refusal):
    assert config_with(tmp_path / "m.gguf", {"attention.head_count_kv": [1, 1]}).num_key_value_heads == 1
    assert refusal({"attention.head_count_kv": [1, 2]}) == (
        "llama.attention.head_count_kv: expected a whole number from 1, found a list")


def test_rope_scaling(tmp_path):
    def scaling(**values):
        names = {name.replace("__", "."): value for name, value in values.items()}
        return config_with(tmp_path / "m.gguf", {f"rope.{name}": value for name, value in names.items()}).rope_scaling

    assert scaling(scaling__type="none", scaling__factor=4.0) is None
    assert scaling(scaling__type="linear", scaling__factor=4.0) == RopeScaling("linear", 4.0)
    assert scaling(scaling__factor=2.5) == RopeScaling("linear", 2.5)  # llama.cpp's default is linear
    yarn = scaling(scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=16)
    assert yarn.attention_factor == pytest.approx(1.1386294361119891)  # 0.1 ln 4 + 1
    assert replace(yarn, attention_factor=1.0) == RopeScaling("yarn", 4.0, 16, attention_factor=1.0)
    weaker = scaling(scaling__type="yarn", scaling__factor=4.0, scaling__attn_factor=0.5, scaling__yarn_beta_fast=32.0)
    assert weaker.attention_factor == pytest.approx(0.56931471805599)
    assert replace(weaker, attention_factor=1.0) == RopeScaling("yarn", 4.0, 64, attention_factor=1.0)


@pytest.mark.parametrize("expected", [
    RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),  # Llama 3.1
    RopeScaling("llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),  # Llama 3.2
    RopeScaling("llama3", 5.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0),
], ids=lambda scaling: f"{scaling.factor:g}")
def test_llama_3s_scaling_is_found_in_its_divisors(tmp_path, expected):
    """The numbers are transformers'; its frequencies are those of the plain formula, divided."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta, head_dim = 500000.0, 64
    parameters = {"rope_type": "llama3", "factor": expected.factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": expected.original_max_position_embeddings, "rope_theta": theta}
    config = LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=131072,
                         rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    divisors = plain / scaled
    shapes = {"embedding_length": 128, "rope.freq_base": theta, "context_length": 131072}
    tensors = {name: np.ones([{8: 128, 4: 64}.get(size, size) for size in shape], np.float32)
               for name, shape in SHAPES.items()} | {"rope_freqs.weight": divisors.numpy()}
    assert config_with(tmp_path / "m.gguf", shapes, tensors).rope_scaling == expected
    torch.testing.assert_close(frequency_divisors(head_dim, theta, expected), divisors, rtol=1e-5, atol=0)


def test_divisors_of_no_known_parameters_are_refused(refusal):
    divisors = np.array([2, 3], np.float32)
    assert refusal(tensors={"rope_freqs.weight": divisors}) == (
        "rope_freqs.weight: no parameters of Llama 3's RoPE scaling are known that give these 2 numbers: use the "
        "model's Hugging Face folder")
    assert refusal({"rope.scaling.type": "yarn"}, {"rope_freqs.weight": divisors}).startswith(
        "llama.rope.scaling.type: is \"yarn\", ")


@pytest.mark.parametrize(("values", "message"), [
    ({"expert_count": 8}, "llama.expert_count: is 8, the decoder computes only 0: use another model"),
    ({"attention.sliding_window": 8}, "llama.attention.sliding_window: is 8, a field unknown here: it may change "),
    ({"logit_scale": 2.0}, "llama.logit_scale: is 2.0, a field unknown here: "),
    ({"rope.dimension_count": 2}, "llama.rope.dimension_count: is 2, the decoder computes only 4: "),
    ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type: is 'longrope', the decoder computes only none, "),
    ({"rope.scaling.yarn_beta_fast": 8.0}, "llama.rope.scaling.yarn_beta_fast: is 8.0, the decoder computes only 32.0"),
    ({"attention.value_length": 8}, "llama.attention.value_length: is 8, the decoder computes only 4: "),
    ({"vocab_size": 6}, "llama.vocab_size: is 6, but the tensors are those of 5: the file is damaged or "),
    ({"block_count": 10**9}, "llama.block_count: is 1000000000, but the tensors are those of 1: the file is damaged "),
    ({"attention.layer_norm_rms_epsilon": None}, "llama.attention.layer_norm_rms_epsilon: missing; "),
    ({"feed_forward_length": 8}, "blk.0.ffn_gate.weight: has shape [16, 8], but the configuration says [8, 8]"),
])
def test_what_is_not_computed_is_refused(refusal, values, message):
    assert refusal(values).startswith(message)


def test_files_without_a_model_are_refused(refusal):
    assert refusal(type="adapter").startswith('general.type: is "adapter", expected a whole model: ')
    assert refusal(architecture="mamba").startswith('general.architecture: is "mamba", expected qwen3, ')
    assert refusal(architecture=["llama"]).startswith("general.architecture: is a list, expected qwen3, ")
    assert refusal(tensors={"token_embd.weight": None}) == "token_embd.weight: missing; the file holds no whole model"
    assert refusal(tensors={"blk.0.attn_sinks.weight": np.ones(2, np.float32)}).startswith(
        "blk.0.attn_sinks.weight: unknown in a model of the family llama")
    assert refusal(tensors={"blk.0.ffn_up.weight": None}).startswith("blk.0.ffn_up.weight: missing: ")


def test_a_gguf_file_is_recognised_by_its_content(tmp_path):
    assert read_weights(llama(tmp_path / "m.bin")).family == "llama"
    (tmp_path / "m.gguf").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a GGUF file"):
        read_weights(tmp_path / "m.gguf")


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason=NEEDS_SMOLLM2)
def test_smollm2_computes_what_transformers_computes(monkeypatch):
    transformers = pytest.importorskip("transformers")
    read_once(monkeypatch)
    path = smollm2()
    weights = read_weights(path)
    assert weights.notices == (
        f"{path} is quantised (Q4_1, Q8_0): the model starts from the rounded values, as float32",)
    assert weights.config == ModelConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=1e5, qk_norm=False)
    ids = torch.tensor([1, 520, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198])
    with torch.inference_mode():
        ours = weights.build_model().eval().document_logits(ids, [0, len(ids)])
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name,
                                                                   dtype=torch.float32)(ids[None]).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
