"""Reads tensors from a weights file, whoever wrote it.

A file is a plain state dict in PyTorch's format or safetensors, written by this project or by MiniMind. Some files
prefix every name (`torch.compile` and DistributedDataParallel do) or keep the state dict one level down (MiniMind's
`*_resume.pth`); these are read too, with a notice.

Loading runs no code, and what a file claims takes no memory: names, dtypes, shapes and places are read first, by this
project's own readers, and each tensor when it is asked for.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError, printable
from minimind_sft.files import open_regular, refuse_lfs_pointer
from minimind_sft.model.loaded import LazyTensors
from minimind_sft.model.pickled import PickledTensor, Unknown
from minimind_sft.model.pytorch_file import OLD, ZIP, PytorchFile, read_content
from minimind_sft.model.safetensors_file import SafetensorsFile
from minimind_sft.model.tensor_file import FormatError, TensorFile

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys under which larger checkpoints keep their weights."""

DTYPES = ("float16", "bfloat16", "float32", "float64")
MAX_NAME = 500
"""Characters of a tensor's name: errors show it whole."""

# DistributedDataParallel puts `module.` first; torch.compile puts `_orig_mod.` before the module it compiled.
PREFIX = re.compile(r"^(?:_orig_mod\.)*(?:module\.)+|(?:^|(?<=\.))_orig_mod\.")


def read_tensors(path: Path) -> tuple[LazyTensors, dict[str, tuple[int, ...]], list[str]]:
    """Opens the state dict at `path`; returns its tensors, each read when it is asked for, and their shapes.

    Also returns notices for the user about how it was read.

    Raises:
        UserError: if the file cannot be read or is not a state dict of floating-point tensors.
    """
    source, notices = open_source(path)
    stored_as = _without_prefixes(source.shapes, path, notices)
    for name, stored in stored_as.items():
        if problem := _problem(source.shapes[stored], source.dtypes[stored]):
            raise UserError(f"{path}: {printable(name)}: {problem}")
    return (LazyTensors(stored_as, lambda name: source.read(stored_as[name])),
            {name: source.shapes[stored] for name, stored in stored_as.items()}, notices)


def open_source(path: Path) -> tuple[TensorFile, list[str]]:
    """Opens a file of tensors, of whatever names and dtypes; also returns notices about how it was read.

    Raises:
        UserError: if the file cannot be read or holds anything but tensors.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, expected a weights file (.pth or .safetensors)")
    refuse_lfs_pointer(path)
    with open_regular(path) as file:
        start = file.read(9)
    if not start:
        raise UserError(f"{path}: not a weights file that can be read (the file is empty)")
    named, found = path.suffix == ".safetensors", _is_safetensors(start, path)
    notices: list[str] = []
    if named != found:
        kinds = {True: "safetensors", False: "PyTorch's format"}
        notices.append(f"{path} holds {kinds[found]}, not {kinds[named]} as its name says; it was read as such")
    try:
        source: TensorFile = SafetensorsFile(path) if found else _open_pytorch(path, notices)
    except FormatError as error:
        raise UserError(f"{path}: not a weights file that can be read ({error})") from error
    if too_long := next((name for name in source.shapes if len(name) > MAX_NAME), None):
        raise UserError(f"{path}: {printable(too_long[:MAX_NAME])}...: a name of {len(too_long):,} characters, "
                        f"expected at most {MAX_NAME}")
    return source, notices


def _open_pytorch(path: Path, notices: list[str]) -> PytorchFile:
    content, places = read_content(path)
    return PytorchFile(path, _unwrapped(content, path, notices), places)


def _is_safetensors(start: bytes, path: Path) -> bool:
    """Decides by the first bytes (a JSON header, a zip archive or a pickle), and by the name if they do not tell."""
    if start[8:] == b"{":
        return True
    return path.suffix == ".safetensors" and not start.startswith((ZIP, OLD))


def _unwrapped(content: Any, path: Path, notices: list[str]) -> dict[str, PickledTensor]:
    """Returns the state dict inside a checkpoint that holds more."""
    if not isinstance(content, dict):
        raise _other_content(path, content)
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, dict) and any(isinstance(value, PickledTensor) for value in inner.values()):
            where = ", ".join(f"{name} {content[name]}" for name in ("epoch", "step")
                              if type(content.get(name)) is int)
            notices.append(f"{path} is a checkpoint{where and f' ({where})'}; only its weights ({key}) are "
                           "used")
            content = inner
            break
    if not content:
        raise UserError(f"{path}: expected a state dict (names and tensors), found an empty one")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise _other_content(path, value, f" at {name!r:.{MAX_NAME}}")
    return content


def _other_content(path: Path, value: Any, place: str = "") -> UserError:
    if isinstance(value, Unknown):
        return UserError(f"{path}: holds a Python object ({printable(value.name[:MAX_NAME])}), not only tensors, and "
                         "reading it would run its code: save model.state_dict() instead of the model where the file "
                         "was made")
    return UserError(f"{path}: expected a state dict (names and tensors), found {_kind(value)}{place}")


def _without_prefixes(names: Iterable[str], path: Path, notices: list[str]) -> dict[str, str]:
    """Returns the names without prefixes, and as the file has them."""
    stored_as: dict[str, str] = {}
    found = set()
    for name in names:
        short = PREFIX.sub("", name)
        if short in stored_as:
            raise UserError(f"{path}: holds {printable(short)} twice, once as {printable(name)}")
        stored_as[short] = name
        if short != name:
            found |= {prefix for prefix in ("module.", "_orig_mod.") if prefix in name}
    if found:
        notices.append(f"{path}: the prefix {' and '.join(sorted(found))} was removed from the tensors' names")
    return stored_as


def _problem(shape: tuple[int, ...], dtype: str) -> str | None:
    """Returns why a tensor cannot be a weight, or None."""
    if dtype not in DTYPES:
        hint = "" if dtype.startswith(("complex", "float32 without")) else "; quantized weights cannot be used"
        return f"is {dtype}, expected float16, bfloat16 or float32{hint}"
    if not shape:
        return "is a single number, expected a vector or a matrix"
    if 0 in shape:
        return f"is empty (shape {list(shape)})"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, PickledTensor):
        return "a tensor"
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
