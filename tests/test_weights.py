"""Writing and reading weights."""

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY, TINY_MOE

from minimind_sft.errors import UserError
from minimind_sft.model.config import RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.loaded import Weights
from minimind_sft.model.weights import read_weights, weights_path, write_weights


def test_file_names_follow_minimind():
    assert str(weights_path("out", "full_sft", TINY)) == "out/full_sft_16.pth"
    assert str(weights_path("out", "full_sft", TINY_MOE)) == "out/full_sft_16_moe.pth"


@pytest.mark.parametrize("config", [TINY, TINY_MOE, replace(TINY, rope_scaling=RopeScaling(factor=4.0))],
                         ids=["dense", "moe", "yarn"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_read_back_with_their_configuration(tmp_path, config, suffix):
    torch.manual_seed(0)
    model, path = MiniMindForCausalLM(config).eval(), tmp_path / f"a_16{suffix}"
    write_weights(path, model, "float32", {"stage": "full_sft"})
    weights = read_weights(path)
    assert weights.config == config
    assert weights.sidecar["stage"] == "full_sft"
    ids = torch.arange(10)
    assert torch.equal(weights.build_model().eval().document_logits(ids, (0, 10)), model.document_logits(ids, (0, 10)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_16.json", f"a_16{suffix}"]


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    """The message of torch.save is only "unexpected pos 5696 vs 5590"."""
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5696 vs 5590")

    model, path = MiniMindForCausalLM(TINY), tmp_path / "a_16.pth"
    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"a_16\.pth: cannot be written \(No space left on device: 0\.\d MB are"):
        write_weights(path, model, "float32", {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**12))
    with pytest.raises(UserError, match=r"a_16\.pth: cannot be written \(.*unexpected pos"):
        write_weights(path, model, "float32", {})
    assert list(tmp_path.iterdir()) == []


def test_equal_weights_give_equal_files(tmp_path):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    (tmp_path / "x").mkdir()
    for folder in (tmp_path, tmp_path / "x"):
        write_weights(folder / "a_16.pth", model, "float32", {})
    assert (tmp_path / "a_16.pth").read_bytes() == (tmp_path / "x/a_16.pth").read_bytes()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_do_not_match_their_sidecar_are_refused(tmp_path, suffix):
    """As when a training is killed between writing the two."""
    for name in ("a_16", "b_16"):
        write_weights(tmp_path / f"{name}{suffix}", MiniMindForCausalLM(TINY), "float32", {})
    (tmp_path / f"b_16{suffix}").rename(tmp_path / f"a_16{suffix}")
    with pytest.raises(UserError, match=r"is not the file that .*a_16\.json describes \(sha256\)"):
        read_weights(tmp_path / f"a_16{suffix}")


def test_written_weights_are_half_precision_on_request(tmp_path):
    write_weights(tmp_path / "a_16.pth", MiniMindForCausalLM(TINY), "float16", {})
    assert {tensor.dtype for tensor in read_weights(tmp_path / "a_16.pth").tensors.values()} == {torch.float16}


def test_weights_with_nan_are_not_written(tmp_path):
    path, model = tmp_path / "a_16.pth", MiniMindForCausalLM(TINY)
    write_weights(path, model, "float16", {})
    before = path.read_bytes()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(UserError, match=r"model\.norm\.weight is not finite in float16; nothing was written"):
        write_weights(path, model, "float16", {})
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_minimind_s_own_weights_need_no_sidecar(shared, kind):
    folder = shared / "reference/minimind" / kind
    said = json.loads((folder / "expected.json").read_text())["config"]
    weights = read_weights(folder / "weights.pth")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "use_moe", "rope_theta", "norm_topk_prob", "tie_word_embeddings", "rms_norm_eps"):
        assert getattr(weights.config, name) == said[name], name
    weights.build_model()
    (notice,) = weights.notices
    assert "has no sidecar; its shapes say 64 x 2 layers" in notice


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, suffix, keep):
    path = tmp_path / f"a_16{suffix}"
    write_weights(path, MiniMindForCausalLM(TINY), "float16", {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a weights file that can be read") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"Missing key.*model\.layers\.1\.mlp\.up_proj\.weight"),
    (lambda t: t.update(extra=torch.zeros(1)), r"Unexpected key.*extra"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(7)}), r"size mismatch for model\.norm\.weight"),
])
def test_loading_is_strict_and_names_the_tensor(tmp_path, damage, message):
    path = tmp_path / "a_16.safetensors"
    model = MiniMindForCausalLM(TINY)
    write_weights(path, model, "float32", {})
    tensors = {name: tensor.clone() for name, tensor in read_weights(path).tensors.items()}
    damage(tensors)
    save_file(tensors, path)
    sidecar = path.with_suffix(".json")
    sidecar.write_text(re.sub(r'"sha256": "\w{64}",', "", sidecar.read_text()))  # changed on purpose
    with pytest.raises(UserError, match=message) as error:
        read_weights(path).build_model()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("config", "field", "value", "was"), [
    (TINY, "hidden_size", 32, 16), (TINY, "num_hidden_layers", 3, 2), (TINY, "vocab_size", 65, 64),
    (TINY, "num_attention_heads", 4, 2), (TINY, "head_dim", 4, 8), (TINY, "intermediate_size", 25, 24),
    (TINY, "use_moe", True, False), (TINY_MOE, "num_experts", 8, 4), (TINY_MOE, "moe_intermediate_size", 25, 24)])
def test_a_sidecar_that_contradicts_the_tensors_is_refused(tmp_path, config, field, value, was):
    path = tmp_path / "a_16.pth"
    write_weights(path, MiniMindForCausalLM(config), "float16", {})
    sidecar = json.loads(path.with_suffix(".json").read_text())
    sidecar["model"][field] = value
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(UserError) as error:
        read_weights(path)
    assert str(error.value) == (f"{path.with_suffix('.json')}: model.{field}: is {value}, but the tensors in {path} "
                                f"have {was}")


@pytest.mark.parametrize("tie", [True, False])
def test_without_padding_removes_the_padding_rows(tmp_path, tie):
    """The other tokens keep their logits."""
    torch.manual_seed(0)
    config = replace(TINY, tie_word_embeddings=tie)
    model, path, ids = MiniMindForCausalLM(config).eval(), tmp_path / "a_16.pth", torch.arange(10)
    write_weights(path, model, "float32", {})
    cut = read_weights(path).without_padding(50)
    assert cut.config == replace(config, vocab_size=50)
    logits = cut.build_model().eval().document_logits(ids, (0, 10))
    assert logits.shape == (10, 50)
    torch.testing.assert_close(logits, model.document_logits(ids, (0, 10))[:, :50])


def test_a_different_tied_head_is_refused_naming_the_file(tmp_path):
    path = tmp_path / "a_16.safetensors"
    write_weights(path, MiniMindForCausalLM(TINY), "float32", {})
    tensors = {**read_weights(path).tensors, "lm_head.weight": torch.ones(64, 16)}
    save_file(tensors, path)
    sidecar = path.with_suffix(".json")
    sidecar.write_text(re.sub(r'"sha256": "\w{64}",', "", sidecar.read_text()))
    with pytest.raises(UserError, match=r"a_16\.safetensors: lm_head\.weight differs from model\.embed_tokens"):
        read_weights(path).build_model()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("value", "dtype", "count"), [
    (float("nan"), torch.float32, "1"), (-float("inf"), torch.float16, "1"), (1e300, torch.float64, "1")])
def test_a_value_that_is_not_finite_is_refused(tmp_path, suffix, value, dtype, count):
    """1e300 is finite as it is stored, but not in the float32 that the model computes in."""
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in MiniMindForCausalLM(TINY).state_dict().items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    path = tmp_path / f"a_16{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    with pytest.raises(UserError) as error:
        read_weights(path).build_model()
    assert str(error.value) == (
        f"{path}: model.layers.1.mlp.up_proj.weight: {count} of its 384 values are NaN or infinite: the run that wrote "
        "the file diverged; use earlier weights")


@pytest.mark.parametrize("config", [TINY, TINY_MOE, replace(TINY, tie_word_embeddings=False)])
def test_loading_draws_no_random_numbers(tmp_path, config):
    """Nothing is initialised that is overwritten; and nothing is left as it was in memory."""
    torch.manual_seed(0)
    expected = MiniMindForCausalLM(config)
    write_weights(tmp_path / "a_16.pth", expected, "float32", {})
    before = torch.random.get_rng_state()
    model = read_weights(tmp_path / "a_16.pth").build_model()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert (model.lm_head.weight is model.embed_tokens.weight) == config.tie_word_embeddings
    assert not list(model.buffers()), "a buffer would be built, not read"


class Counted(dict):
    """Counts how many of its tensors are alive while a model is filled."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.alive, self.most = weakref.WeakSet(), 0

    def __getitem__(self, name):
        tensor = super().__getitem__(name).clone()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor


@pytest.mark.parametrize("config", [TINY, TINY_MOE])
def test_a_model_is_filled_one_tensor_at_a_time(config):
    tensors = Counted(MiniMindForCausalLM(config).half().state_dict())
    Weights(Path("a.pth"), config, tensors, None).build_model()
    assert tensors.most == 1
    assert not tensors.alive


def test_an_untied_head_is_recognised_without_a_sidecar(tmp_path):
    model = MiniMindForCausalLM(replace(TINY, tie_word_embeddings=False))
    torch.save(model.state_dict(), tmp_path / "a_16.pth")
    assert read_weights(tmp_path / "a_16.pth").config.tie_word_embeddings is False


def test_other_models_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a_16.pth")
    with pytest.raises(UserError, match=r"not the state dict of a model: it has no model\.embed_tokens\.weight"):
        read_weights(tmp_path / "a_16.pth")
    torch.save([1, 2], tmp_path / "b_16.pth")
    with pytest.raises(UserError, match=r"expected a state dict"):
        read_weights(tmp_path / "b_16.pth")


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("model.embed_tokens.weight", (64,), "expected 2 dimensions, found [64]"),
    ("model.layers.0.self_attn.q_norm.weight", (8, 1), "expected 1 dimensions, found [8, 1]"),
    ("model.layers.0.self_attn.k_proj.weight", (4, 16), None),
])
def test_impossible_shapes_are_refused(tmp_path, name, shape, message):
    torch.save({**MiniMindForCausalLM(TINY).state_dict(), name: torch.zeros(shape)}, tmp_path / "a_16.pth")
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "a_16.pth")
    assert str(error.value) == f"{tmp_path / 'a_16.pth'}: " + (
        f"{name}: {message}" if message else
        "its shapes do not make a model: model configuration: num_key_value_heads is 0, expected at least 1")


@pytest.mark.parametrize(("suffix", "names"), [(".pth", {"lm_head.weight"}), (".safetensors", set())])
def test_a_tied_head_takes_no_room_in_the_file(tmp_path, suffix, names):
    """MiniMind's readers expect its name in a .pth file; safetensors cannot share."""
    config = replace(TINY, vocab_size=4000)
    path = tmp_path / f"a_16{suffix}"
    write_weights(path, MiniMindForCausalLM(config), "float16", {})
    weights = read_weights(path)
    assert set(weights.tensors) == names | (MiniMindForCausalLM(config).state_dict().keys() - {"lm_head.weight"})
    assert path.stat().st_size < 2 * sum(p.numel() for p in weights.build_model().parameters()) + 20_000


def test_a_file_of_a_hugging_face_folder_means_the_folder(tmp_path):
    """Its config.json says what the shapes do not."""
    config = replace(TINY, rope_theta=1234.0)
    model = MiniMindForCausalLM(config)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"},
              tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["qwen3"].write_config(config)))
    weights = read_weights(tmp_path / "model.safetensors")
    assert (weights.path, weights.family, weights.config.rope_theta) == (tmp_path, "qwen3", 1234.0)
    assert weights.notices[0] == f"{tmp_path}/model.safetensors: part of the model in {tmp_path}, which was read"
