"""Reads tensors from a weights file, whoever wrote it.

A file is a plain state dict in PyTorch's format or safetensors, written by this project or by MiniMind. Some files
prefix every name (`torch.compile` and DistributedDataParallel do) or keep the state dict one level down (MiniMind's
`*_resume.pth`); these are read too, with a notice. Loading runs no code: `weights_only=True`, or safetensors.

Files are mapped into memory, and each tensor is read when it is asked for. What was read leaves memory again with the
next tensor, so that reading a large file does not take the file's size.
"""

import ctypes
import mmap
import pickle
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from minimind_sft.errors import UserError, first_line, printable
from minimind_sft.files import refuse_lfs_pointer
from minimind_sft.model.loaded import LazyTensors, Source

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys under which larger checkpoints keep their weights."""

DTYPES = ("float16", "bfloat16", "float32", "float64")

SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool",
                      "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"} | {
    f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)}
"""PyTorch's names of safetensors' dtypes."""

ZIP = b"PK\x03\x04"

# DistributedDataParallel puts `module.` first; torch.compile puts `_orig_mod.` before the module it compiled.
PREFIX = re.compile(r"^(?:_orig_mod\.)*(?:module\.)+|(?:^|(?<=\.))_orig_mod\.")


class TensorFile(Source, Protocol):
    """A file of tensors whose dtypes are known without reading data.

    dtypes: PyTorch's names without `torch.`, with a remark if the tensor is not a plain one.
    """

    @property
    def dtypes(self) -> Mapping[str, str]: ...


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


class SafetensorsFile:
    """A file in safetensors format. It is opened anew for each tensor: closing it gives back the memory."""

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                entry = file.get_slice(name)
                self.shapes[name] = tuple(entry.get_shape())
                self.dtypes[name] = SAFETENSORS_DTYPES.get(entry.get_dtype(), entry.get_dtype())

    def read(self, name: str) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)


class PytorchFile:
    """A state dict in PyTorch's format.

    mapped: whether the tensors lie in a mapped file. Their pages then leave memory with the next tensor that is read;
        a tensor that is used later brings its pages back.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], mapped: bool):
        self.path = path
        self.tensors = tensors
        self.mapped = mapped
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: _described_dtype(tensor) for name, tensor in tensors.items()}
        self._last: Tensor | None = None

    def read(self, name: str) -> Tensor:
        if self.mapped and self._last is not None:
            _release_pages(self._last)
        self._last = self.tensors[name].detach()
        return self._last


def _release_pages(tensor: Tensor) -> None:
    """Tells the system that the pages of a tensor in a mapped file are not needed now.

    Only Linux counts such pages as the process's memory until it is told.
    """
    if sys.platform != "linux":
        return
    try:
        madvise = ctypes.CDLL(None).madvise
    except (TypeError, AttributeError):  # no handle for this process's libraries, or a C library without madvise
        return
    start = tensor.untyped_storage().data_ptr()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + tensor.untyped_storage().nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def open_source(path: Path) -> tuple[TensorFile, list[str]]:
    """Opens a file of tensors, of whatever names and dtypes; also returns notices about how it was read.

    Raises:
        UserError: if the file cannot be read or holds anything but tensors.
    """
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
    named, found = path.suffix == ".safetensors", _is_safetensors(start, path)
    notices: list[str] = []
    if named != found:
        kinds = {True: "safetensors", False: "PyTorch's format"}
        notices.append(f"{path} holds {kinds[found]}, not {kinds[named]} as its name says; it was read as such")
    try:
        if found:
            return SafetensorsFile(path), notices
        # A path that ends in .safetensors means that format to newer versions of torch.
        records = _records(path) if start.startswith(ZIP) and not named else None
        content = _load_pytorch(path, mapped=records is not None)
    except pickle.UnpicklingError as error:
        raise UserError(_pickled_objects(path, error)) from error
    except Exception as error:  # on damaged bytes torch.load raises KeyError, struct.error and more
        reason = first_line(error).partition(". ")[0]
        if "weights_only" in reason:  # torch's message advises to run the code in the file
            reason = "it holds more than tensors, or a very old PyTorch wrote it"
        elif isinstance(error, KeyError):  # an unknown byte in a pickle; torch gives only its number
            reason = "it is something else, such as text, or damaged"
        elif reason.startswith("[enforce fail"):  # torch's message names a line of its own source
            reason = "it is an archive of something else, or damaged"
        raise UserError(f"{path}: not a weights file that can be read ({reason})") from error
    tensors = _unwrapped(content, path, notices)
    if records is not None and _storages(tensors) - records:
        raise UserError(f"{path}: not a weights file that can be read (damaged: it has fewer bytes than its tensors)")
    return PytorchFile(path, tensors, mapped=records is not None), notices


def _records(path: Path) -> Counter[int] | None:
    """Returns how many tensors' storages of each size an archive has; None if it is compressed: that cannot be mapped.

    torch.load reads a mapped archive without looking at either.
    """
    with zipfile.ZipFile(path) as archive:
        data = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    return None if any(entry.compress_type for entry in data) else Counter(entry.file_size for entry in data)


def _storages(tensors: Mapping[str, Tensor]) -> Counter[int]:
    """Returns how many storages of each size some tensors have; they may share one."""
    storages = [tensor.untyped_storage() for tensor in tensors.values()
                if tensor.layout == torch.strided and not tensor.is_meta]
    return Counter({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


def _load_pytorch(path: Path, mapped: bool) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # our one line says what is wrong
        if mapped:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # The format of old PyTorch cannot be mapped. A file and not its path, see above.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _is_safetensors(start: bytes, path: Path) -> bool:
    """Decides by the first bytes (a JSON header, a zip archive or a pickle), and by the name if they do not tell."""
    if start[8:] == b"{":
        return True
    return path.suffix == ".safetensors" and not start.startswith((ZIP, b"\x80\x02"))


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


def _described_dtype(tensor: Tensor) -> str:
    remark = " and sparse" if tensor.layout != torch.strided else " without data" if tensor.is_meta else ""
    return str(tensor.dtype).removeprefix("torch.") + remark


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
