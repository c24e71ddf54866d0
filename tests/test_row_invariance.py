"""A row of a batch gets the same bits whichever rows are beside it, and models where that is not so are found out."""

from dataclasses import replace

import pytest
import torch
from test_low_rank import with_adapters
from tiny_generation import CONFIGS, DYNAMIC, build, half_needed, trained_like
from torch import Tensor, nn

from minimind_sft.inference import packed
from minimind_sft.inference.fast_forms import by_rows
from minimind_sft.inference.lowering import prompt_form, ready_to_decode
from minimind_sft.inference.row_invariance import _EachAlone, is_row_invariant


@pytest.mark.parametrize("adapters", [False, True], ids=["base", "adapters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*CONFIGS, "dynamic"])
@half_needed
def test_lowered_models_are_row_invariant(name: str, dtype: torch.dtype, adapters: bool, monkeypatch):
    monkeypatch.setattr(packed, "SMALL", 10)  # bfloat16 arithmetic even here
    model = trained_like({**CONFIGS, "dynamic": DYNAMIC}[name])
    if dtype == torch.float32:
        for parameter in model.parameters():
            parameter.data.mul_(1.001)  # float16 cannot hold them
    model = model.to(dtype)
    lowered = ready_to_decode(with_adapters(model) if adapters else model)
    assert is_row_invariant(lowered) and is_row_invariant(prompt_form(lowered))


class OfManyRows(nn.Module):
    """Computes something else from `rows` rows on, as kernels do; the difference is one bit."""

    def __init__(self, module: nn.Module, rows: int):
        super().__init__()
        self.module, self.rows = module, rows

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO = self.module(x_TI)
        return y_TO if len(x_TI) < self.rows else y_TO * (1 + torch.finfo(y_TO.dtype).eps)


@pytest.mark.parametrize("rows", [2, 3, 5, 17])
@pytest.mark.parametrize("place", ["o_proj", "down_proj", "lm_head"])
@half_needed
def test_one_module_that_depends_on_the_number_of_rows_is_found(place: str, rows: int):
    model = trained_like(replace(CONFIGS["dense"], tie_word_embeddings=False))
    layer = model.model.layers[1]
    owner: nn.Module = {"o_proj": layer.self_attn, "down_proj": layer.mlp, "lm_head": model}[place]
    setattr(owner, place, OfManyRows(getattr(owner, place), rows))
    assert not is_row_invariant(ready_to_decode(model))


def test_a_model_that_was_not_lowered_is_checked_as_it_is():
    model = build()
    model.lm_head = OfManyRows(model.lm_head, 2)
    assert not is_row_invariant(model)


@pytest.mark.parametrize("width", [40, 64, 100, 777, 40000])
@pytest.mark.parametrize("threads", [1, 3])
def test_elementwise_functions_give_each_row_the_same_bits(width: int, threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for function in (nn.functional.silu, torch.sigmoid, nn.functional.gelu):
            x_TF = torch.randn(130 if width < 1000 else 5, width, generator=torch.Generator().manual_seed(0))
            together = by_rows(function, x_TF)
            torch.testing.assert_close(together, function(x_TF))
            for start, end in [(0, 1), (3, 5), (1, 4), (2, 43), (5, 129)]:
                assert torch.equal(by_rows(function, x_TF[start:end]), together[start:end])
    finally:
        torch.set_num_threads(before)


@half_needed
@torch.inference_mode()
def test_angles_of_a_position_do_not_depend_on_positions_met_before():
    context = _EachAlone(torch.empty(0))
    first, second = (ready_to_decode(trained_like(replace(CONFIGS["dense"], max_position_embeddings=1500)))
                     for _ in range(2))
    positions_T = torch.tensor([3, 700, 1400])
    for position in positions_T.tolist():
        first._rope(torch.tensor([position]), context)
    for ours, theirs in zip(first._rope(positions_T, context), second._rope(positions_T, context), strict=True):
        assert torch.equal(ours, theirs)
