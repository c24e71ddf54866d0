"""Odd values for the fields of JSON files, and odd tensors."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 0.5, 2**53, 10**30, -10**400, 1e308, float("nan"), float("inf"), "", "1",
    "\x1b[2J", "\ud800", [], [[]], {}, {"a": 1}, [1, "a", None])

ODD_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda tensor: tensor * float("nan"),
    "infinite": lambda tensor: tensor + float("inf"),
    "one value": lambda tensor: tensor.flatten()[:1].clone(),
    "no value": lambda tensor: tensor.flatten()[:0].clone(),
    "0 dimensions": lambda tensor: tensor.sum(),
    "one row less": lambda tensor: tensor[1:].clone(),
    "one dimension more": lambda tensor: tensor[None],
    "transposed": lambda tensor: tensor.flip(0).T.contiguous() if tensor.dim() == 2 else tensor[None],
    "whole numbers": lambda tensor: tensor.to(torch.int8),
    "booleans": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
}


def fields_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of each value inside a JSON value, the outermost first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield (*path, name)
        yield from fields_of(one, (*path, name))


def with_value(value: Any, path: tuple, new: Any) -> Any:
    """Returns a copy of a JSON value with another value at `path`."""
    copy = json.loads(json.dumps(value))
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = new
    return copy
