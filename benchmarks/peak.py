"""Measures how fast this machine multiplies matrices right now: the ceiling for training speed.

    python benchmarks/peak.py

A share of the peak can be compared between machines, tokens/s cannot. The peak must be measured in the same run:
clocks, neighbours and temperature change it by tens of percent within an hour.
"""

import time
from collections.abc import Iterable

import torch

from minimind_sft.device import computes_in_bfloat16
from minimind_sft.model.config import PRESETS, ModelConfig

SQUARE = (2048, 2048, 2048)
ROWS = 4096
"""Rows of the model's own products: the default --micro_batch_tokens."""


def timed_dtypes(dtypes: Iterable[torch.dtype], device: torch.device) -> list[torch.dtype]:
    """Returns the dtypes worth timing: a step in emulated bfloat16 takes minutes and means nothing."""
    chosen = [dtype for dtype in dtypes if dtype != torch.bfloat16 or computes_in_bfloat16(device)]
    if len(chosen) < len(list(dtypes)):
        print(f"bfloat16: not timed, this {device.type} only emulates it", flush=True)
    return chosen


def model_shapes(config: ModelConfig, rows: int = ROWS) -> list[tuple[int, int, int]]:
    """Returns (rows, in, out) of a dense model's forward products: projections, feed-forward network, head."""
    query, key = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    hidden, width = config.hidden_size, config.intermediate_size
    pairs = {(hidden, query), (hidden, key), (query, hidden), (hidden, width), (width, hidden),
             (hidden, config.vocab_size)}
    return [(rows, *pair) for pair in sorted(pairs)]


def matmul_peak(dtype: torch.dtype, device: torch.device, shapes: Iterable[tuple[int, int, int]] = (),
                seconds_per_shape: float = 0.4) -> float:
    """Returns the FLOP/s of the fastest product (rows, in) x (in, out) among a square one of 2,048 and `shapes`.

    Each product has 2 * rows * in * out FLOP. It is repeated for `seconds_per_shape`, into memory that already exists
    so that no page fault counts, and its fastest time counts.
    """
    return max(_flops(shape, dtype, device, seconds_per_shape) for shape in (SQUARE, *shapes))


def _flops(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    rows, inner, columns = shape
    left, weight = (torch.randn(size, dtype=dtype, device=device) for size in ((rows, inner), (columns, inner)))
    product = torch.empty(rows, columns, dtype=dtype, device=device)
    repeats = 1 if device.type == "cpu" else 20  # there a single product is too short to time from outside

    def timed() -> float:
        _wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, weight.T, out=product)
        _wait_for(device)
        return (time.perf_counter() - start) / repeats

    timed()
    best, end = timed(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, timed())
    return 2 * rows * inner * columns / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for dtype in timed_dtypes((torch.bfloat16, torch.float32), device):
        print(f"{str(dtype).removeprefix('torch.'):<9}")
        for shape in (SQUARE, *model_shapes(PRESETS["26m"])):
            print(f"  {' x '.join(map(str, shape)):<20}{_flops(shape, dtype, device, 0.4) / 1e9:>9.0f} GFLOP/s")


if __name__ == "__main__":
    main()
