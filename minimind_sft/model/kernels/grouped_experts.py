"""All experts at once: one product with each expert's matrix over the tokens that chose it.

Plain twins: moe.mixture, lora.adapted_mixture.

Local letter: r rank of the adapters.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.model.kernels.dispatch import dispatch
from minimind_sft.model.kernels.gated import gated
from minimind_sft.model.precision import matmul_dtype

Multiply = Callable[[Tensor, Tensor, Tensor], Tensor]
"""multiply(x_NI, weight_EOI, ends_E) -> y_NO: each row times the transposed matrix of its expert."""


def mixture(x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor,
            multiply: Multiply) -> Tensor:
    """Multiplies in autocast's dtype. The gradient of an expert without tokens is zero, not None."""
    gate_EFD, up_EFD, down_EDF = (weight.to(matmul_dtype(weight)) for weight in (gate_EFD, up_EFD, down_EDF))

    def network(x_ND: Tensor, ends_E: Tensor) -> Tensor:
        x_ND = x_ND.to(gate_EFD.dtype)
        hidden_NF = gated(multiply(x_ND, gate_EFD, ends_E), multiply(x_ND, up_EFD, ends_E))
        return multiply(hidden_NF, down_EDF, ends_E)

    return dispatch(x_TD, weight_TC, chosen_TC, len(gate_EFD), network)


def adapted_mixture(x_TD: Tensor, weight_TC: Tensor, chosen_TC: Tensor, *matrices: Tensor, multiply: Multiply,
                    dropout: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiplies by W, A and B as `mixture` does by W, and never by W + B A, whose gradient is as large as W."""
    dtype = matmul_dtype(matrices[0])
    gate, up, down = (tuple(matrix.to(dtype) for matrix in matrices[start : start + 3]) for start in (0, 3, 6))

    def project(x_NI: Tensor, ends_E: Tensor, w_EOI: Tensor, a_ErI: Tensor, b_EOr: Tensor) -> Tensor:
        y_NO = multiply(x_NI, w_EOI, ends_E)
        if not a_ErI.shape[1]:
            return y_NO
        return y_NO + multiply(multiply(dropout(x_NI), a_ErI, ends_E), b_EOr, ends_E)

    def network(x_ND: Tensor, ends_E: Tensor) -> Tensor:
        x_ND = x_ND.to(dtype)
        return project(gated(project(x_ND, ends_E, *gate), project(x_ND, ends_E, *up)), ends_E, *down)

    return dispatch(x_TD, weight_TC, chosen_TC, len(matrices[0]), network)


def grouped_mm(x_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(x_NI, weight_EOI.transpose(1, 2), offs=ends_E)


def looped_mm(x_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Multiplies for one expert after the other."""
    groups = x_NI.tensor_split(ends_E[:-1].tolist())
    return torch.cat([x_NI @ weight_OI.T for x_NI, weight_OI in zip(groups, weight_EOI.unbind(), strict=True)])
