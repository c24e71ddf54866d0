"""Varlen attention compared with written-out attention, as far as this machine can run it."""

import inspect
from unittest import mock

import pytest
import torch
from plain_attention import CPU, flat_qkv, plain_attention
from torch._subclasses import FakeTensorMode

from minimind_sft.model.attention import Documents, document_attention
from minimind_sft.model.kernels import varlen_attention
from minimind_sft.model.kernels.padded_attention import PaddedAttention
from minimind_sft.model.kernels.selection import varlen_fits
from minimind_sft.model.kernels.varlen_attention import VarlenAttention, groups_heads

BOUNDARIES = [(0, 7), (0, 9, 10, 15, 22), (0, 0, 4, 4, 11)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
needs_varlen = pytest.mark.skipif(not groups_heads(), reason="PyTorch before 2.12 groups no heads")


@needs_varlen
@pytest.mark.parametrize(("window", "past"), [(None, -1), (3, 2), (1, 0), (99, -1)])
@pytest.mark.parametrize("cu_seqlens", BOUNDARIES)
def test_varlen_attention_gets_the_arguments_it_expects(monkeypatch, cu_seqlens, window, past):
    """Uses a stand-in with the signature of PyTorch's function, because the kernel needs CUDA."""
    def stand_in(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size, enable_gqa):
        assert cu_q.dtype == cu_k.dtype == torch.int32 and enable_gqa and window_size == (past, 0)
        assert max_q == max_k == max(cu_q.diff().tolist())
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        return plain_attention(q.double(), k.double(), v.double(), tuple(cu_q.tolist()), window)

    monkeypatch.setattr(varlen_attention.varlen, "varlen_attn", mock.create_autospec(
        varlen_attention.varlen.varlen_attn, side_effect=stand_in))
    q, k, v = flat_qkv(cu_seqlens[-1])
    rounded = [x.bfloat16().double() for x in (q, k, v)]
    with torch.no_grad():
        out = VarlenAttention(cu_seqlens, CPU)(q.float(), k.float(), v.bfloat16(), window)
    torch.testing.assert_close(out, plain_attention(*rounded, cu_seqlens, window), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("device", "dtype", "dropout", "head_dim", "rows", "fits"), [
    ("cuda", torch.bfloat16, 0.0, 64, 5, True),
    ("cuda", torch.float16, 0.0, 64, 200, True),
    ("cuda", torch.float32, 0.0, 64, 200, False),
    ("cuda", torch.bfloat16, 0.1, 64, 200, False),
    ("cuda", torch.bfloat16, 0.0, 36, 200, False),
])
def test_varlen_attention_is_used_for_half_precision_on_cuda(monkeypatch, device, dtype, dropout, head_dim, rows, fits):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(varlen_attention, "groups_heads", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert varlen_fits(torch.empty(rows, 2, head_dim, dtype=dtype, device=device), dropout) is fits


def test_varlen_attention_needs_a_recent_pytorch_and_device(monkeypatch):
    with FakeTensorMode():
        value = torch.empty(200, 2, 64, dtype=torch.bfloat16, device="cuda")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        monkeypatch.setattr(varlen_attention.varlen, "varlen_attn", lambda query, window_size: query)  # as in 2.11
        assert not varlen_fits(value, 0.0)
        monkeypatch.setattr(varlen_attention, "groups_heads", lambda: True)
        assert varlen_fits(value, 0.0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not varlen_fits(value, 0.0)


def test_support_for_grouped_heads_is_detected():
    has = "enable_gqa" in inspect.signature(varlen_attention.varlen.varlen_attn).parameters
    assert varlen_attention.groups_heads() == has


@needs_cuda
@pytest.mark.parametrize("window", [None, 60])
@pytest.mark.parametrize("kernel", [pytest.param("varlen", marks=needs_varlen), "padded"])
def test_on_cuda_every_kernel_gives_the_same_outputs_and_gradients(kernel, window):
    cu_seqlens = (0, 70, 71, 300, 600)
    torch.manual_seed(0)
    qkv = [torch.randn(600, heads, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for heads in (4, 2, 2)]
    grad = torch.randn_like(qkv[0])
    reference = [x.detach().cpu().double().requires_grad_() for x in qkv]
    plain = document_attention(*reference, cu_seqlens, window=window)
    attend = (VarlenAttention(cu_seqlens, qkv[2].device) if kernel == "varlen"
              else PaddedAttention(cu_seqlens, qkv[2]))
    ours = attend(*qkv, window)
    for one, other in zip([ours, *torch.autograd.grad(ours, qkv, grad)],
                          [plain, *torch.autograd.grad(plain, reference, grad.cpu().double())], strict=True):
        assert (one.cpu().double() - other).norm() <= 0.02 * other.norm()


@needs_cuda
@pytest.mark.parametrize("head_dim", [64, 36])
def test_on_cuda_successive_batches_may_have_any_length(head_dim):
    """A kernel compiled for some lengths must not fail for others."""
    for rows in (600, 300, 129, 128, 112, 16, 1, 400):
        qkv = [torch.randn(rows, heads, head_dim, dtype=torch.bfloat16, device="cuda", requires_grad=True)
               for heads in (4, 2, 2)]
        out = Documents((0, rows // 2, rows), torch.device("cuda")).attend(0, *qkv)
        torch.autograd.grad(out.float().sum(), qkv)
        plain = Documents((0, rows // 2, rows), CPU).attend(0, *(x.detach().cpu().double() for x in qkv))
        assert (out.cpu().double() - plain).norm() <= 0.02 * plain.norm()


@needs_cuda
def test_on_cuda_attention_does_not_wait_for_the_device():
    qkv = [torch.randn(60, heads, 64, dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2)]
    Documents((0, 9, 60), torch.device("cuda")).attend(0, *qkv)
    torch.cuda.set_sync_debug_mode("error")
    try:
        Documents((0, 20, 60), torch.device("cuda")).attend(0, *qkv)
    finally:
        torch.cuda.set_sync_debug_mode("default")
