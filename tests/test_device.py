"""The precision that `--dtype auto` chooses, and how it is described."""

import pytest
import torch
from peak import timed_dtypes
from programs import NEW, SFT, refuse

from minimind_sft.device import compiles_rightly, described_dtype, resolve_dtype

CPU = torch.device("cpu")


def processor(monkeypatch, capabilities: dict[str, bool], **environment: str) -> None:
    """As if this processor had these capabilities, and PyTorch these variables."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


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
    processor(monkeypatch, capabilities)
    assert resolve_dtype(name, CPU) == dtype
    assert described_dtype(name, CPU) == words


@pytest.mark.parametrize(("variable", "value", "dtype"), [
    ("ONEDNN_MAX_CPU_ISA", "AVX2", torch.float32),
    ("ONEDNN_MAX_CPU_ISA", "avx512_core", torch.float32),
    ("DNNL_MAX_CPU_ISA", "AVX512_CORE_VNNI", torch.float32),
    ("ATEN_CPU_CAPABILITY", "avx2", torch.float32),
    ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", torch.bfloat16),
    ("ONEDNN_MAX_CPU_ISA", "ALL", torch.bfloat16),
    ("ATEN_CPU_CAPABILITY", "avx512", torch.bfloat16),
])
def test_what_the_environment_holds_back_is_not_there(monkeypatch, variable, value, dtype):
    processor(monkeypatch, {"avx512_bf16": True, "amx_bf16": True}, **{variable: value})
    assert resolve_dtype("auto", CPU) == dtype


def test_x86_limits_do_not_touch_arm(monkeypatch):
    processor(monkeypatch, {"bf16": True, "sve": False}, ATEN_CPU_CAPABILITY="default")
    assert resolve_dtype("auto", CPU) == torch.bfloat16


def test_without_onednn_there_are_no_kernels_for_it(monkeypatch):
    processor(monkeypatch, {"bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_dtype("auto", CPU) == torch.float32


def test_benchmarks_time_no_emulated_bfloat16(monkeypatch, capsys):
    processor(monkeypatch, {"avx2": True})
    assert timed_dtypes([torch.bfloat16, torch.float32], CPU) == [torch.float32]
    assert capsys.readouterr().out == "bfloat16: not timed, this cpu only emulates it\n"
    processor(monkeypatch, {"avx512_bf16": True})
    assert timed_dtypes([torch.bfloat16], CPU) == [torch.bfloat16]


def test_the_compiler_is_not_trusted_where_avx512_is_hidden_from_it(monkeypatch):
    for capabilities, environment, trusted in (
            ({"avx512_f": True}, {"ATEN_CPU_CAPABILITY": "avx2"}, False), ({"avx512_f": True}, {}, True),
            ({"avx2": True, "avx512_f": False}, {"ATEN_CPU_CAPABILITY": "avx2"}, True)):
        processor(monkeypatch, capabilities, **environment)
        assert compiles_rightly() is trusted


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f"), reason="this processor has no AVX-512 to hide")
def test_compiling_is_refused_there(tmp_path, sft_data):
    line = refuse(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--use_compile", 1, "--device", "cpu",
                  ATEN_CPU_CAPABILITY="avx2")
    assert line.startswith("error: --use_compile 1: with ATEN_CPU_CAPABILITY=avx2 PyTorch compiles wrong code")
