"""All experts at once: one product with each expert's matrix over the tokens that chose it.

Plain twin: moe.mixture.
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


def grouped_mm(x_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(x_NI, weight_EOI.transpose(1, 2), offs=ends_E)


def looped_mm(x_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Multiplies for one expert after the other."""
    groups = x_NI.tensor_split(ends_E[:-1].tolist())
    return torch.cat([x_NI @ weight_OI.T for x_NI, weight_OI in zip(groups, weight_EOI.unbind(), strict=True)])
