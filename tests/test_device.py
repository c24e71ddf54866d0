"""The precision that `--dtype auto` chooses, and how it is described."""

import pytest
import torch
from peak import timed_dtypes
from programs import NEW, SFT, refuse

from minimind_sft.device import compiles_rightly, described_dtype, resolve_device, resolve_dtype
from minimind_sft.errors import UserError

CPU = torch.device("cpu")


def pretend_processor(monkeypatch, capabilities: dict[str, bool], **environment: str) -> None:
    """Pretends that the processor has these capabilities and that these variables are set."""
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
def test_auto_is_bfloat16_only_if_the_cpu_supports_it(monkeypatch, capabilities, name, dtype, words):
    pretend_processor(monkeypatch, capabilities)
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
def test_environment_variables_can_disable_bfloat16(monkeypatch, variable, value, dtype):
    pretend_processor(monkeypatch, {"avx512_bf16": True, "amx_bf16": True}, **{variable: value})
    assert resolve_dtype("auto", CPU) == dtype


def test_x86_variables_do_not_affect_arm(monkeypatch):
    pretend_processor(monkeypatch, {"bf16": True, "sve": False}, ATEN_CPU_CAPABILITY="default")
    assert resolve_dtype("auto", CPU) == torch.bfloat16


def test_without_onednn_auto_is_float32(monkeypatch):
    pretend_processor(monkeypatch, {"bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_dtype("auto", CPU) == torch.float32


def test_benchmarks_skip_emulated_bfloat16(monkeypatch, capsys):
    pretend_processor(monkeypatch, {"avx2": True})
    assert timed_dtypes([torch.bfloat16, torch.float32], CPU) == [torch.float32]
    assert capsys.readouterr().out == "bfloat16: not timed, this cpu only emulates it\n"
    pretend_processor(monkeypatch, {"avx512_bf16": True})
    assert timed_dtypes([torch.bfloat16], CPU) == [torch.bfloat16]


def test_the_compiler_is_not_trusted_if_avx512_is_hidden_from_it(monkeypatch):
    for capabilities, environment, trusted in (
            ({"avx512_f": True}, {"ATEN_CPU_CAPABILITY": "avx2"}, False), ({"avx512_f": True}, {}, True),
            ({"avx2": True, "avx512_f": False}, {"ATEN_CPU_CAPABILITY": "avx2"}, True)):
        pretend_processor(monkeypatch, capabilities, **environment)
        assert compiles_rightly() is trusted


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f"), reason="this processor has no AVX-512 to hide")
def test_use_compile_is_refused_if_avx512_is_hidden(tmp_path, sft_data):
    line = refuse(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, "--use_compile", 1, "--device", "cpu",
                  ATEN_CPU_CAPABILITY="avx2")
    assert line.startswith("error: --use_compile 1: with ATEN_CPU_CAPABILITY=avx2 PyTorch compiles wrong code")


@pytest.mark.parametrize("name", ["cpu:99", "meta", "xla:0", "cuda:x", ":0", ""])
def test_a_device_that_is_none_is_refused(name):
    with pytest.raises(UserError, match=r"expected auto, cpu, cuda, cuda:N or mps$"):
        resolve_device(name)
