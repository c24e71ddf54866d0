"""Some of the rows of a tensor.

Shapes: T rows, N of them or of their repetitions.
"""

from torch import Tensor


def rows(x_T: Tensor, wanted_N: Tensor | None) -> Tensor:
    """The rows `wanted_N` of `x_T`, which may have further dimensions; all of them where it is None."""
    return x_T if wanted_N is None else x_T.index_select(0, wanted_N)
