"""Reads tensors from a weights file, whoever wrote it.

A file is a plain state dict in PyTorch's format or safetensors, written by this project or by MiniMind. Some files
prefix every name (`torch.compile` and DistributedDataParallel do) or keep the state dict one level down (MiniMind's
`*_resume.pth`); these are read too, with a notice. Loading runs no code: `weights_only=True`, or safetensors.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from minimind_sft.errors import UserError, first_line, printable
from minimind_sft.files import refuse_lfs_pointer

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys under which larger checkpoints keep their weights."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# DistributedDataParallel puts `module.` first; torch.compile puts `_orig_mod.` before the module it compiled.
PREFIX = re.compile(r"^(?:_orig_mod\.)*(?:module\.)+|(?:^|(?<=\.))_orig_mod\.")


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Reads the state dict at `path`; also returns notices for the user about how it was read.

    Raises:
        UserError: if the file cannot be read or is not a state dict of finite floating-point tensors.
    """
    content, notices = _load(path)
    content = _unwrapped(content, path, notices)
    content = _without_prefixes(content, path, notices)
    for name, tensor in content.items():
        if problem := _problem(tensor):
            raise UserError(f"{path}: {printable(name)}: {problem}")
    return content, notices


def _load(path: Path) -> tuple[Any, list[str]]:
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected a weights file (.pth or .safetensors)")
    refuse_lfs_pointer(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise UserError(f"{path}: not a weights file that can be read (the file is empty)")
    if start.startswith(b"GGUF"):
        raise UserError(f"{path}: a GGUF file, expected a state dict (.pth or .safetensors)")
    named, found = path.suffix == ".safetensors", _is_safetensors(start, path)
    notices = []
    if named != found:
        kinds = {True: "safetensors", False: "PyTorch's format"}
        notices.append(f"{path} holds {kinds[found]}, not {kinds[named]} as its name says; it was read as such")
    try:
        return (load_file(path) if found else _load_pytorch(path)), notices
    except pickle.UnpicklingError as error:
        raise UserError(_pickled_objects(path, error)) from error
    except Exception as error:  # on damaged bytes torch.load raises KeyError, struct.error and more
        reason = first_line(error).partition(". ")[0]
        if "weights_only" in reason:  # torch's message advises to run the code in the file
            reason = "it holds more than tensors, or a very old PyTorch wrote it"
        elif isinstance(error, KeyError):  # an unknown byte in a pickle; torch gives only its number
            reason = "it is something else, such as text, or damaged"
        raise UserError(f"{path}: not a weights file that can be read ({reason})") from error


def _load_pytorch(path: Path) -> Any:
    # A file and not its path: newer versions of torch take a path that ends in .safetensors for that format.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # our one line says what is wrong
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_safetensors(start: bytes, path: Path) -> bool:
    """Decides by the first bytes (a JSON header, a zip archive or a pickle), and by the name if they do not tell."""
    if start[8:] == b"{":
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"\x80\x02"))


def _pickled_objects(path: Path, error: pickle.UnpicklingError) -> str:
    """Returns the message for a file with Python objects in it; torch's own advises running their code."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return f"{path}: not a weights file that can be read (damaged, or it holds more than tensors)"
    return (f"{path}: holds a Python object ({named[1]}), not only tensors, and reading it would run its code: save "
            "model.state_dict() instead of the model where the file was made")


def _unwrapped(content: Any, path: Path, notices: list[str]) -> dict[str, Any]:
    """Returns the state dict inside a checkpoint that holds more."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a state dict (names and tensors), found {_kind(content)}")
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, dict) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            where = ", ".join(f"{name} {content[name]}" for name in ("epoch", "step")
                              if type(content.get(name)) is int)
            notices.append(f"{path} is a checkpoint{where and f' ({where})'}; only its weights ({key}) are "
                           "used")
            content = inner
            break
    if not content:
        raise UserError(f"{path}: expected a state dict (names and tensors), found an empty one")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: expected a state dict (names and tensors), found {_kind(value)} at {name!r}")
    return content


def _without_prefixes(tensors: dict[str, torch.Tensor], path: Path, notices: list[str]) -> dict[str, torch.Tensor]:
    plain, found = {}, set()
    for name, tensor in tensors.items():
        short = PREFIX.sub("", name)
        if short in plain:
            raise UserError(f"{path}: holds {printable(short)} twice, once as {printable(name)}")
        plain[short] = tensor
        if short != name:
            found |= {prefix for prefix in ("module.", "_orig_mod.") if prefix in name}
    if found:
        notices.append(f"{path}: the prefix {' and '.join(sorted(found))} was removed from the tensors' names")
    return plain


def _problem(tensor: torch.Tensor) -> str | None:
    """Returns why a tensor cannot be a weight, or None."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in DTYPES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        hint = "" if tensor.dtype.is_complex else "; quantized weights cannot be used"
        return f"is {dtype}{'' if tensor.layout == torch.strided else ' and sparse'}, expected float16, bfloat16 or " \
               f"float32{hint}"
    if tensor.dim() == 0:
        return "is a single number, expected a vector or a matrix"
    if tensor.numel() == 0:
        return f"is empty (shape {list(tensor.shape)})"
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        return (f"{bad:,} of its {tensor.numel():,} values are NaN or infinite: the run that wrote the file "
                "diverged; use earlier weights")
    return None


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
