"""Which device computes, and in which precision; how it gets a tensor."""

import os

import torch

from minimind_sft.errors import UserError

DEVICES = "auto, cpu, cuda, cuda:N or mps"


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` means; `cuda` and `auto` mean this rank's own GPU.

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
            raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
        return torch.device("cuda", index)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"--device {name}: PyTorch finds no Apple GPU here; --device cpu works everywhere")
        if device.index:
            raise UserError(f"--device {name}: there is only one, mps")
        return torch.device("mps")
    if device.type != "cpu":
        raise UserError(f"--device {name}: expected {DEVICES}")
    return device


def best_device() -> str:
    """Picks the device that `--device auto` means here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor to `device`; a GPU gets it from pinned memory while it works on something else."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def position_multiple(device: torch.device, compiled: bool, max_positions: int) -> int:
    """What batches of at most `max_positions` are filled up to a multiple of.

    Matrix products like rows in sixteens. Where layers are compiled for the very shapes they see (on CUDA), there are
    to be two, the whole and the half, and not one in every step: after a few more PyTorch would not compile at all. On
    a CPU each number of rows costs some 12 MiB in bfloat16, because oneDNN keeps the code that it writes for it.
    """
    if device.type == "cuda":
        return -(-max_positions // 32) * 16 if compiled else 16
    return 64


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (emulation is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products, and PyTorch uses them.

    oneDNN has the kernels; not every build of PyTorch has oneDNN. On x86 the environment can hold both libraries back
    from what the processor can do.
    """
    has = torch.cpu.get_capabilities()
    on_x86 = (has.get("avx512_bf16") or has.get("amx_bf16")) and not _held_back()
    return bool(on_x86 or has.get("bf16")) and torch.backends.mkldnn.is_available()  # "bf16" is ARM's name for it


ISAS_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def _held_back() -> bool:
    """Whether ONEDNN_MAX_CPU_ISA or ATEN_CPU_CAPABILITY ask for fewer instructions than bfloat16 products need."""
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    aten = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return onednn.upper() in ISAS_WITHOUT_BFLOAT16 or aten.lower() in ("default", "avx2")


def compiles_rightly() -> bool:
    """Whether torch.compile's code can be trusted: not where ATEN_CPU_CAPABILITY hides AVX-512 that the processor has.

    The layers of a small model gave NaN then, or other numbers each time (PyTorch 2.13); with AVX2 alone they do not.
    """
    hides = os.environ.get("ATEN_CPU_CAPABILITY", "").lower() == "avx2"
    return not (hides and torch.cpu.get_capabilities().get("avx512_f"))


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that `--dtype` means on `device`; `auto` is bfloat16 where the hardware has it, else float32.

    Raises:
        UserError: for half precision on an Apple GPU, where PyTorch's causal attention lets tokens see those after
            them (pytorch/pytorch issue 195910).
    """
    if device.type == "mps" and name not in ("auto", "float32"):
        raise UserError(f"--dtype {name}: expected auto or float32 on mps, where PyTorch's attention is wrong in half "
                        "precision")
    if name == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    return getattr(torch, name)


def described_dtype(name: str, device: torch.device) -> str:
    """`--dtype` in words: what `auto` picked and why, or what the device makes of a choice."""
    dtype = str(resolve_dtype(name, device)).removeprefix("torch.")
    in_hardware = computes_in_bfloat16(device)
    if name == "auto":
        can = "computes in" if in_hardware else "is not trusted with" if device.type == "mps" else "would only emulate"
        return f"{dtype} (--dtype auto: {device.type} {can} bfloat16)"
    return f"{dtype} ({device.type} only emulates it: slow)" if dtype == "bfloat16" and not in_hardware else dtype
