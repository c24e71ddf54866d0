"""Which dtype to compute in: matrix products in autocast's, everything sensitive to rounding in at least float32."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which a matrix product with `x` is computed: autocast's, else its own."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
