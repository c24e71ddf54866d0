"""Adapters in MiniMind's format: read, and written as MiniMind's loader expects them."""

import copy
from dataclasses import replace

import pytest
import torch
from export_models import CONFIGS, LLAMA, QWEN3
from torch import nn

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.adapters.minimind import square_matrices, write_minimind
from minimind_sft.model.adapters.reading import read_adapter
from minimind_sft.model.decoder import MiniMindForCausalLM

SQUARE = replace(LLAMA, num_hidden_layers=1)  # q_proj and o_proj are 32 x 32, k_proj and v_proj 16 x 32
MOE = replace(CONFIGS["qwen3_moe"], num_hidden_layers=1, num_experts=3, num_key_value_heads=1)  # experts are 32 x 32
QUERY, OUTPUT = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"


class TheirLoRA(nn.Module):
    """MiniMind's layer of the same name, with what its loader relies on: two linear layers without bias."""

    def __init__(self, size: int, rank: int):
        super().__init__()
        self.A, self.B = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False)

    def forward(self, x):
        return self.B(self.A(x))


def load_as_minimind(model: nn.Module, path) -> None:
    """Does what MiniMind's `apply_lora` and `load_lora` do: one layer of rank 16 beside each square nn.Linear, the
    router and the head included, whose two tensors must be there exactly."""
    state = torch.load(path, weights_only=True)
    used = set()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module.in_features == module.out_features:
            beside = TheirLoRA(module.in_features, 16)
            names = {f"{name}.lora.{part}.weight" for part in "AB"}
            beside.load_state_dict({one.removeprefix(f"{name}.lora."): state[one] for one in names & state.keys()})
            module.register_forward_hook(lambda _, x, y, beside=beside: y + beside(x[0]))
            used |= names
    assert used == state.keys()


def logits(model):
    with torch.no_grad():
        return model.eval().document_logits(torch.arange(32), [0, 20, 32])


def random_change(size, rank=4, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((rank, size), (size, rank)))
    return Change(a, b, scale)


def test_their_loader_takes_the_file_and_computes_the_same(tmp_path):
    torch.manual_seed(0)
    ours = MiniMindForCausalLM(replace(SQUARE, vocab_size=32))  # a square head, too
    theirs = copy.deepcopy(ours)
    adapter = Adapter(tmp_path / "x", {QUERY: random_change(32)})
    write_minimind(tmp_path / "a_32.pth", adapter, ours.config, "float32")
    plain = logits(ours)
    load_as_minimind(theirs, tmp_path / "a_32.pth")
    apply_adapters(ours, [(adapter, 1.0)])
    assert torch.allclose(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    assert (plain - logits(ours)).abs().max() > 1e-3


def test_the_names_shapes_and_values_of_the_file(tmp_path):
    change = random_change(32, scale=0.5)
    write_minimind(tmp_path / "a_32.pth", Adapter(tmp_path / "x", {QUERY: change}), SQUARE)
    state = torch.load(tmp_path / "a_32.pth", weights_only=True)
    assert {name: (list(tensor.shape), tensor.dtype) for name, tensor in state.items()} == {
        f"{name}.lora.{part}.weight": (shape, torch.float16)
        for name in (QUERY, OUTPUT) for part, shape in (("A", [16, 32]), ("B", [32, 16]))}
    assert torch.equal(state[f"{QUERY}.lora.A.weight"][:4], change.a.half())
    assert torch.equal(state[f"{QUERY}.lora.B.weight"][:, :4], (change.b * 0.5).half())
    assert not state[f"{QUERY}.lora.A.weight"][4:].any() and not state[f"{OUTPUT}.lora.B.weight"].any()


def test_square_matrices():
    assert square_matrices(SQUARE) == {QUERY: 32, OUTPUT: 32}
    assert square_matrices(replace(QWEN3, num_key_value_heads=1)) == {}
    assert square_matrices(replace(SQUARE, vocab_size=32)) == {"lm_head": 32, QUERY: 32, OUTPUT: 32}
    experts = {f"model.layers.0.mlp.experts.{expert}.{name}": 32
               for expert in range(3) for name in ("gate_proj", "up_proj", "down_proj")}
    assert square_matrices(MOE) == experts
    assert square_matrices(replace(MOE, num_experts=32)).keys() >= {"model.layers.0.mlp.gate"}


def test_experts_both_ways(tmp_path):
    """Two experts of the file have adapters of different ranks; the other one does not change."""
    name = "model.layers.0.mlp.experts"
    change = random_change(32)
    torch.save({f"{name}.1.up_proj.lora.A.weight": change.a, f"{name}.1.up_proj.lora.B.weight": change.b,
                f"{name}.2.up_proj.lora.A.weight": change.a[:2], f"{name}.2.up_proj.lora.B.weight": change.b[:, :2]},
               tmp_path / "a.pth")
    adapter = read_adapter(tmp_path / "a.pth", MOE)
    delta = adapter.changes[f"{name}.up_proj"]
    expected = torch.stack([torch.zeros(32, 32), change.b @ change.a, change.b[:, :2] @ change.a[:2]])
    assert delta.scale == 1.0 and torch.allclose(delta.b @ delta.a, expected)
    write_minimind(tmp_path / "b.pth", adapter, MOE, "float32")
    again = read_adapter(tmp_path / "b.pth", MOE).changes
    assert list(again) == [f"{name}.up_proj"]
    assert torch.allclose(again[f"{name}.up_proj"].b @ again[f"{name}.up_proj"].a, expected)


def test_a_file_of_theirs_is_read(tmp_path):
    """Half precision, some modules only, and the prefix of DistributedDataParallel."""
    change = random_change(32, rank=16)
    torch.save({f"module.{QUERY}.lora.A.weight": change.a.half(), f"module.{QUERY}.lora.B.weight": change.b.half()},
               tmp_path / "lora_medical_32.pth")
    adapter = read_adapter(tmp_path / "lora_medical_32.pth", SQUARE)
    assert list(adapter.changes) == [QUERY] and adapter.base is None and adapter.sidecar is None
    assert torch.equal(adapter.changes[QUERY].a, change.a.half().float()) and adapter.changes[QUERY].scale == 1.0
    assert adapter.notices[-1] == (f"{tmp_path}/lora_medical_32.pth: an adapter of MiniMind, which does not say what "
                                   "weights it was trained on")


@pytest.mark.parametrize(("tensors", "expected"), [
    ({f"{QUERY}.lora.A.weight": torch.ones(16, 32)}, f"{QUERY}.lora.B.weight: missing, but A is there"),
    ({f"{QUERY}.lora.B.weight": torch.ones(32, 16)}, f"{QUERY}.lora.A.weight: missing, but B is there"),
    ({f"{QUERY}.lora.A.weight": torch.ones(16, 16), f"{QUERY}.lora.B.weight": torch.ones(16, 16)},
     f"{QUERY}: A is [16, 16], expected [16, 32] for this model and rank 16"),
    ({"base_model.model.x.lora_A.weight": torch.ones(1, 1)},
     "base_model.model.x.lora_A.weight: a tensor of PEFT's: give the folder that has adapter_config.json"),
    ({"model.norm.weight": torch.ones(32)}, "model.norm.weight: not a matrix of an adapter"),
    ({"a.mlp.experts.00.up_proj.lora.A.weight": torch.ones(1, 1), "a.mlp.experts.00.up_proj.lora.B.weight":
      torch.ones(1, 1)}, "a.mlp.experts.00.up_proj: the model has no such projection"),
])
def test_files_that_are_refused(tmp_path, tensors, expected):
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(UserError) as error:
        read_adapter(tmp_path / "a.pth", SQUARE)
    assert str(error.value).startswith(f"{tmp_path}/a.pth: {expected}")


@pytest.mark.parametrize("expert", [3, 0])
def test_experts_that_do_not_fit_are_refused(tmp_path, expert):
    name = f"model.layers.0.mlp.experts.{expert}.up_proj.lora"
    torch.save({f"{name}.A.weight": torch.ones(4, 32), f"{name}.B.weight": torch.ones(32 + (expert == 0), 4)},
               tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"mlp\.experts\.up_proj, expert {expert}: A is .*, but the model has 3 "
                       r"experts of \[32, 32\]"):
        read_adapter(tmp_path / "a.pth", MOE)


@pytest.mark.parametrize(("changes", "saved", "expected"), [
    ({"model.layers.0.self_attn.k_proj": random_change(32)}, {},
     r"k_proj: MiniMind has adapters only for square matrices, here q_proj, o_proj: "),
    ({QUERY: random_change(32, rank=17)}, {}, r"q_proj: rank 17, but MiniMind's adapters have rank 16"),
    ({QUERY: random_change(32)}, {"model.norm.weight": torch.ones(32)}, r"model\.norm\.weight: trained in full, but"),
    ({QUERY: random_change(32, scale=1e9)}, {}, r"--dtype float16: .*q_proj\.lora\.B\.weight has values too large"),
])
def test_adapters_that_they_cannot_hold(tmp_path, changes, saved, expected):
    with pytest.raises(UserError, match=expected):
        write_minimind(tmp_path / "a_32.pth", Adapter(tmp_path / "x", changes, saved), SQUARE)
    assert list(tmp_path.iterdir()) == []


def test_zeros_for_a_tied_head_are_no_adapter(tmp_path):
    config = replace(SQUARE, vocab_size=32)
    write_minimind(tmp_path / "a_32.pth", Adapter(tmp_path / "x", {QUERY: random_change(32)}), config)
    assert list(read_adapter(tmp_path / "a_32.pth", config).changes) == [QUERY]
