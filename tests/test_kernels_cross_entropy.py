"""The summed cross-entropy compared with the formula."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minimind_sft.model.kernels import cross_entropy
from minimind_sft.model.kernels.cross_entropy import cross_entropy_sum
from minimind_sft.model.layers import cross_entropy_sum as formula

plain = formula.__wrapped__
POSITIONS, HIDDEN, VOCAB = 9, 6, 9


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns hidden states of seven supervised and two padding positions, the head, and labels."""
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCAB, HIDDEN, dtype=torch.float64, requires_grad=True)
    return hidden, head, torch.tensor([3, 8, 0, 0, 5, 2, 7])


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("rows", [1, 2, 4, 64])
def test_loss_and_gradients_equal_the_formula_s(problem, monkeypatch, chunk, rows):
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    monkeypatch.setattr(cross_entropy, "ROWS", rows)
    hidden, head, labels = problem
    ours = cross_entropy_sum(hidden, head, labels)
    ours_grads = torch.autograd.grad(2.5 * ours, (hidden, head))
    theirs = plain(hidden, head, labels)
    theirs_grads = torch.autograd.grad(2.5 * theirs, (hidden, head))
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    torch.testing.assert_close(ours_grads, theirs_grads, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("block", "cached"), [(1, 1), (4, 9), (5, 26), (9, 2**19), (100, 40)])
def test_a_large_vocabulary_is_computed_in_parts(problem, monkeypatch, block, cached):
    """9 tokens of the vocabulary: `block` of them at a time, and `cached // 9` rows of logits, at least one."""
    hidden, head, labels = problem
    whole = torch.autograd.grad(cross_entropy_sum(hidden, head, labels), (hidden, head))
    monkeypatch.setattr(cross_entropy, "BLOCK", block)
    monkeypatch.setattr(cross_entropy, "CACHED", cached)
    parts = torch.autograd.grad(cross_entropy_sum(hidden, head, labels), (hidden, head))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("vocab_size", "rows"), [(64, 64), (6400, 64), (32_000, 16), (49_152, 10), (151_936, 3),
                                                  (2**20, 1)])
def test_rows_of_logits_in_the_cache(vocab_size, rows):
    assert cross_entropy.rows_at_once(vocab_size) == rows


def test_a_second_backward_pass_is_refused_not_computed_wrongly(problem):
    """The first one changes the gradients in place."""
    loss = 2 * cross_entropy_sum(*problem)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_head_multiplies_only_supervised_positions_in_chunks(problem, monkeypatch):
    rows = []

    def counting_linear(x, weight):
        rows.append(len(x))
        return x @ weight.T

    monkeypatch.setattr(cross_entropy, "CHUNK", 3)
    monkeypatch.setattr(cross_entropy, "ROWS", 1)
    monkeypatch.setattr(cross_entropy.F, "linear", counting_linear)
    cross_entropy_sum(*problem)
    assert rows == [3, 3, 1]
    monkeypatch.setattr(cross_entropy, "ROWS", 4)
    cross_entropy_sum(*problem)
    assert rows[3:] == [4, 4, 4]  # padded, so that sizes repeat


def test_without_supervised_positions_loss_and_gradients_are_zero(problem):
    hidden, head, labels = problem
    total = cross_entropy_sum(hidden, head, labels[:0])
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad.abs().max() == 0 and head.grad.abs().max() == 0


def test_frozen_heads_and_hidden_states_get_no_gradient(problem):
    hidden, head, labels = problem
    wanted, = torch.autograd.grad(cross_entropy_sum(hidden, head, labels), hidden)
    cross_entropy_sum(hidden, head.detach(), labels).backward()
    torch.testing.assert_close(hidden.grad, wanted, rtol=0, atol=0)
    cross_entropy_sum(hidden.detach(), head, labels).backward()
    assert head.grad is not None
    with torch.no_grad():
        assert not cross_entropy_sum(hidden, head, labels).requires_grad


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_bfloat16_sum_is_float32_and_gradients_keep_the_input_dtype(problem, weights):
    hidden, head = (x.detach().to(weights).requires_grad_() for x in problem[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        total = cross_entropy_sum(hidden, head, problem[2])
    total.backward()
    exact = F.cross_entropy(problem[0][:7] @ problem[1].T, problem[2], reduction="sum")
    exact_grad, = torch.autograd.grad(exact, problem[1])
    assert total.dtype == torch.float32 and hidden.grad.dtype == head.grad.dtype == weights
    assert total.item() == pytest.approx(exact.item(), rel=0.02)
    torch.testing.assert_close(head.grad.double(), exact_grad, rtol=0.05, atol=0.05)


def test_half_precision_logits_are_summed_in_float32():
    torch.manual_seed(0)
    hidden, head = torch.randn(200, 64).bfloat16(), 0.3 * torch.randn(500, 64).bfloat16()
    labels = torch.randint(0, 500, (200,))
    exact = F.cross_entropy((hidden @ head.T).double(), labels, reduction="sum")
    assert cross_entropy_sum(hidden, head, labels).item() == pytest.approx(exact.item(), rel=1e-6)


def test_without_gradients_only_the_logits_are_computed(problem):
    hidden, head, labels = problem
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cross_entropy_sum(hidden.detach(), head, labels)
    assert counter.get_total_flops() == 2 * 64 * HIDDEN * VOCAB  # 7 positions, padded to 64


def test_second_derivatives_are_refused(problem):
    grad, = torch.autograd.grad(cross_entropy_sum(*problem) ** 2, problem[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
