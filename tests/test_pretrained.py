"""Weights in and out of files."""

import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY, TINY_MOE

from minimind_sft.config import YarnScaling
from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.pretrained import find_weights, read_weights, weights_path, write_weights


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_names_are_minimind_s():
    assert str(weights_path("out", "full_sft", TINY)) == "out/full_sft_16.pth"
    assert str(weights_path("out", "full_sft", TINY_MOE)) == "out/full_sft_16_moe.pth"


def test_a_name_means_the_one_file_that_has_it(tmp_path):
    touch(tmp_path, "a_512.pth", "a_512_metrics.jsonl", "a_512.json", "ab_512.pth")
    assert find_weights("a", tmp_path, flag="--w") == tmp_path / "a_512.pth"


@pytest.mark.parametrize(("size", "moe", "found"), [
    (512, 0, "a_512.pth"), (512, 1, "a_512_moe.pth"), (768, None, "a_768.safetensors")])
def test_flags_choose_among_several(tmp_path, size, moe, found):
    touch(tmp_path, "a_512.pth", "a_512_moe.pth", "a_768.safetensors")
    assert find_weights("a", tmp_path, flag="--w", hidden_size=size, use_moe=moe) == tmp_path / found


def test_several_that_match_are_listed_and_none_is_guessed(tmp_path):
    touch(tmp_path, "a_512.pth", "a_768.pth")
    with pytest.raises(UserError, match=r"--w a means several files, .*a_512\.pth, .*a_768\.pth: say which"):
        find_weights("a", tmp_path, flag="--w")


def test_the_repositorys_own_weights_are_found_from_another_folder(tmp_path, repository):
    assert find_weights("pretrain", tmp_path, flag="--w") == repository / "out/pretrain_256.pth"


def test_a_missing_name_tells_what_makes_it_and_what_is_there(tmp_path):
    touch(tmp_path, "other_512.pth")
    with pytest.raises(UserError) as error:
        find_weights("full_sft", tmp_path, flag="--weight", hidden_size=640)
    assert "no full_sft_640[_moe].pth or .safetensors" in str(error.value)
    assert "python trainer/train_full_sft.py makes it" in str(error.value)
    assert "other_512.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_is_taken_as_a_path(tmp_path):
    touch(tmp_path, "x.pth")
    assert find_weights(str(tmp_path / "x.pth"), "nowhere", flag="--w") == tmp_path / "x.pth"
    with pytest.raises(UserError, match="no such file"):
        find_weights(str(tmp_path / "y.pth"), "nowhere", flag="--w")


@pytest.mark.parametrize("config", [TINY, TINY_MOE, replace(TINY, rope_scaling=YarnScaling(factor=4.0))],
                         ids=["dense", "moe", "yarn"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_back_with_their_configuration(tmp_path, config, suffix):
    torch.manual_seed(0)
    model, path = MiniMindForCausalLM(config).eval(), tmp_path / f"a_16{suffix}"
    write_weights(path, model, "float32", {"stage": "full_sft"})
    weights = read_weights(path)
    assert weights.config == config
    assert weights.sidecar["stage"] == "full_sft"
    ids = torch.arange(10)
    assert torch.equal(weights.build_model().eval().document_logits(ids, (0, 10)), model.document_logits(ids, (0, 10)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_16.json", f"a_16{suffix}"]


def test_equal_weights_are_equal_files(tmp_path):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    (tmp_path / "x").mkdir()
    for folder in (tmp_path, tmp_path / "x"):
        write_weights(folder / "a_16.pth", model, "float32", {})
    assert (tmp_path / "a_16.pth").read_bytes() == (tmp_path / "x/a_16.pth").read_bytes()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weights_file_that_its_sidecar_does_not_describe_is_refused(tmp_path, suffix):
    """As when a training is killed between writing the two."""
    for name in ("a_16", "b_16"):
        write_weights(tmp_path / f"{name}{suffix}", MiniMindForCausalLM(TINY), "float32", {})
    (tmp_path / f"b_16{suffix}").rename(tmp_path / f"a_16{suffix}")
    with pytest.raises(UserError, match=r"is not the file that .*a_16\.json describes \(sha256\)"):
        read_weights(tmp_path / f"a_16{suffix}")


def test_written_weights_are_half_precision_on_request(tmp_path):
    write_weights(tmp_path / "a_16.pth", MiniMindForCausalLM(TINY), "float16", {})
    assert {tensor.dtype for tensor in read_weights(tmp_path / "a_16.pth").tensors.values()} == {torch.float16}


def test_a_nan_never_gets_into_a_file(tmp_path):
    path, model = tmp_path / "a_16.pth", MiniMindForCausalLM(TINY)
    write_weights(path, model, "float16", {})
    before = path.read_bytes()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(UserError, match=r"model\.norm\.weight is not finite in float16; nothing was written"):
        write_weights(path, model, "float16", {})
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_minimind_s_own_file_needs_no_sidecar(shared, kind, capsys):
    folder = shared / "reference/minimind" / kind
    said = json.loads((folder / "expected.json").read_text())["config"]
    weights = read_weights(folder / "weights.pth")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "use_moe", "rope_theta", "norm_topk_prob", "tie_word_embeddings", "rms_norm_eps"):
        assert getattr(weights.config, name) == said[name], name
    weights.build_model()
    assert "has no sidecar; its shapes say 64 x 2 layers" in capsys.readouterr().out


def test_loading_runs_no_code(tmp_path):
    class Mischief:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (tmp_path / "a_16.pth").write_bytes(pickle.dumps({"x": Mischief()}))
    with pytest.raises(UserError, match=r"a_16\.pth: not a weights file that can be read"):
        read_weights(tmp_path / "a_16.pth")
    torch.save({"x": Mischief()}, tmp_path / "b_16.pth")
    with pytest.raises(UserError, match=r"b_16\.pth: not a weights file that can be read"):
        read_weights(tmp_path / "b_16.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_torn_file_is_refused_in_one_line(tmp_path, suffix, keep):
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


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not a sidecar that can be read"),
    ("[]", "model: expected an object"),
    ('{"model": {"hidden": 1}}', "unknown field 'hidden'"),
])
def test_a_broken_sidecar_is_refused(tmp_path, text, message):
    path = tmp_path / "a_16.pth"
    write_weights(path, MiniMindForCausalLM(TINY), "float16", {})
    path.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_a_field_that_disagrees_is_named_with_both_values(tmp_path):
    path = tmp_path / "a_16.pth"
    write_weights(path, MiniMindForCausalLM(TINY), "float16", {"tokenizer": "abc"})
    weights = read_weights(path)
    weights.check("tokenizer", "abc")
    weights.check("chat_template", "anything: the sidecar says nothing of it")
    with pytest.raises(UserError, match=r"a_16\.json: tokenizer is abc, here it is xyz"):
        weights.check("tokenizer", "xyz")


def test_an_untied_head_without_a_sidecar_is_seen(tmp_path):
    model = MiniMindForCausalLM(replace(TINY, tie_word_embeddings=False))
    torch.save(model.state_dict(), tmp_path / "a_16.pth")
    assert read_weights(tmp_path / "a_16.pth").config.tie_word_embeddings is False


def test_what_is_no_minimind_model_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a_16.pth")
    with pytest.raises(UserError, match=r"not a MiniMind-3 state dict: it has no model\.embed_tokens\.weight"):
        read_weights(tmp_path / "a_16.pth")
    torch.save([1, 2], tmp_path / "b_16.pth")
    with pytest.raises(UserError, match=r"expected a state dict"):
        read_weights(tmp_path / "b_16.pth")


