"""The dtypes of arithmetic."""

import torch

from minimind_sft.model.precision import at_least_float32, matmul_dtype


def test_at_least_float32_widens_halves_and_keeps_float64():
    widened = {dtype: at_least_float32(torch.ones(1, dtype=dtype)).dtype
               for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    assert widened == {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32,
                       torch.float64: torch.float64}


def test_matmul_dtype_equals_that_of_a_real_matrix_product():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        weight = torch.ones(2, 2, dtype=dtype)
        assert matmul_dtype(weight) == (weight @ weight).dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert matmul_dtype(weight) == (weight @ weight).dtype
