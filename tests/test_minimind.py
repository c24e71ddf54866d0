"""Weights of MiniMind's second generation, judged by numbers that MiniMind's own code computed.

tests/minimind2.json holds what its model/model_minimind.py of 15 January 2026 (commit c090b69) computes with
transformers 5.24 for MiniMindConfig(vocab_size=41, hidden_size=32, num_hidden_layers=2, intermediate_size=24), dense
and with use_moe=True: in evaluation mode the logits at some positions of two rows, and 8 greedy ids after the first 4
of row 0, equal with and without its cache; in training mode loss and auxiliary loss with labels=input_ids, and the
norms of the gradients of their sum. The weights are those of `state_dict` here, loaded with strict=True.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minimind_sft.errors import UserError
from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.weights import read_weights, write_weights

EXPECTED = json.loads((Path(__file__).parent / "minimind2.json").read_text())
INPUT_IDS = torch.tensor(EXPECTED["input_ids"])
ROWS, LENGTH = INPUT_IDS.shape
BOUNDARIES = range(0, ROWS * LENGTH + 1, LENGTH)


def shapes(moe: bool) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a MiniMind2 model: 8 heads of 4, 2 of them for keys and values."""
    def network(prefix: str) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}.{name}_proj.weight": (32, 24) if name == "down" else (24, 32)
                for name in ("gate", "up", "down")}

    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (41, 32)}
    for layer in ("model.layers.0", "model.layers.1"):
        found |= {f"{layer}.self_attn.{name}_proj.weight": (8 if name in "kv" else 32, 32) for name in "qkvo"}
        found |= {f"{layer}.{name}_layernorm.weight": (32,) for name in ("input", "post_attention")}
        if moe:
            found[f"{layer}.mlp.gate.weight"] = (4, 32)
            for e in range(4):
                found |= network(f"{layer}.mlp.experts.{e}")
            found |= network(f"{layer}.mlp.shared_experts.0")
        else:
            found |= network(f"{layer}.mlp")
    return found | {"model.norm.weight": (32,), "lm_head.weight": (41, 32)}


def state_dict(moe: bool) -> dict[str, torch.Tensor]:
    """Returns weights as MiniMind saves them, in half precision, drawn from a generator that NumPy keeps as it is."""
    tensors = {}
    for name, shape in shapes(moe).items():
        seed = zlib.crc32(name.replace("lm_head", "model.embed_tokens").encode())
        values = np.random.RandomState(seed).standard_normal(shape)
        tensors[name] = torch.from_numpy(1 + 0.3 * values if len(shape) == 1 else 0.3 * values).half()
    return tensors


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_weights(path).build_model()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(params=["dense", "moe"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(kind: str, tmp_path: Path) -> Path:
    file = tmp_path / ("full_sft_32_moe.pth" if kind == "moe" else "full_sft_32.pth")
    torch.save(state_dict(kind == "moe"), file)
    return file


def test_the_configuration_is_minimind2_s(path, kind):
    weights = read_weights(path)
    config = weights.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 2, 4)
    assert (config.rms_norm_eps, config.rope_theta, config.qk_norm) == (1e-5, 1e6, False)
    assert config.tie_word_embeddings and config.max_position_embeddings == 32768
    experts = ""
    if kind == "moe":
        assert (config.num_experts, config.num_experts_per_tok, config.num_shared_experts) == (4, 2, 1)
        assert config.norm_topk_prob and config.moe_intermediate_size == 24
        experts = ", 2 experts per token, weights normalised"
    assert weights.notices == (
        f"{path} has no sidecar; its shapes say 32 x 2 layers, vocabulary 41; for the rest MiniMind2's defaults are "
        f"used: 8/2 heads, rope_theta 1e+06, rms_norm_eps 1e-05{experts}; other values go into "
        f'{path.with_suffix(".json")}: {{"assume": {{"num_attention_heads": 16}}}}',)


def test_logits_equal_minimind_s(path, kind):
    model = read_weights(path).build_model().eval()
    logits = model.document_logits(INPUT_IDS.flatten(), BOUNDARIES).view(ROWS, LENGTH, -1)
    expected = torch.tensor(EXPECTED[kind]["logits"])
    torch.testing.assert_close(logits[:, EXPECTED["positions"]], expected, rtol=0, atol=1e-4)


def test_greedy_answers_equal_minimind_s(path, kind):
    """By the formulas and by the fast form for decoding, alone and in a batch."""
    expected = EXPECTED[kind]["greedy_ids"]
    settings = SamplingSettings(max_new_tokens=len(expected) - 4, temperature=0.0)
    prompts = [expected[:4], INPUT_IDS[1, :7].tolist()]
    model = read_weights(path).build_model().eval()
    for form in (model, ready_to_decode(model)):
        for batch in (prompts[:1], prompts):
            assert generate_batch(form, batch, settings, ())[0] == expected[4:]


def test_losses_and_gradients_equal_minimind_s(path, kind):
    """The auxiliary loss as well: its coefficient here makes up for loads that sum to 2."""
    model = read_weights(path).build_model().train()
    labels = torch.full_like(INPUT_IDS, IGNORE_INDEX)
    labels[:, :-1] = INPUT_IDS[:, 1:]
    losses = model(INPUT_IDS.flatten(), labels.flatten(), BOUNDARIES)
    loss = losses.loss_sum / (labels != IGNORE_INDEX).sum()
    aux_loss = losses.aux_loss_sum / INPUT_IDS.numel()
    assert loss.item() == pytest.approx(EXPECTED[kind]["loss"], rel=1e-4)
    assert aux_loss.item() == pytest.approx(EXPECTED[kind]["aux_loss"], rel=1e-4)
    (loss + aux_loss).backward()
    expected = EXPECTED[kind]["gradient_norms"]
    for name, parameter in model.named_parameters():
        prefix, _, projection = name.rpartition(".")
        gradients = ({f"{prefix}.{e}.{projection}.weight": gradient for e, gradient in enumerate(parameter.grad)}
                     if ".experts." in name else {name: parameter.grad})
        for stored, gradient in gradients.items():
            assert gradient.norm().item() == pytest.approx(expected[stored], rel=1e-4), stored


def test_it_is_read_back_with_its_sidecar(path, tmp_path):
    weights = read_weights(path)
    write_weights(tmp_path / "b.pth", weights.build_model(), "float16", {})
    again = read_weights(tmp_path / "b.pth")
    assert (again.config, again.notices) == (weights.config, ())
    assert all(torch.equal(again.tensors[name], weights.tensors[name]) for name in weights.tensors)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_inside_a_resume_file_are_read(path, kind, tmp_path, prefix):
    """MiniMind writes them in half precision beside the optimizer's state, with a prefix under DDP or torch.compile."""
    model = read_weights(path).build_model()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"model": {prefix + name: tensor for name, tensor in state_dict(kind == "moe").items()},
                "optimizer": optimizer.state_dict(), "epoch": 0, "step": 1000, "world_size": 1, "wandb_id": None,
                "scaler": torch.amp.GradScaler(enabled=False).state_dict()}, tmp_path / "full_sft_32_resume.pth")
    weights = read_weights(tmp_path / "full_sft_32_resume.pth")
    assert "is a checkpoint (epoch 0, step 1000); only its weights (model) are used" in weights.notices[0]
    assert (f"the prefix {prefix} was removed" in weights.notices[1]) == bool(prefix)
    again = weights.build_model()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def assume(path: Path, **fields: object) -> None:
    path.with_suffix(".json").write_text(json.dumps({"assume": fields}))


def test_a_sidecar_of_the_user_gives_what_the_file_does_not_tell(path, kind):
    assume(path, num_attention_heads=4, rope_theta=10000.0)
    weights = read_weights(path)
    assert (weights.config.num_attention_heads, weights.config.num_key_value_heads) == (4, 1)
    assert (weights.config.head_dim, weights.config.rope_theta, weights.config.rms_norm_eps) == (8, 10000.0, 1e-5)
    assert weights.sidecar is None
    assert "4/1 heads, rope_theta 10000, " in weights.notices[0]
    assert f"(as {path.with_suffix('.json')} says: num_attention_heads, rope_theta)" in weights.notices[0]
    weights.build_model()


def test_one_expert_per_token_is_not_normalised(tmp_path):
    """MiniMind2 divides by the sum of the chosen experts' weights only if there are several."""
    torch.save(state_dict(moe=True), tmp_path / "a.pth")
    assume(tmp_path / "a.pth", num_experts_per_tok=1)
    config = read_weights(tmp_path / "a.pth").config
    assert (config.num_experts_per_tok, config.norm_topk_prob) == (1, False)


@pytest.mark.parametrize(("sidecar", "message"), [
    ({"assume": {"num_attention_heads": 5}}, "a.pth: its shapes do not make a model: 5 heads do not divide"),
    ({"assume": {"num_attention_heads": 0}}, "a.json: assume.num_attention_heads: expected at least 1, found 0"),
    ({"assume": {"heads": 5}}, "a.json: assume.heads: unknown field"),
    ({"assume": {"rope_theta": "10000"}}, 'a.json: assume.rope_theta: expected a number, found "10000"'),
    ({"assume": {"hidden_size": 64}}, "a.json: assume.hidden_size: is 64, but the tensors in"),
    ({"assume": 3}, "a.json: assume: expected an object, found 3"),
    ({"assume": {}, "model": {}}, "a.json: assume: not possible beside model, which has all fields"),
])
def test_other_assumptions_are_refused(tmp_path, sidecar, message):
    torch.save(state_dict(moe=False), tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps(sidecar))
    assert refused(tmp_path / "a.pth").startswith(f"{tmp_path}/{message}")


def test_heads_that_do_not_fit_ask_for_the_right_number(tmp_path):
    tensors = state_dict(moe=False) | {f"model.layers.{i}.self_attn.{name}_proj.weight": torch.ones(2, 32)
                                       for i in (0, 1) for name in "kv"}
    torch.save(tensors, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth") == (
        f"{tmp_path}/a.pth: its shapes do not make a model: model configuration: num_key_value_heads is 0, expected at "
        f'least 1; other values go into {tmp_path}/a.json: {{"assume": {{"num_attention_heads": 16}}}}')


def test_tables_of_rope_are_left_out_with_a_notice(path, kind):
    tables = {f"model.freqs_{name}": torch.ones(32768, 4) for name in ("cos", "sin")}
    torch.save(state_dict(kind == "moe") | tables, path)
    weights = read_weights(path)
    assert weights.notices[0] == (f"{path}: model.freqs_cos, model.freqs_sin: not used; tables of RoPE follow from the "
                                  "configuration")
    weights.build_model()


def test_files_from_before_april_2025_are_refused_by_name(tmp_path):
    torch.save({"tok_embeddings.weight": torch.ones(41, 32), "layers.0.attention.wq.weight": torch.ones(32, 32)},
               tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth").startswith(
        f"{tmp_path}/a.pth: tok_embeddings.weight: a file of MiniMind from before 26 April 2025")


def test_a_file_of_another_family_is_not_taken_for_minimind_s(tmp_path):
    tensors = state_dict(moe=False) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    assert refused(tmp_path / "a.safetensors") == (
        f"{tmp_path}/a.safetensors: not a model of MiniMind's (attention_bias qkv), and no sidecar describes it: give "
        "the folder of Hugging Face or the GGUF file that it belongs to")


def test_an_adapter_is_refused_by_name(tmp_path):
    torch.save({"model.layers.0.self_attn.q_proj.lora.A.weight": torch.ones(16, 32)}, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth") == (
        f"{tmp_path}/a.pth: model.layers.0.self_attn.q_proj.lora.A.weight: an adapter (LoRA), not a whole model: name "
        "the weights that it belongs to here, and the adapter with --lora_weight (in training --from_lora), or merge "
        "the two with scripts/merge_lora.py")
