"""Chooses the device and the precision, and copies tensors to the device."""

import os

import torch

from minimind_sft.errors import UserError

DEVICES = "auto, cpu, cuda, cuda:N or mps"


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Returns the device that `--device` names; `cuda` and `auto` mean this rank's own GPU.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        name = best_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected {DEVICES}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: PyTorch finds no CUDA device here; --device cpu works everywhere")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: expected at most cuda:{torch.cuda.device_count() - 1}, the last CUDA "
                            "device here")
        return torch.device("cuda", index)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"--device {name}: PyTorch finds no Apple GPU here; --device cpu works everywhere")
        if device.index:
            raise UserError(f"--device {name}: expected mps, the only Apple GPU")
        return torch.device("mps")
    if device.type != "cpu" or device.index:
        raise UserError(f"--device {name}: expected {DEVICES}")
    return device


def best_device() -> str:
    """Returns the device that `--device auto` means here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a small tensor to `device`; a GPU reads it from pinned memory while it computes."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def main_memory() -> int | None:
    """Returns the bytes of this machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def position_multiple(device: torch.device, compiled: bool, max_positions: int) -> int:
    """Returns the multiple to which the length of a batch of at most `max_positions` is rounded up.

    Matrix products prefer multiples of 16 rows. Layers compiled for fixed shapes (on CUDA) should see only two lengths,
    the whole and half of it: PyTorch stops compiling after a few different ones. On a CPU each length costs some 12 MiB
    in bfloat16, because oneDNN keeps the code generated for it.
    """
    if device.type == "cuda":
        return -(-max_positions // 32) * 16 if compiled else 16
    return 64


def computes_in_bfloat16(device: torch.device) -> bool:
    """Tells whether the device multiplies bfloat16 matrices in hardware (emulation is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Tells whether this processor has instructions for bfloat16 products and PyTorch uses them.

    The kernels are oneDNN's, which not every build of PyTorch includes. On x86, environment variables can limit the
    instructions that either uses.
    """
    has = torch.cpu.get_capabilities()
    on_x86 = (has.get("avx512_bf16") or has.get("amx_bf16")) and not _is_limited()
    return bool(on_x86 or has.get("bf16")) and torch.backends.mkldnn.is_available()  # "bf16" is ARM's name for it


ISAS_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def _is_limited() -> bool:
    """Tells whether ONEDNN_MAX_CPU_ISA or ATEN_CPU_CAPABILITY exclude the instructions for bfloat16 products."""
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    aten = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return onednn.upper() in ISAS_WITHOUT_BFLOAT16 or aten.lower() in ("default", "avx2")


def compiles_rightly() -> bool:
    """Tells whether torch.compile computes correctly: not if ATEN_CPU_CAPABILITY hides the processor's AVX-512.

    The layers of a small model then returned NaN, or different numbers each time (PyTorch 2.13). On a processor with
    AVX2 alone they do not.
    """
    hides = os.environ.get("ATEN_CPU_CAPABILITY", "").lower() == "avx2"
    return not (hides and torch.cpu.get_capabilities().get("avx512_f"))


def check_compiler(device: torch.device) -> None:
    """
    Raises:
        UserError: if torch.compile's code for the device cannot be trusted.
    """
    if device.type == "cpu" and not compiles_rightly():
        raise UserError("--use_compile 1: with ATEN_CPU_CAPABILITY=avx2 PyTorch compiles wrong code for this "
                        "processor, which has AVX-512; unset the variable or leave the flag out")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the precision that `--dtype` names; `auto` is bfloat16 if the hardware has it, else float32.

    Raises:
        UserError: for half precision on an Apple GPU, where PyTorch's causal attention lets tokens see later ones
            (pytorch/pytorch issue 195910).
    """
    if device.type == "mps" and name not in ("auto", "float32"):
        raise UserError(f"--dtype {name}: expected auto or float32 on mps, where PyTorch's attention is wrong in half "
                        "precision")
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    return getattr(torch, name)


def described_dtype(name: str, device: torch.device) -> str:
    """Describes the precision: what `auto` chose and why, or how the device handles the choice."""
    dtype = str(resolve_dtype(name, device)).removeprefix("torch.")
    in_hardware = computes_in_bfloat16(device)
    if name == "auto":
        can = "computes in" if in_hardware else "is not trusted with" if device.type == "mps" else "would only emulate"
        return f"{dtype} (--dtype auto: {device.type} {can} bfloat16)"
    return f"{dtype} ({device.type} only emulates it: slow)" if dtype == "bfloat16" and not in_hardware else dtype
