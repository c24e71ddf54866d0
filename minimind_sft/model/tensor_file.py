"""Shared parts of the readers of safetensors and of PyTorch's formats."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.files import open_regular
from minimind_sft.model.loaded import Source

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
              "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex128": 16, "complex64": 8,
              "qint32": 4}
"""Bytes of a value by PyTorch's names; of the dtypes left out, none has more than one."""
MAPPED_FROM = 2**20
"""Bytes of a tensor that gets memory of its own from the system."""
PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
"""Elsewhere than on Windows: shared memory, the default, is slower."""
TOO_SHORT = "damaged: it has fewer bytes than its tensors"


class FormatError(ValueError):
    """A file that is not in the format it seems to be in, or damaged; the message is a reason in parentheses."""


class TensorFile(Source, Protocol):
    """A file of tensors whose dtypes are known without reading data.

    dtypes: PyTorch's names without `torch.`, with a remark if the tensor is not a plain one.
    """

    @property
    def dtypes(self) -> Mapping[str, str]: ...


def read_bytes(path: Path, start: int, count: int) -> Tensor:
    """Returns `count` bytes of a file from `start` on, as uint8.

    They are copied, not mapped: what another program does to the file later changes nothing.

    Raises:
        UserError: if they are not there.
    """
    # The C library keeps tens of MB of what is freed; a mapping goes back to the system at once.
    memory = mmap.mmap(-1, count, **PRIVATE) if count >= MAPPED_FROM else bytearray(count)
    with open_regular(path) as file:
        try:
            file.seek(start)
            found = file.readinto(memory)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if found < count:
        raise UserError(f"{path}: became shorter while it was read")
    return torch.frombuffer(memory, dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
