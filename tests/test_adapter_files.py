"""Adapter files of this project: what is written is read again, and what is wrong is refused by name."""

import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from export_models import QWEN3, UNNORMALISED
from safetensors.torch import load_file, save_file
from tiny_adapters import write_base, write_lora

from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.model.adapters.reading import read_adapter, read_adapters, split_weight
from minimind_sft.model.fingerprint import fingerprint
from minimind_sft.model.loaded import LazyTensors
from minimind_sft.model.weights import read_weights

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    base = write_base(folder, QWEN3)
    return base, write_lora(folder, base, "style", saved=("model.norm",))


@pytest.fixture
def style(dense, tmp_path):
    """A copy of an adapter and its sidecar."""
    path = tmp_path / "lora_style_32.safetensors"
    path.write_bytes(dense[1].read_bytes())
    path.with_suffix(".json").write_bytes(dense[1].with_suffix(".json").read_bytes())
    return path


def change_tensors(path, **changed):
    """Replaces tensors of an adapter's file, or removes those that are None, and corrects its SHA-256."""
    tensors = {name: tensor for name, tensor in (load_file(path) | changed).items() if tensor is not None}
    save_file(tensors, path)
    change_sidecar(path, sha256=sha256_of_file(path))


def change_sidecar(path, **changed):
    values = json.loads(path.with_suffix(".json").read_text()) | changed
    path.with_suffix(".json").write_text(json.dumps({name: value for name, value in values.items() if value != ...}))


def test_what_was_written_is_read(dense):
    base, path = dense
    adapter = read_adapter(path, QWEN3)
    tensors = load_file(path)
    assert len(adapter.changes) == 14 and len(tensors) == 29
    change = adapter.changes[Q_PROJ]
    assert torch.equal(change.a, tensors[f"{Q_PROJ}.lora_A"]) and torch.equal(change.b, tensors[f"{Q_PROJ}.lora_B"])
    assert change.a.shape == (4, 32) and change.b.shape == (64, 4) and change.scale == 2.0
    assert list(adapter.saved) == ["model.norm.weight"]
    assert adapter.base == fingerprint(read_weights(base)) and adapter.notices == ()


def test_experts_are_stacked(tmp_path):
    base = write_base(tmp_path, UNNORMALISED)
    adapter = read_adapter(write_lora(tmp_path, base, "style"), UNNORMALISED)
    change = adapter.changes["model.layers.1.mlp.experts.down_proj"]
    assert change.a.shape == (4, 4, 32) and change.b.shape == (4, 32, 4)


def test_ranks_and_scales_may_differ(style):
    tensors = load_file(style)
    names = [name.removesuffix(".lora_A") for name in tensors if name.endswith("lora_A")]
    lora = {"rank": dict.fromkeys(names, 4) | {Q_PROJ: 2}, "scale": dict.fromkeys(names, 2.0) | {Q_PROJ: 0.25}}
    change_tensors(style, **{f"{Q_PROJ}.lora_A": torch.ones(2, 32), f"{Q_PROJ}.lora_B": torch.ones(64, 2)})
    change_sidecar(style, lora=lora)
    changes = read_adapter(style, QWEN3).changes
    assert changes[Q_PROJ].scale == 0.25 and changes[Q_PROJ].a.shape == (2, 32)
    assert changes["model.layers.1.self_attn.q_proj"].scale == 2.0


def test_a_tied_matrix_has_both_names(tmp_path):
    path = write_lora(tmp_path, write_base(tmp_path, QWEN3), "style", saved=("lm_head",))
    tensors = load_file(path)
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert list(read_adapter(path, QWEN3).saved) == ["model.embed_tokens.weight"]
    change_tensors(path, **{"lm_head.weight": tensors["lm_head.weight"] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight, but the model"):
        read_adapter(path, QWEN3)


NAN = torch.full((4, 32), float("nan"))


@pytest.mark.parametrize(("changed", "expected"), [
    ({f"{Q_PROJ}.lora_B": None}, f"{Q_PROJ}.lora_B: missing, but A is there"),
    ({f"{Q_PROJ}.lora_A": None}, f"{Q_PROJ}.lora_A: missing, but B is there"),
    ({f"{Q_PROJ}.lora_A": NAN}, f"{Q_PROJ}: A has values that are NaN or infinite"),
    ({f"{Q_PROJ}.lora_B": torch.full((64, 4), float("inf"))}, f"{Q_PROJ}: B has values that are NaN or infinite"),
    ({f"{Q_PROJ}.lora_B": torch.ones(32, 4)}, f"{Q_PROJ}: B is [32, 4], expected [64, 4] for this model and rank 4"),
    ({f"{Q_PROJ}.lora_A": torch.ones(4, 64)}, f"{Q_PROJ}: A is [4, 64], expected [4, 32] for this model and rank 4"),
    ({f"{Q_PROJ}.lora_A": torch.ones(4, 32, 1)}, f"{Q_PROJ}: A is [4, 32, 1], expected"),
    ({f"{Q_PROJ}.lora_A": torch.ones(4)}, f"{Q_PROJ}: A is [4], expected"),
    ({f"{Q_PROJ}.lora_A": torch.ones(4, 32, dtype=torch.int8)}, f"{Q_PROJ}.lora_A: is int8, expected float16"),
    ({f"{Q_PROJ}.lora_A": torch.ones(0, 32)}, f"{Q_PROJ}.lora_A: is empty (shape [0, 32])"),
    ({"model.norm.weight": torch.ones(16)}, "model.norm.weight: is [16], but the model has [32]"),
    ({"model.norm.weight": torch.full((32,), float("nan"))}, "model.norm.weight: has values that are NaN or infinite"),
    ({"model.other.weight": torch.ones(32)}, "model.other.weight: neither an adapter nor a parameter of the model"),
    ({"model.layers.9.self_attn.q_proj.lora_A": torch.ones(4, 32),
      "model.layers.9.self_attn.q_proj.lora_B": torch.ones(64, 4)},
     "model.layers.9.self_attn.q_proj: the model has no such projection; it has model.layers.0.self_attn.q_proj, "),
    ({"lm_head.lora_A": torch.ones(4, 32), "lm_head.lora_B": torch.ones(6400, 4)},
     "lm_head: an adapter on the head, which this model shares with its embedding (tie_word_embeddings)"),
])
def test_tensors_that_are_refused(style, changed, expected):
    change_tensors(style, **changed)
    with pytest.raises(UserError) as error:
        read_adapter(style, QWEN3)
    assert str(error.value).startswith(f"{style}: {expected}") and "\n" not in str(error.value)


def test_an_adapter_on_the_router_is_refused(tmp_path):
    path = write_lora(tmp_path, write_base(tmp_path, UNNORMALISED), "style")
    change_tensors(path, **{"model.layers.0.mlp.gate.lora_A": torch.ones(4, 32),
                            "model.layers.0.mlp.gate.lora_B": torch.ones(4, 4)})
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate: an adapter on the router, which is not supported"):
        read_adapter(path, UNNORMALISED)


def test_a_rank_beyond_the_matrix_is_refused(style):
    changed = {"lora_A": torch.ones(33, 32), "lora_B": torch.ones(64, 33)}
    change_tensors(style, **{f"{Q_PROJ}.{name}": tensor for name, tensor in changed.items()})
    with pytest.raises(UserError, match=r"lora\.rank: is 4, but .*q_proj\.lora_A in .*safetensors has 33"):
        read_adapter(style, QWEN3)
    names = [name.removesuffix(".lora_A") for name in load_file(style) if name.endswith("lora_A")]
    change_sidecar(style, lora={"rank": dict.fromkeys(names, 4) | {Q_PROJ: 33}, "scale": 2.0})
    with pytest.raises(UserError, match=r"q_proj: rank 33, expected 1 to 32, the smaller side of the matrix"):
        read_adapter(style, QWEN3)


LORA = {"rank": 4, "scale": 2.0}


@pytest.mark.parametrize(("changed", "expected"), [
    ({"lora": ...}, "lora: expected an object with rank and scale of the adapter, found no such field: "
                    "lora_style_32.safetensors is a model, which --weight takes"),
    ({"lora": 3}, "lora: expected an object with rank and scale of the adapter, found 3"),
    ({"lora": {"rank": 4}}, "lora.scale: expected a finite number, found no such field"),
    ({"lora": LORA | {"scale": "2"}}, 'lora.scale: expected a finite number, found "2"'),
    ({"lora": LORA | {"scale": float("nan")}}, "NaN is not a number in JSON"),
    ({"lora": LORA | {"scale": True}}, "lora.scale: expected a finite number, found true"),
    ({"lora": LORA | {"scale": {Q_PROJ: 1.0}}},
     "lora.scale.model.layers.0.mlp.down_proj: expected a finite number, found no such field"),
    ({"lora": LORA | {"rank": 0}}, "lora.rank: expected a whole number of at least 1, found 0"),
    ({"lora": LORA | {"rank": 4.0}}, "lora.rank: expected a whole number of at least 1, found 4.0"),
    ({"lora": LORA | {"rank": 8}}, "lora.rank: is 8, but model.layers.0.mlp.down_proj.lora_A in "),
    ({"base": ...}, "base: expected a SHA-256 (64 hexadecimal digits), found no such field"),
    ({"base": None}, "base: expected a SHA-256 (64 hexadecimal digits), found null"),
    ({"base": "main"}, 'base: expected a SHA-256 (64 hexadecimal digits), found "main"'),
    ({"sha256": ...}, "sha256: expected a SHA-256 (64 hexadecimal digits), found no such field"),
    ({"model": []}, "model: expected an object with the model's configuration, found an empty list"),
    ({"model": {"hidden_size": 32}}, "model.vocab_size: missing; a sidecar has every field of the configuration"),
    ({"model": asdict(replace(QWEN3, num_hidden_layers=3))},
     "model.num_hidden_layers: is 3, but the model has 2: the adapter belongs to other weights"),
    ({"model": asdict(replace(QWEN3, hidden_size=64))},
     "model.hidden_size: is 64, but the model has 32: the adapter belongs to other weights"),
    ({"model": ..., "assume": {}}, "model: expected an object with the model's configuration, found no such field"),
    ({"training": 3}, "training: expected an object, found 3"),
])
def test_sidecars_that_are_refused(style, changed, expected):
    change_sidecar(style, **changed)
    with pytest.raises(UserError) as error:
        read_adapter(style, QWEN3)
    assert str(error.value).startswith(f"{style.with_suffix('.json')}: {expected}")


def test_a_longer_context_is_the_same_model(style):
    assert read_adapter(style, replace(QWEN3, max_position_embeddings=1024)).changes


def test_files_that_are_refused(style):
    sidecar = style.with_suffix(".json")
    text, content = sidecar.read_text(), style.read_bytes()
    for broken, expected in (("{", r"style_32\.json: expected a JSON object, found broken"),
                             ('{"lora": 1, "lora": 2}', r"style_32\.json: lora is there twice")):
        sidecar.write_text(broken)
        with pytest.raises(UserError, match=expected):
            read_adapter(style, QWEN3)
    sidecar.unlink()
    with pytest.raises(UserError, match=r"style_32\.safetensors: has no sidecar lora_style_32\.json beside it"):
        read_adapter(style, QWEN3)
    sidecar.write_text(text)
    style.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"style_32\.safetensors is not the file that .*style_32\.json describes"):
        read_adapter(style, QWEN3)
    for bad, expected in ((content[:1000], "not a weights file that can be read"), (b"", "the file is empty"),
                          (pickle.dumps(print), "not a weights file that can be read")):
        style.write_bytes(bad)
        change_sidecar(style, sha256=sha256_of_file(style))
        with pytest.raises(UserError, match=expected):
            read_adapter(style, QWEN3)


@pytest.mark.parametrize(("name", "expected"), [
    ("model", r"model: the folder of a model, which --weight takes, without adapter_config\.json"),
    ("empty", r"empty: a folder, without adapter_config\.json; expected an adapter's folder as PEFT writes it"),
    ("a.gguf", r"a\.gguf: a GGUF file, expected an adapter: a \.safetensors of this project"),
    ("full_sft_32.pth", r"embed_tokens\.weight: not a matrix of an adapter .*: a model's weights go to --weight"),
    ("code.pth", "holds a Python object|more than tensors"),
])
def test_what_is_no_adapter(dense, tmp_path, name, expected):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "full_sft_32.pth").write_bytes(dense[0].read_bytes())
    torch.save({"x": print}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=expected):
        read_adapter(tmp_path / name, QWEN3)


def test_another_base_is_refused(dense):
    base, path = dense
    weights = read_weights(base)
    assert read_adapters([f"{path}:0.5"], "", weights, "--lora_weight")[0][1] == 0.5
    other = replace(weights, tensors=LazyTensors(weights.tensors, lambda name: weights.tensors[name] * 2))
    with pytest.raises(UserError, match=r"^--from_lora .*style_32\.safetensors: was trained on other weights than .*: "
                       rf"base in lora_style_32\.json is {fingerprint(weights)[:12]}\.\.\., their fingerprint is "
                       rf"{fingerprint(other)[:12]}\.\.\.$"):
        read_adapters([str(path)], "", other, "--from_lora")


@pytest.mark.parametrize(("text", "expected"), [
    ("style", ("style", 1.0)), ("style:0.5", ("style", 0.5)), ("style:-1", ("style", -1.0)),
    ("a:b", ("a:b", 1.0)), (":2", (":2", 1.0)), ("out/x.safetensors:2", ("out/x.safetensors", 2.0))])
def test_weights_of_adapters(text, expected):
    assert split_weight(text) == expected


def test_an_infinite_weight_is_refused():
    with pytest.raises(UserError, match=r"^style:nan: the weight of an adapter is nan, expected a finite number$"):
        split_weight("style:nan")


def test_the_fingerprint_is_that_of_the_values(dense, tmp_path):
    """It says so in its docstring, and files in other formats have the same."""
    import hashlib
    weights = read_weights(dense[0])
    lines = []
    for name in sorted(weights.tensors):
        if name != "lm_head.weight":
            tensor = weights.tensors[name].float().contiguous()
            lines.append(f"{name} {list(tensor.shape)} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}\n")
    assert fingerprint(weights) == hashlib.sha256("".join(lines).encode()).hexdigest()
    halves = replace(weights, tensors=LazyTensors(weights.tensors, lambda name: weights.tensors[name].half()))
    back = replace(weights, tensors=LazyTensors(weights.tensors, lambda name: weights.tensors[name].half().float()))
    assert fingerprint(halves) == fingerprint(back) != fingerprint(weights)
