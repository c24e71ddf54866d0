"""Reads what a pickle of PyTorch's says about tensors, without making a tensor or calling anything.

A pickle is a program for a stack machine. This one knows the operations that torch.save writes, builds dicts, lists,
tuples, numbers and text, and describes tensors; whatever else the pickle names becomes `Unknown`. So no code of the
file runs, and nothing takes memory but what is in the pickle itself, whatever sizes it claims.
"""

import io
import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_sft.model.tensor_file import ITEM_BYTES, TOO_SHORT, FormatError

MAX_BYTES = 2**25
"""A pickle names and describes tensors, in about 250 bytes each."""
MAX_OPERATIONS = 2_000_000
"""Each may make an object; a tensor takes about 40 of them."""
MAX_KEY = 2**63
"""Larger numbers as keys of a dict can be chosen so that adding one takes time in proportion to those before."""
MAX_DIMENSIONS = 64

STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
            "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
            "ComplexDouble": "complex128", "ComplexFloat": "complex64", "QInt8": "qint8", "QUInt8": "quint8",
            "QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4"}
"""PyTorch's dtypes by the names of their storages."""
BYTES = "torch.storage.UntypedStorage"
"""The storage of tensors of other dtypes."""


DAMAGED = "damaged, or it holds more than tensors"


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the numbers of a tensor are.

    key: the name of its record in the archive.
    dtype: None if it holds bytes, and the tensor has the dtype.
    nbytes: its size.
    """

    key: str
    dtype: str | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it.

    dtype: PyTorch's name without `torch.`, with a remark if this is not a plain tensor.
    storage: None if it is not a plain one.
    start, end: its bytes in the storage.
    """

    dtype: str
    shape: tuple[int, ...]
    storage: Storage | None = None
    strides: tuple[int, ...] = ()
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Unknown:
    """A Python object that is no tensor, or its class; `name` is the class's."""

    name: str


def read_pickle(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Reads the pickle that begins where `file` is, and leaves `file` at its end.

    Also returns the storages that it names, by their keys.

    Raises:
        FormatError: if this is nothing that torch.save writes, or too large.
    """
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPERATIONS:
                raise FormatError("it holds too many objects for a state dict")
            machine.run(operation.name, argument)
        return machine.pop(), machine.storages
    except FormatError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError) as error:
        raise FormatError(DAMAGED) from error


class _Machine:
    """The stack of a pickle, its marks and its memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def run(self, name: str, argument: Any) -> None:
        """Runs one operation."""
        if name in LITERALS:
            self._stack.append(argument)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self._stack.append(Unknown(argument.replace(" ", ".")))
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self._stack.append(tuple(self._taken(int(name[-1]))))
        elif name == "TUPLE":
            self._stack.append(tuple(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            _extend(*self._with_target(1 if name == "APPEND" else None))
        elif name in ("SETITEM", "SETITEMS"):
            _set_items(*self._with_target(2 if name == "SETITEM" else None))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._taken(2)
            self._stack.append(_made(function, arguments))
        elif name == "BUILD":
            self.pop()  # attributes, such as the versions in a state dict's `_metadata`
        elif name == "BINPERSID":
            self._stack.append(self._persistent(self.pop()))
        elif name not in ("PROTO", "STOP"):
            raise FormatError(DAMAGED)

    def _taken(self, count: int) -> list[Any]:
        """Takes the topmost values."""
        if count > len(self._stack):
            raise FormatError(DAMAGED)
        taken = self._stack[len(self._stack) - count:]
        del self._stack[len(self._stack) - count:]
        return taken

    def _marked(self) -> list[Any]:
        return self._taken(len(self._stack) - self._marks.pop())

    def _with_target(self, count: int | None) -> tuple[Any, list[Any]]:
        """Takes `count` values, or those above the mark; also returns what is then on top, to which they belong."""
        values = self._marked() if count is None else self._taken(count)
        return self._stack[-1], values

    def _persistent(self, identity: Any) -> Any:
        """Returns the storage that a persistent id names, or the class of a module."""
        if identity[0] == "module":
            return identity[1]
        kind, of, key, _, count, *view = identity
        dtype = STORAGES.get(of.name.removeprefix("torch.").removesuffix("Storage"))
        if kind != "storage" or not (dtype or of.name == BYTES) or type(key) is not str or view not in ([], [None]):
            raise FormatError(DAMAGED)
        storage = Storage(key, dtype, _size(count) * ITEM_BYTES.get(dtype or "", 1))
        if self.storages.setdefault(key, storage) != storage:
            raise FormatError(DAMAGED)
        return storage


LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: Unknown("builtins.set")}


def _extend(target: Any, values: Sequence[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Unknown):
        raise FormatError(DAMAGED)


def _set_items(target: Any, values: Sequence[Any]) -> None:
    if isinstance(target, dict):
        if len(values) % 2:
            raise FormatError(DAMAGED)
        for key, value in zip(values[::2], values[1::2], strict=True):
            plain = isinstance(key, str | float | None) or (isinstance(key, int) and abs(key) < MAX_KEY)
            target[key if plain else Unknown(type(key).__name__)] = value
    elif not isinstance(target, Unknown):
        raise FormatError(DAMAGED)


def _made(function: Any, arguments: Any) -> Any:
    """Describes what a call would return."""
    if not isinstance(function, Unknown):
        raise FormatError(DAMAGED)
    known = CALLS.get(function.name)
    return function if known is None else known(*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None) -> PickledTensor:
    """Describes a plain tensor.

    Raises:
        FormatError: if it reaches beyond its storage.
    """
    dtype = dtype or storage.dtype
    shape, strides = _sizes(shape), _sizes(strides)
    if dtype is None or len(shape) != len(strides):
        raise FormatError(DAMAGED)
    item = ITEM_BYTES.get(dtype, 1)
    start, last = _size(offset), sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    end = start + last + 1 if math.prod(shape) else start
    if end * item > storage.nbytes:
        raise FormatError(TOO_SHORT)
    return PickledTensor(dtype, shape, storage, strides, start * item, end * item)


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any,
                     *rest: Any) -> PickledTensor:
    return _tensor(storage, offset, shape, strides, dtype=_dtype(dtype))


def _sparse(layout: Any, parts: Any) -> PickledTensor:
    values = [part for part in parts if isinstance(part, PickledTensor)][-1]  # after the indices
    shape = next(part for part in parts if isinstance(part, tuple))
    return PickledTensor(f"{values.dtype} and sparse", _sizes(shape))


def _nested(buffer: Any, *rest: Any) -> PickledTensor:
    return PickledTensor(f"{buffer.dtype} and nested", ())


def _without_data(dtype: Any, shape: Any, *rest: Any) -> PickledTensor:
    return PickledTensor(f"{_dtype(dtype)} without data", _sizes(shape))


def _quantized(storage: Any, offset: Any, shape: Any, *rest: Any) -> PickledTensor:
    return PickledTensor(storage.dtype, _sizes(shape))


def _first(value: Any, *rest: Any) -> Any:
    return value


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": dict,
    "torch.Size": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_data,
}
"""The calls in a pickle that mean something here, and what describes their results."""


def _dtype(dtype: Any) -> str:
    if not isinstance(dtype, Unknown):
        raise FormatError(DAMAGED)
    return dtype.name.removeprefix("torch.")


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        raise FormatError(DAMAGED)
    return tuple(map(_size, values))


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_KEY:
        raise FormatError(DAMAGED)
    return value
