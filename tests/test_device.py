"""Which precision `--dtype auto` picks, and what it says about that."""

import pytest
import torch

from minimind_sft.device import described_dtype, resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(("capabilities", "name", "dtype", "words"), [
    ({"avx512_bf16": True}, "auto", torch.bfloat16, "bfloat16 (--dtype auto: cpu computes in bfloat16)"),
    ({"amx_bf16": True}, "auto", torch.bfloat16, "bfloat16 (--dtype auto: cpu computes in bfloat16)"),
    ({"bf16": True}, "auto", torch.bfloat16, "bfloat16 (--dtype auto: cpu computes in bfloat16)"),
    ({"avx2": True, "avx512_bf16": False}, "auto", torch.float32,
     "float32 (--dtype auto: cpu would only emulate bfloat16)"),
    ({"avx2": True}, "bfloat16", torch.bfloat16, "bfloat16 (cpu only emulates it: slow)"),
    ({"avx512_bf16": True}, "bfloat16", torch.bfloat16, "bfloat16"),
    ({"avx2": True}, "float32", torch.float32, "float32"),
])
def test_auto_is_bfloat16_where_the_cpu_multiplies_it_and_says_so(monkeypatch, capabilities, name, dtype, words):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype(name, CPU) == dtype
    assert described_dtype(name, CPU) == words
