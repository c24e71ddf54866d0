"""The decoder compared with itself: other micro-batches, other precisions, compiled."""

import copy
import gc
import itertools
import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from programs import PATIENCE, REPOSITORY
from tiny_decoder import TINY, TINY_MOE, build, random_batch
from torch.utils.flop_counter import FlopCounterMode

from minimind_sft.errors import UserError
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model import attention
from minimind_sft.model.config import PRESETS, ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kernels import selection
from minimind_sft.model.layers import RMSNorm

# documents


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
def test_packed_documents_have_the_same_logits_as_alone(config: ModelConfig):
    model = build(config, torch.float64).eval()
    input_ids, _, cu_seqlens = random_batch([9, 1, 17, 4, 5, 16])
    packed = model.document_logits(input_ids, cu_seqlens)
    alone = [model.document_logits(input_ids[a:b], (0, b - a)) for a, b in itertools.pairwise(cu_seqlens)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-11, atol=1e-11)


class Shifted(torch.nn.Module):
    """A head with something around it, as adapters have it."""

    def __init__(self, head: torch.nn.Linear):
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) + x.sum(-1, keepdim=True) * torch.arange(self.head.out_features)


@pytest.mark.parametrize("change", [
    lambda model: setattr(model.lm_head, "bias", torch.nn.Parameter(torch.randn(TINY.vocab_size).double())),
    lambda model: setattr(model, "lm_head", Shifted(model.lm_head)),
    lambda model: model.lm_head.register_forward_hook(lambda module, inputs, output: output.flip(-1)),
], ids=["bias", "adapter", "hook"])
def test_a_changed_head_is_trained_with_its_own_logits(change: Callable[[MiniMindForCausalLM], object]):
    model = build(TINY, torch.float64)
    input_ids, labels, cu_seqlens = random_batch([9, 1, 17, 4])
    before = model(input_ids, labels, cu_seqlens).loss_sum
    change(model)
    loss_sum = model(input_ids, labels, cu_seqlens).loss_sum
    logits = model.document_logits(input_ids, cu_seqlens)
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(loss_sum, expected, rtol=1e-11, atol=0)
    assert abs(float((loss_sum - before).detach())) > 0.01
    loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.lm_head.parameters())


def gradients_of_step(model: MiniMindForCausalLM, batch: tuple, micro_batches: list[list[int]]) -> list[torch.Tensor]:
    """Returns the gradients of a step's loss with its documents in these micro-batches."""
    input_ids, labels, cu_seqlens = batch
    spans = list(itertools.pairwise(cu_seqlens))
    model.zero_grad()
    for documents in micro_batches:
        tokens = torch.tensor([t for d in documents for t in range(*spans[d])], dtype=torch.int64)
        lengths = [spans[d][1] - spans[d][0] for d in documents]
        losses = model(input_ids[tokens], labels[tokens], (0, *itertools.accumulate(lengths)))
        (losses.loss_sum / (labels != IGNORE_INDEX).sum() + losses.aux_loss_sum / len(labels)).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("micro_batches", [
    [[0], [1], [2], [3], [4], [5]],
    [[0, 1, 2], [3, 4, 5]],
    [[5, 3], [0, 1, 2, 4], []],
    [[2, 4, 0, 5, 1, 3]],
], ids=["one_by_one", "halves", "unequal_and_empty", "other_order"])
@pytest.mark.parametrize("config", [TINY, TINY_MOE, replace(TINY_MOE, num_experts_per_tok=1, norm_topk_prob=True)],
                         ids=["dense", "moe", "moe_top1"])
def test_the_gradient_does_not_depend_on_the_micro_batches(config: ModelConfig, micro_batches: list[list[int]]):
    model = build(config, torch.float64)
    batch = random_batch([9, 1, 17, 4, 5, 16])
    whole = gradients_of_step(model, batch, [[0, 1, 2, 3, 4, 5]])
    for (name, _), expected, gradient in zip(
            model.named_parameters(), whole, gradients_of_step(model, batch, micro_batches), strict=True):
        assert (gradient - expected).norm() <= 1e-10 * expected.norm(), name


def test_only_the_per_batch_auxiliary_loss_depends_on_the_micro_batches():
    batch = random_batch([9, 17, 5])
    for scope, same in (("document", True), ("batch", False)):
        model = build(replace(TINY_MOE, aux_loss_scope=scope), torch.float64)
        whole = model(*batch).aux_loss_sum.item()
        cut = sum(model(batch[0][a:b], batch[1][a:b], (0, b - a)).aux_loss_sum.item()
                  for a, b in itertools.pairwise(batch[2]))
        assert (cut == pytest.approx(whole, rel=1e-12)) == same


@pytest.mark.parametrize("cu_seqlens", [(0,), (0, 0)])
@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
def test_an_empty_micro_batch_gives_every_weight_a_zero_gradient(config: ModelConfig, cu_seqlens: tuple[int, ...]):
    model = build(config)
    nothing = torch.empty(0, dtype=torch.int64)
    losses = model(nothing, nothing, cu_seqlens)
    (losses.loss_sum + losses.aux_loss_sum).backward()
    assert (losses.loss_sum.item(), losses.aux_loss_sum.item()) == (0.0, 0.0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_the_default_router_learns_from_the_language_model_loss():
    model = build(replace(TINY_MOE, num_experts_per_tok=1))
    model(*random_batch([20, 12])).loss_sum.backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() > 1e-4 for layer in model.model.layers)


# precision


def test_a_float64_model_has_float64_losses():
    losses = build(TINY_MOE, torch.float64)(*random_batch([8]))
    assert losses.loss_sum.dtype == losses.aux_loss_sum.dtype == torch.float64


def test_under_bfloat16_autocast_norms_rope_and_losses_stay_float32(monkeypatch):
    model, batch, seen = build(TINY_MOE, std=0.1), random_batch([30, 12]), {}
    original = attention.apply_rope

    def spy(x, rope):
        seen["rope"] = original(x, rope)
        return seen["rope"]

    monkeypatch.setattr(attention, "apply_rope", spy)
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm) or name.endswith("up_proj"):
            module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
    exact = model(*batch)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*batch)
    assert losses.loss_sum.dtype == losses.aux_loss_sum.dtype == torch.float32
    assert len(seen) == 1 + 4 * TINY_MOE.num_hidden_layers + 1
    assert {name: out.dtype for name, out in seen.items() if out.dtype != torch.float32} == {}
    assert losses.loss_sum.item() == pytest.approx(exact.loss_sum.item(), rel=0.01)
    assert losses.loss_sum.item() != exact.loss_sum.item()


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
def test_a_bfloat16_model_gives_similar_logits(config: ModelConfig):
    exact, rounded = (build(config, std=0.1).to(dtype).eval() for dtype in (torch.float32, torch.bfloat16))
    input_ids, _, cu_seqlens = random_batch([12, 5])
    logits = rounded.document_logits(input_ids, cu_seqlens)
    assert logits.dtype == torch.bfloat16
    expected = exact.document_logits(input_ids, cu_seqlens)
    assert torch.nn.functional.cosine_similarity(logits.float(), expected, dim=-1).median() > 0.99


# dropout, compile, new weights


def test_dropout_only_acts_in_training_mode():
    model, plain = build(replace(TINY, dropout=0.5)), build(TINY)
    batch = random_batch([20])
    assert model(*batch).loss_sum.item() != model(*batch).loss_sum.item()
    assert model.eval()(*batch).loss_sum.item() == plain(*batch).loss_sum.item()


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "moe"])
def test_compiled_layers_have_the_same_gradients(config: ModelConfig):
    """Uses the backend that only captures graphs; PyTorch tests its own code generator."""
    torch.compiler.reset()
    model = build(config, torch.float64)
    batches = [random_batch(lengths) for lengths in ([9, 5], [7, 7, 3, 1], [16])]
    plain = [gradients_of_step(model, batch, [list(range(len(batch[2]) - 1))]) for batch in batches]
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend="aot_eager")
    compiled = [gradients_of_step(model, batch, [list(range(len(batch[2]) - 1))]) for batch in batches]
    torch.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-12)


def counted_graphs() -> tuple[list[torch.fx.GraphModule], Callable]:
    """Returns a list that collects the compiled graphs, and a backend that runs each graph as it is."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    return graphs, backend


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts one after the other"])
def test_other_document_lengths_reuse_the_compiled_graphs(config: ModelConfig):
    torch.compiler.reset()
    graphs, backend = counted_graphs()
    model, made = build(config, torch.float32), []
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend=backend)
    for lengths in ([9, 5], [7, 7, 3, 1], [16], [30, 2]):
        sum(model(*random_batch(lengths))).backward()
        made.append(len(graphs))
    assert made[1:] == 3 * made[:1]


def test_a_copy_does_not_keep_a_compiled_model_alive():
    model = build(TINY)
    for layer in model.model.layers:
        layer.compile()
    other, attention = copy.deepcopy(model), weakref.ref(model.model.layers[0].self_attn)
    del model, layer
    gc.collect()
    assert attention() is None and other.model.layers[0].self_attn is not None


@pytest.mark.slow
def test_the_chat_does_not_load_the_compiler():
    """Loading it would delay every chat by a second."""
    looks = "import sys, minimind_sft.inference.chat; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", looks], capture_output=True, text=True, cwd=REPOSITORY,
                          timeout=PATIENCE)
    assert done.stdout == "False\n", done.stderr


def test_new_weights_are_normal_and_scaled_down_on_the_residual_stream():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(replace(PRESETS["demo"], use_moe=True))
    layer = model.model.layers[0]
    residual = 0.02 / math.sqrt(8)  # twice 4 layers
    for weight, deviation in [
        (model.model.embed_tokens.weight, 0.02), (layer.self_attn.q_proj.weight, 0.02),
        (layer.mlp.experts.gate_proj, 0.02), (layer.self_attn.o_proj.weight, residual),
        (layer.mlp.experts.down_proj, residual),
    ]:
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert weight.mean().item() == pytest.approx(0.0, abs=3e-4)
    assert all((p == 1).all() for p in model.parameters() if p.dim() == 1)


@pytest.mark.parametrize("config", [
    TINY, TINY_MOE, replace(TINY_MOE, aux_loss_scope="batch", num_experts_per_tok=2),
], ids=["dense", "experts", "experts, loss per batch"])
@pytest.mark.parametrize("cu_seqlens", [(0, 5, 5, 14), (0,)])
def test_padding_after_the_last_document_changes_nothing(config, cu_seqlens):
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config).double().train()
    ids, more = torch.randint(0, config.vocab_size, (cu_seqlens[-1],)), torch.randint(0, config.vocab_size, (7,))

    def gradients(ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        losses = model(ids, labels, cu_seqlens)
        return [*losses, *torch.autograd.grad(sum(losses), list(model.parameters()), allow_unused=True)]

    plain = gradients(ids, ids)
    filled = gradients(torch.cat((ids, more)), torch.cat((ids, torch.full_like(more, IGNORE_INDEX))))
    torch.testing.assert_close(filled, plain, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("config", [
    TINY, TINY_MOE, replace(TINY_MOE, aux_loss_scope="batch"),
], ids=["dense", "experts", "experts, loss per batch"])
def test_skipping_unread_positions_gives_the_same_gradients(
        config, recompute, monkeypatch):
    model, batch = build(config, torch.float64), random_batch([9, 30, 1, 51])
    model.model.gradient_checkpointing = recompute
    supervised = (batch[1] != IGNORE_INDEX).nonzero().squeeze(1)
    assert 50 < len(supervised) < 64

    def gradients(*arguments: torch.Tensor) -> list[torch.Tensor]:
        losses = model(*batch, *arguments)
        return [*losses, *torch.autograd.grad(sum(losses), list(model.parameters()))]

    early, found = gradients(supervised), gradients()
    monkeypatch.setattr(selection, "skips_unread_positions", lambda device: False)  # as on a GPU
    late = gradients(supervised)
    torch.testing.assert_close(early, found, rtol=0, atol=0)
    torch.testing.assert_close(early, late, rtol=1e-12, atol=1e-13)
    hidden = model.document_logits(batch[0], batch[2])
    torch.testing.assert_close(
        late[0], torch.nn.functional.cross_entropy(hidden, batch[1], reduction="sum"), rtol=1e-12, atol=0)


def test_on_a_cpu_the_last_feed_forward_network_skips_unsupervised_positions(monkeypatch):
    """60 of 192 positions are supervised, padded to 64: one of three layers skips 128."""
    model, ids = build(TINY), torch.randint(0, 61, (192,))
    labels = torch.where(torch.arange(192) < 60, ids, IGNORE_INDEX)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            model(ids, labels, (0, 100, 192)).loss_sum.backward()
        return counter.get_total_flops()

    early = flops()
    monkeypatch.setattr(selection, "skips_unread_positions", lambda device: False)
    assert flops() - early == 128 * 6 * 3 * TINY.hidden_size * TINY.intermediate_size


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_compiled_layers_share_graphs_and_only_new_shapes_are_compiled(config, monkeypatch):
    torch.compiler.reset()
    graphs, backend = counted_graphs()
    monkeypatch.setattr(selection, "skips_unread_positions", lambda device: False)  # as on a GPU
    model = MiniMindForCausalLM(replace(config, num_hidden_layers=6)).train()
    for layer in model.model.layers:
        layer.compile(dynamic=False, backend=backend)
    made = []
    for positions, cu_seqlens in [(32, (0, 20, 32)), (48, (0, 9, 40)), (32, (0, 1, 30)), (48, (0, 48))]:
        ids = torch.randint(0, config.vocab_size, (positions,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sum(model(ids, ids, cu_seqlens)).backward()
        made.append(len(graphs))
    assert made[0] < 6, "all layers share the graphs of one"
    assert made == [made[0], 2 * made[0], 2 * made[0], 2 * made[0]]


def test_state_dict_names_and_shapes_are_qwen3s():
    model = MiniMindForCausalLM(replace(TINY, num_hidden_layers=1))
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == {
        "model.embed_tokens.weight": (61, 24),
        "model.layers.0.input_layernorm.weight": (24,),
        "model.layers.0.self_attn.q_proj.weight": (32, 24),
        "model.layers.0.self_attn.k_proj.weight": (16, 24),
        "model.layers.0.self_attn.v_proj.weight": (16, 24),
        "model.layers.0.self_attn.o_proj.weight": (24, 32),
        "model.layers.0.self_attn.q_norm.weight": (8,),
        "model.layers.0.self_attn.k_norm.weight": (8,),
        "model.layers.0.post_attention_layernorm.weight": (24,),
        "model.layers.0.mlp.gate_proj.weight": (40, 24),
        "model.layers.0.mlp.up_proj.weight": (40, 24),
        "model.layers.0.mlp.down_proj.weight": (24, 40),
        "model.norm.weight": (24,),
        "lm_head.weight": (61, 24),
    }


def test_a_tied_head_may_be_missing_but_must_not_differ():
    state = dict(MiniMindForCausalLM(TINY).state_dict())
    model = MiniMindForCausalLM(TINY)
    del state["lm_head.weight"]
    model.load_state_dict(state, strict=True)
    torch.testing.assert_close(model.lm_head.weight.data, state["model.embed_tokens.weight"], rtol=0, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"] + 1}, strict=True)


@pytest.mark.parametrize(("config", "name"), [
    (TINY, "model.norm.weight"), (TINY, "model.embed_tokens.weight"),
    (replace(TINY, tie_word_embeddings=False), "lm_head.weight"),
], ids=["norm", "embedding", "untied_head"])
def test_a_missing_weight_is_named(config: ModelConfig, name: str):
    state = dict(MiniMindForCausalLM(TINY).state_dict())
    del state["lm_head.weight"]
    state.pop(name, None)
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        MiniMindForCausalLM(config).load_state_dict(state, strict=True)
