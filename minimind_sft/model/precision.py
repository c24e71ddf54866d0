"""Which arithmetic where: matrix products as autocast says, everything delicate in at least float32."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype a matrix product with `weight` is computed in: autocast's, else the weight's own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def for_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`x` as matrix products with `weight` read it: where several share it, autocast would convert it for each."""
    return x.to(matmul_dtype(weight))
