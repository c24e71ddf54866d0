"""Compares an adapter that was written in another program's format, and read back, with the one it came from."""

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.terminal import counted

ROUNDING = {"float32": 2.0**-20, "bfloat16": 2.0**-6, "float16": 2.0**-9}
"""The largest error of a change, relative to its largest sum of products |B| |A|: two roundings and a margin."""
FLOAT16_STEP = 2.0**-24
"""The distance of float16 numbers near 0."""


def compare_adapters(adapter: Adapter, written: Adapter, dtype: str) -> str:
    """Compares all changes scale * B A, and the parameters trained in full; describes the differences.

    Raises:
        UserError: if they differ by more than rounding to `dtype`; names what differs.
    """
    largest = 0.0
    for name in dict.fromkeys((*adapter.changes, *written.changes)):
        before, after = (one.changes.get(name) for one in (adapter, written))
        difference = float((_product(before) - _product(after)).abs().max())
        if not difference <= _rounding_error(before, dtype):
            raise _wrong(written, f"the change of {name} differs by {difference:.1e}, more than rounding to {dtype} "
                                  "explains")
        largest = max(largest, difference)
    if adapter.saved.keys() != written.saved.keys():
        raise _wrong(written, f"trained in full are {', '.join(written.saved)}, but were {', '.join(adapter.saved)}")
    for name, tensor in adapter.saved.items():
        if not torch.equal(tensor.to(getattr(torch, dtype)).to(tensor.dtype), written.saved[name]):
            raise _wrong(written, f"{name} is another one")
    many = counted(len(adapter.changes), "change")
    return f"{many}: all equal" if largest == 0 else f"{many}: rounded by at most {largest:.1e}"


def _product(change: Change | None) -> Tensor:
    """Returns scale * B A; 0 for a matrix without a change."""
    return torch.zeros(()) if change is None else change.scale * (change.b @ change.a)


def _rounding_error(change: Change | None, dtype: str) -> float:
    if change is None:
        return 0.0
    a, b = change.a.abs(), change.b.abs() * abs(change.scale)
    error = ROUNDING[dtype] * float((b @ a).max())
    near_zero = FLOAT16_STEP * a.shape[-2] * max(1.0, abs(change.scale)) * float(a.max() + b.max() + 1.0)
    return error + near_zero if dtype == "float16" else error


def _wrong(written: Adapter, what: str) -> UserError:
    return UserError(f"{written.path}: reading back what was written: {what}; nothing was kept. This is a mistake in "
                     "the program: please report it with the command")
