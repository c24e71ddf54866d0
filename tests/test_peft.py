"""Adapters of PEFT, read and written. PEFT itself judges the logits; names, splits and refusals need no PEFT."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_decoder import FAMILIES as SHAPES
from tiny_decoder import TINY, TINY_MOE
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.checking import projection_shapes
from minimind_sft.model.adapters.peft import read_peft, write_peft
from minimind_sft.model.adapters.peft_config import endings
from minimind_sft.model.adapters.peft_names import join, split, stack, unstack
from minimind_sft.model.adapters.reading import read_adapter
from minimind_sft.model.families.registry import FAMILIES

QWEN3 = replace(TINY, num_hidden_layers=2, tie_word_embeddings=False)
TIED = replace(QWEN3, tie_word_embeddings=True)
MOE = replace(TINY_MOE, num_hidden_layers=2)
PHI3 = replace(QWEN3, qk_norm=False)
GPT2 = replace(SHAPES["gpt2"], num_hidden_layers=2)
LAYER = "base_model.model.model.layers.0."


def adapter_of(config: Any, names: tuple[str, ...] = (), rank: int = 3, **saved: Tensor) -> Adapter:
    """Returns a random adapter of the projections that contain one of the names; of all without names."""
    torch.manual_seed(0)
    return Adapter(Path("adapter"), {
        name: Change(torch.randn(*stacked, rank, inputs), torch.randn(*stacked, outputs, rank), 2.0)
        for name, (*stacked, outputs, inputs) in projection_shapes(config).items()
        if name != "lm_head" and (not names or any(one in name for one in names))}, saved)


def written(folder: Path, family: str, config: Any, adapter: Adapter, **more: Any) -> tuple[dict, dict[str, Tensor]]:
    """Writes an adapter; returns its adapter_config.json and its tensors."""
    write_peft(folder, adapter, FAMILIES[family], config, **more)
    return (json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors"))


def delta(change: Change) -> Tensor:
    return change.scale * change.b @ change.a


# Joined and stacked matrices


def test_parts_of_a_joined_matrix_share_a_and_split_b():
    a, b = torch.randn(3, 5), torch.randn(7, 3)
    first, second = split(Change(a, b, 2.0), [4, 3])
    assert torch.equal(first.a, a) and torch.equal(second.a, a)
    assert torch.equal(first.b, b[:4]) and torch.equal(second.b, b[4:]) and second.scale == 2.0


def test_an_untrained_joined_adapter_keeps_all_its_parts():
    parts = split(Change(torch.randn(3, 5), torch.zeros(7, 3), 2.0), [4, 3])
    assert [part.b.shape for part in parts] == [(4, 3), (3, 3)]


def test_joined_parts_become_block_diagonal():
    q = Change(torch.ones(1, 2), torch.full((2, 1), 3.0), 0.5)
    v = Change(torch.full((2, 2), 2.0), torch.tensor([[5.0, 6.0]]), 0.5)
    joined = join([q, None, v], [2, 1, 1])
    assert joined.a.tolist() == [[1, 1], [2, 2], [2, 2]]
    assert joined.b.tolist() == [[3, 0, 0], [3, 0, 0], [0, 0, 0], [0, 5, 6]]
    assert joined.scale == 0.5
    back = split(joined, [2, 1, 1])
    assert back[1] is None
    for part, expected in zip((back[0], back[2]), (q, v), strict=True):
        assert torch.equal(part.a, expected.a) and torch.equal(part.b, expected.b)


def test_parts_with_the_same_a_are_joined_without_a_higher_rank():
    a = torch.randn(3, 5)
    joined = join([Change(a, torch.randn(4, 3), 2.0), Change(a.clone(), torch.randn(2, 3), 2.0)], [4, 2])
    assert joined.a.shape == (3, 5) and joined.b.shape == (6, 3)


def test_parts_of_different_scales_are_joined():
    q, k = Change(torch.randn(1, 5), torch.randn(4, 1), 2.0), Change(torch.randn(2, 5), torch.randn(2, 2), 0.5)
    torch.testing.assert_close(delta(join([q, k], [4, 2])), torch.cat([delta(q), delta(k)]))


def test_stacked_experts_are_laid_out_as_pefts_param_wrapper_reads_them():
    """PEFT: A (E * r, I) as (E, r, I), B (O, r * E) as (O, r, E); the change is "o r e, e r i -> e o i"."""
    change = Change(torch.randn(5, 3, 7), torch.randn(5, 2, 3), 1.5)
    flat = unstack(change)
    assert flat.a.shape == (15, 7) and flat.b.shape == (2, 15)
    theirs = torch.einsum("ore,eri->eoi", flat.b.reshape(2, 3, 5), flat.a.reshape(5, 3, 7)) * 1.5
    torch.testing.assert_close(delta(change), theirs)
    back = stack(flat, 5)
    assert torch.equal(back.a, change.a) and torch.equal(back.b, change.b)


# What is written


def test_names_and_configuration_of_qwen3(tmp_path: Path):
    content, tensors = written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj", "down_proj")), base="me/qwen")
    assert {name: list(tensor.shape) for name, tensor in tensors.items() if LAYER in name} == {
        LAYER + "self_attn.q_proj.lora_A.weight": [3, 24], LAYER + "self_attn.q_proj.lora_B.weight": [32, 3],
        LAYER + "mlp.down_proj.lora_A.weight": [3, 40], LAYER + "mlp.down_proj.lora_B.weight": [24, 3]}
    assert content == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "me/qwen", "inference_mode": True,
        "r": 3, "lora_alpha": 6, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["q_proj", "down_proj"],
        "target_parameters": None, "modules_to_save": None, "ensure_weight_tying": False, "fan_in_fan_out": False}


def test_names_and_ranks_of_gpt2(tmp_path: Path):
    content, tensors = written(tmp_path, "gpt2", GPT2, adapter_of(GPT2))
    shapes = {name.removeprefix("base_model.model."): list(tensor.shape) for name, tensor in tensors.items()}
    assert {name: shape for name, shape in shapes.items() if ".0.a" in name} == {
        "transformer.h.0.attn.c_attn.lora_A.weight": [9, 24], "transformer.h.0.attn.c_attn.lora_B.weight": [96, 9],
        "transformer.h.0.attn.c_proj.lora_A.weight": [3, 32], "transformer.h.0.attn.c_proj.lora_B.weight": [24, 3]}
    assert content["target_modules"] == ["c_attn", "c_proj", "c_fc"] and content["fan_in_fan_out"]
    assert (content["r"], content["lora_alpha"]) == (3, 6)
    assert (content["rank_pattern"], content["alpha_pattern"]) == ({"c_attn": 9}, {"c_attn": 18})


def test_names_and_ranks_of_stacked_experts(tmp_path: Path):
    content, tensors = written(tmp_path, "qwen3_moe", MOE, adapter_of(MOE, ("experts", "o_proj")))
    assert {name: list(tensor.shape) for name, tensor in tensors.items() if LAYER + "mlp" in name} == {
        LAYER + "mlp.experts.base_layer.lora_A.weight": [5 * 6, 24],
        LAYER + "mlp.experts.base_layer.lora_B.weight": [32, 5 * 6],
        LAYER + "mlp.experts.lora_A.weight": [5 * 3, 16], LAYER + "mlp.experts.lora_B.weight": [24, 5 * 3]}
    assert content["target_modules"] == ["o_proj"]
    assert content["target_parameters"] == ["gate_up_proj", "down_proj"]
    assert content["rank_pattern"] == {"gate_up_proj": 6}


def test_one_layer_is_named_by_its_number(tmp_path: Path):
    content, _ = written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("1.self_attn.q_proj",)))
    assert content["target_modules"] == ["1.self_attn.q_proj"]


@pytest.mark.parametrize(("wanted", "names", "expected"), [
    (["a.x.norm"], ["a.x.norm", "a.y.q_norm"], ["x.norm"]),  # PEFT compares ends of strings, not of names
    (["norm"], ["norm", "a.b"], ["norm"]),
    (["h.0.c", "h.1.c"], ["h.0.c", "h.1.c", "h.1.d"], ["c"]),
    (["h.1.c"], ["h.1.c", "h.11.c"], ["h.1.c"]),
])
def test_targets_are_the_shortest_ends_that_mean_exactly_them(wanted: list, names: list, expected: list):
    assert endings(wanted, names) == expected


def test_a_tied_embedding_is_written_under_both_names(tmp_path: Path):
    embedding = torch.randn(61, 24)
    content, tensors = written(tmp_path, "qwen3", TIED,
                               adapter_of(TIED, ("q_proj",), **{"model.embed_tokens.weight": embedding}))
    assert torch.equal(tensors["base_model.model.model.embed_tokens.weight"], embedding)
    assert torch.equal(tensors["base_model.model.lm_head.weight"], embedding)
    assert content["modules_to_save"] == ["embed_tokens", "lm_head"] and content["ensure_weight_tying"]
    assert list(read_adapter(tmp_path, TIED).saved) == ["model.embed_tokens.weight"]


def test_part_of_a_joined_matrix_cannot_be_written_in_full(tmp_path: Path):
    adapter = adapter_of(GPT2, ("o_proj",), **{"model.layers.0.self_attn.q_proj.weight": torch.ones(32, 24)})
    with pytest.raises(UserError, match=r"k_proj\.weight.*not trained in full, but other parts of .*c_attn\.weight"):
        written(tmp_path, "gpt2", GPT2, adapter)
    assert not list(tmp_path.iterdir())


def test_values_too_large_for_the_dtype_are_not_written(tmp_path: Path):
    adapter = adapter_of(QWEN3, ("q_proj",))
    next(iter(adapter.changes.values())).a[0, 0] = 1e6
    with pytest.raises(UserError, match=r"q_proj\.lora_A.*not finite in float16"):
        written(tmp_path, "qwen3", QWEN3, adapter, dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("family", "config"), [("qwen3", QWEN3), ("gpt2", GPT2), ("phi3", PHI3), ("qwen3_moe", MOE)])
def test_what_is_written_is_read_again(family: str, config: Any, tmp_path: Path):
    adapter = adapter_of(config, **{"model.norm.weight": torch.randn(24)})
    written(tmp_path, family, config, adapter)
    found = read_adapter(tmp_path, config)
    assert found.changes.keys() == adapter.changes.keys()
    for name, change in adapter.changes.items():
        assert torch.equal(found.changes[name].a, change.a) and torch.equal(found.changes[name].b, change.b)
        assert found.changes[name].scale == change.scale
    assert torch.equal(found.saved["model.norm.weight"], adapter.saved["model.norm.weight"])
    assert found.base is None and "an adapter of PEFT; nothing in it identifies the weights" in found.notices[0]


# What is refused


REFUSED_FIELDS = [
    ({"peft_type": "IA3"}, r'peft_type: is "IA3", expected "LORA"'),
    ({"peft_type": None}, r"peft_type: "),
    ({"use_dora": True}, r"use_dora: is true: DoRA is not supported"),
    ({"bias": "all"}, r'bias: is "all", expected "none"'),
    ({"bias": "lora_only"}, r'bias: is "lora_only", expected "none"'),
    ({"lora_bias": True}, r"lora_bias: is true"),
    ({"use_qalora": True}, r"use_qalora: is true: QALoRA"),
    ({"layer_replication": [[0, 1], [0, 2]]}, r"layer_replication: is a list"),
    ({"trainable_token_indices": [3]}, r"trainable_token_indices: "),
    ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens: "),
    ({"use_bdlora": {"nblocks": 2}}, r"use_bdlora: is an object"),
    ({"init_lora_weights": "pissa_niter_4"}, r'init_lora_weights: is "pissa_niter_4".*path_initial_model'),
    ({"init_lora_weights": "loftq"}, r'init_lora_weights: is "loftq"'),
    ({"task_type": "SEQ_CLS"}, r'task_type: is "SEQ_CLS", expected "CAUSAL_LM"'),
    ({"fan_in_fan_out": True}, r"fan_in_fan_out in adapter_config\.json is true"),
    ({"r": 0}, r"r: expected a whole number from 1, found 0"),
    ({"r": 4}, r"q_proj: lora_A has 3 rows, but adapter_config\.json says rank 4"),
    ({"rank_pattern": {"1.self_attn.q_proj": 2}}, r"layers\.1\.self_attn\.q_proj: lora_A has 3 rows"),
    ({"rank_pattern": {"q_proj": "3"}}, r'rank_pattern\.q_proj: expected a whole number from 1, found "3"'),
    ({"rank_pattern": {"(": 3}}, r"rank_pattern\.\(: not a regular expression"),
    ({"rank_pattern": [3]}, r"rank_pattern: expected an object"),
    ({"lora_alpha": None}, r"lora_alpha: expected a number"),
    ({"lora_alpha": float("nan")}, r"NaN is not a number in JSON"),
    ({"use_rslora": "yes"}, r"use_rslora: expected true or false"),
    ({"target_modules": 3}, r"target_modules: expected a list of names, found 3"),
    ({"target_modules": ["q_proj", "k_proj"]}, r"k_proj.*missing, but adapter_config\.json names it as a target"),
    ({"target_modules": ["v_proj"]}, r"v_proj.*missing"),
    ({"layers_to_transform": [0]}, r"layers\.1\.self_attn\.q_proj: has an adapter, but is no target"),
    ({"gate_sharing": 2}, r"gate_sharing: is 2, a field unknown here"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED_FIELDS)
def test_refused_fields(fields: dict, message: str, tmp_path: Path):
    content, _ = written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | fields))
    with pytest.raises(UserError, match=message) as refusal:
        read_adapter(tmp_path, QWEN3)
    assert str(refusal.value).startswith(str(tmp_path)) and "\n" not in str(refusal.value)


def test_unknown_fields_that_are_off_are_accepted(tmp_path: Path):
    content, _ = written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    new = {"use_something_new": False, "something_config": None, "something_else": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | new))
    assert read_adapter(tmp_path, QWEN3).changes


def test_conv1d_without_fan_in_fan_out_is_read(tmp_path: Path):
    """PEFT corrects the field itself when it meets a Conv1D; A and B are the same either way."""
    content, _ = written(tmp_path, "gpt2", GPT2, adapter_of(GPT2, ("q_proj",)))
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | {"fan_in_fan_out": False}))
    assert read_adapter(tmp_path, GPT2).changes.keys() == {f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


Q_A, Q_B = LAYER + "self_attn.q_proj.lora_A.weight", LAYER + "self_attn.q_proj.lora_B.weight"
REFUSED_TENSORS = [
    (lambda tensors: {name: tensor for name, tensor in tensors.items() if name != Q_B},
     r"layers\.0\.self_attn\.q_proj\.lora_B\.weight: missing, but lora_A is there"),
    (lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1" not in name},
     r"layers\.1\.self_attn\.q_proj: missing, but adapter_config\.json names it"),
    (lambda tensors: tensors | {Q_A: torch.full((3, 24), float("nan"))}, r"layers\.0\.self_attn\.q_proj: A has .*NaN"),
    (lambda tensors: tensors | {Q_A: torch.ones(3, 23)}, r"q_proj: A is \[3, 23\], expected \[3, 24\]"),
    (lambda tensors: tensors | {Q_B: torch.ones(31, 3)}, r"q_proj: lora_B has 31 outputs, but the matrix has 32"),
    (lambda tensors: tensors | {Q_B: torch.ones(32)}, r"q_proj: lora_A is \[3, 24\] and lora_B \[32\]"),
    (lambda tensors: tensors | {Q_A: torch.ones(0, 24), Q_B: torch.ones(32, 0)}, r"q_proj\.lora_A\.weight: is empty"),
    (lambda tensors: tensors | {Q_A: torch.ones(3, 24, dtype=torch.int8)}, r"q_proj\.lora_A\.weight: .*int8"),
    (renamed("lora_A.weight", "lora_A.default.weight"), r"lora_A\.default\.weight: not a matrix of a plain LoRA"),
    (renamed("base_model.model.", ""), r"expected a name that begins with base_model\.model\."),
    (renamed("q_proj", "query"), r"self_attn\.query.*: unknown in this model"),
    (renamed("self_attn.q_proj", "mlp.gate"), r"layers\.0\.mlp\.gate: an adapter on the router is not supported"),
    (lambda tensors: tensors | {LAYER + "self_attn.q_proj.lora_magnitude_vector": torch.ones(32)},
     r"lora_magnitude_vector: not a matrix of a plain LoRA adapter"),
    (lambda tensors: tensors | {LAYER + "self_attn.q_proj.lora_B.bias": torch.ones(32)}, r"lora_B\.bias: not a matrix"),
    (lambda tensors: tensors | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(3, 61)},
     r"embed_tokens\.lora_embedding_A: an adapter on the embedding is not supported"),
    (lambda tensors: tensors | {"base_model.model.score.weight": torch.ones(2, 24)}, r"score\.weight: unknown"),
    (lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.ones(64, 24)}, r"lm_head\.weight: has shape"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_TENSORS)
def test_refused_tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path):
    _, tensors = written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()},
              tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message) as refusal:
        read_adapter(tmp_path, QWEN3)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_embedding_trained_apart_from_its_tied_head_is_refused(tmp_path: Path):
    adapter = adapter_of(TIED, ("q_proj",), **{"model.embed_tokens.weight": torch.randn(61, 24)})
    _, tensors = written(tmp_path, "qwen3", TIED, adapter)
    head = tensors.pop("base_model.model.lm_head.weight")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"embed_tokens\.weight: trained in full, but lm_head\.weight is not there"):
        read_adapter(tmp_path, TIED)
    save_file(tensors | {"base_model.model.lm_head.weight": head + 1}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight"):
        read_adapter(tmp_path, TIED)


def test_an_adapter_on_a_tied_head_is_refused(tmp_path: Path):
    _, tensors = written(tmp_path, "qwen3", TIED, adapter_of(TIED, ("q_proj",)))
    tensors |= {"base_model.model.lm_head.lora_A.weight": torch.ones(3, 24),
                "base_model.model.lm_head.lora_B.weight": torch.ones(61, 3)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"lm_head: an adapter on the head, which this model shares with its embedding"):
        read_adapter(tmp_path, TIED)


def test_an_adapter_of_some_experts_is_refused(tmp_path: Path):
    content, tensors = written(tmp_path, "qwen3_moe", MOE, adapter_of(MOE, ("q_proj",)))
    for expert in range(4):
        for layer in range(2):
            module = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.up_proj"
            tensors |= {f"{module}.lora_A.weight": torch.ones(3, 24), f"{module}.lora_B.weight": torch.ones(16, 3)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    targets = ["q_proj", *(f"experts.{expert}.up_proj" for expert in range(4))]
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | {"target_modules": targets}))
    with pytest.raises(UserError, match=r"mlp\.experts\.up_proj: expert 4 has no adapter, but others have"):
        read_adapter(tmp_path, MOE)


def test_an_adapter_of_another_size_is_refused(tmp_path: Path):
    written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.q_proj: missing"):
        read_peft(tmp_path, replace(QWEN3, num_hidden_layers=3))


def test_a_folder_without_tensors_is_refused(tmp_path: Path):
    written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has adapter_config\.json, but no adapter_model\.safetensors"):
        read_adapter(tmp_path, QWEN3)


@pytest.mark.parametrize(("content", "problem"), [
    ("", "expected a JSON object, the file is empty"), ("[]", "expected a JSON object, found an empty list"),
    ("{", "expected a JSON object, found broken JSON"), ('{"r": 1, "r": 2}', "r is there twice")])
def test_a_configuration_that_is_no_object_is_refused(content: str, problem: str, tmp_path: Path):
    written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=rf"adapter_config\.json: {problem}"):
        read_adapter(tmp_path, QWEN3)


class Harmful:
    def __reduce__(self) -> tuple:
        return print, ("this must not run",)


def test_a_pickle_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture):
    written(tmp_path, "qwen3", QWEN3, adapter_of(QWEN3, ("q_proj",)))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    assert read_adapter(tmp_path, QWEN3).changes
    torch.save(tensors | {"harmful": Harmful()}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin: "):
        read_adapter(tmp_path, QWEN3)
    assert not capsys.readouterr().out


# PEFT is the judge


CASES = ("Qwen3", "Qwen3, rsLoRA, ranks by pattern", "Llama", "Llama, q_proj and head",
         "Llama, tied, embedding in full", "GPT-2",
         "GPT-2, c_attn, c_proj of the MLP in full", "Phi-3", "Qwen3-MoE", "Qwen3-MoE, down_proj alone",
         "Qwen3-MoE, experts and router in full", "Qwen3-MoE, a name for each expert")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_logits_in_both_directions(name: str):
    for module in ("peft", "transformers"):
        pytest.importorskip(module, reason=f"{module} is not installed; it is the judge of this test")
    import peft_exchange  # imports PEFT, which takes seconds

    row = peft_exchange.compare(peft_exchange.CASES[name])
    assert peft_exchange.passes(row), row
