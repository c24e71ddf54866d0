"""Attention within documents, compared with a written-out softmax, and the projections before it."""

from dataclasses import replace

import pytest
import torch
from plain_attention import CPU, HEADS, KV_HEADS, flat_qkv, plain_attention
from tiny import TINY

from minimind_sft.model.attention import Attention, Documents, document_attention
from minimind_sft.model.kernels.selection import plain_formulas
from minimind_sft.model.layers import rope_cos_sin

BOUNDARIES = [(0, 1), (0, 7), (0, 3, 6, 9), (0, 9, 10, 15, 20, 22), (0, 0, 4, 4, 11, 11), (0, 5, 6, 7, 8, 14, 20)]


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("cu_seqlens", BOUNDARIES)
def test_the_formula_is_a_softmax_over_each_tokens_past(cu_seqlens, window):
    qkv = flat_qkv(cu_seqlens[-1])
    torch.testing.assert_close(document_attention(*qkv, cu_seqlens, window=window),
                               plain_attention(*qkv, cu_seqlens, window), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cu_seqlens", BOUNDARIES)
def test_documents_attend_by_the_formula(cu_seqlens, window):
    qkv = flat_qkv(cu_seqlens[-1])
    ours = Documents(cu_seqlens, CPU).attend(0, *qkv, window)
    formula = document_attention(*qkv, cu_seqlens, window=window)
    with plain_formulas():
        assert torch.equal(Documents(cu_seqlens, CPU).attend(0, *qkv, window), formula)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)


def test_the_first_token_a_window_hides_changes_nothing():
    """Literally: with a window of 3, token 4 reads tokens 2, 3 and 4."""
    qkv = [x.detach() for x in flat_qkv(6)]
    before = document_attention(*qkv, (0, 6), window=3)
    for x in qkv[1:]:
        x[1] += 1
    changed = (document_attention(*qkv, (0, 6), window=3) != before).flatten(1).any(1)
    assert changed.tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "formula"])
@pytest.mark.parametrize("cu_seqlens", [(0,), (0, 0)])
def test_an_empty_batch_works(cu_seqlens, plain):
    qkv = flat_qkv(0)
    with plain_formulas(*(() if plain else ("gated",))):
        out = Documents(cu_seqlens, CPU).attend(0, *qkv)
    out.sum().backward()
    assert out.shape == (0, HEADS, qkv[0].shape[-1])
    assert plain or all(x.grad is not None for x in qkv)


def test_positions_and_document_of_each_token():
    documents = Documents((0, 3, 3, 5, 6), CPU)
    assert documents.positions_T.tolist() == [0, 1, 2, 0, 1, 0]
    assert documents.document_T.tolist() == [0, 0, 0, 2, 2, 3]
    assert documents.length_T.tolist() == [3, 3, 3, 2, 2, 1]
    assert documents.lengths == [3, 0, 2, 1]


def test_tokens_after_the_last_document_have_position_0():
    """They may be more than a model with learned positions has."""
    documents = Documents((0, 3, 5), CPU, filled_to=9)
    assert documents.positions_T.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 0]
    assert documents.lengths == [3, 2]


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "formula"])
@pytest.mark.parametrize("length", [200, 1000])
def test_dropout_zeroes_attention_weights_and_keeps_their_mean(length, plain):
    q, k, _ = flat_qkv(2000, torch.float32)
    ones = torch.ones(2000, KV_HEADS, q.shape[-1])
    torch.manual_seed(0)
    with plain_formulas(*(() if plain else ("gated",))):
        dropped = Documents(range(0, 2001, length), CPU, dropout=0.4).attend(0, q, k, ones)
        assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
        assert dropped[0].unique().tolist() == pytest.approx([0.0, 1 / 0.6])
        kept = Documents(range(0, 2001, length), CPU).attend(0, q, k, ones)
    torch.testing.assert_close(kept, torch.ones_like(kept))


def test_project_returns_heads_before_norm_and_rope():
    torch.manual_seed(0)
    module, x = Attention(TINY, 0).double(), torch.randn(5, TINY.hidden_size, dtype=torch.float64)
    q, k, v = module.project(x)
    assert [each.shape[1:] for each in (q, k, v)] == [(heads, TINY.head_dim) for heads in (
        TINY.num_attention_heads, TINY.num_key_value_heads, TINY.num_key_value_heads)]
    torch.testing.assert_close(q[:, 1], x @ module.q_proj.weight[TINY.head_dim : 2 * TINY.head_dim].T)


def test_attention_uses_what_project_returns(monkeypatch):
    """Adapters, biases and quantised weights hook in here."""
    torch.manual_seed(0)
    module, x = Attention(TINY, 0).double(), torch.randn(5, TINY.hidden_size, dtype=torch.float64)
    rope = rope_cos_sin(TINY, torch.arange(5), torch.float64)
    before, original = module(x, rope, Documents((0, 5), CPU)), module.project
    monkeypatch.setattr(module, "project", lambda x: (*original(x)[:2], 2 * original(x)[2]))
    torch.testing.assert_close(module(x, rope, Documents((0, 5), CPU)), 2 * before)


class Seen:
    """A context that keeps what it is given."""

    def attend(self, layer_index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
               window: int | None) -> torch.Tensor:
        self.q, self.k, self.window = q, k, window
        return q


@pytest.mark.parametrize(("layer", "window", "rotated"), [(0, 9, True), (1, None, True), (2, 9, False)])
def test_layers_differ_in_window_and_rope_as_configured(layer, window, rotated):
    config = replace(TINY, num_hidden_layers=3, sliding_window=9, full_attention_layers=(1,), layers_without_rope=(2,),
                     qk_norm=False)
    module, x, seen = Attention(config, layer), torch.randn(5, config.hidden_size), Seen()
    module(x, rope_cos_sin(config, torch.arange(5), torch.float32), seen)
    q, k, _ = module.project(x)
    assert seen.window == window
    assert (not torch.equal(seen.q, q)) == (not torch.equal(seen.k, k)) == rotated


@pytest.mark.parametrize(("attention_bias", "biased"), [
    ("none", []), ("qkv", ["q_proj", "k_proj", "v_proj"]), ("all", ["q_proj", "k_proj", "v_proj", "o_proj"])])
def test_projections_have_the_configured_biases(attention_bias, biased):
    module = Attention(replace(TINY, attention_bias=attention_bias, qk_norm=False), 0)
    assert [name for name in module.state_dict() if name.endswith("bias")] == [f"{name}.bias" for name in biased]
    assert "q_norm.weight" not in module.state_dict()
