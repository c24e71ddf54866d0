"""The ceiling that training speed is held against: how fast this machine multiplies matrices, right now.

    python benchmarks/peak.py

A share of a ceiling travels between machines, tokens/s does not. The ceiling has to be measured in the run that it is
compared with: clocks, neighbours and temperature change it by tens of percent within an hour.
"""

import time
from collections.abc import Iterable

import torch

from minimind_sft.device import computes_in_bfloat16
from minimind_sft.model.config import PRESETS, ModelConfig

SQUARE = (2048, 2048, 2048)
ROWS = 4096
"""Tokens in the model's own shapes: the default --micro_batch_tokens."""


def timed_dtypes(dtypes: Iterable[torch.dtype], device: torch.device) -> list[torch.dtype]:
    """Those of the dtypes that are worth timing: emulated bfloat16 takes minutes for a step, and says nothing."""
    chosen = [dtype for dtype in dtypes if dtype != torch.bfloat16 or computes_in_bfloat16(device)]
    if len(chosen) < len(list(dtypes)):
        print(f"bfloat16: not timed, this {device.type} only emulates it", flush=True)
    return chosen


def model_shapes(config: ModelConfig, rows: int = ROWS) -> list[tuple[int, int, int]]:
    """(rows, in, out) of the forward products of a dense model: projections, feed-forward network, head."""
    query, key = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    hidden, width = config.hidden_size, config.intermediate_size
    pairs = {(hidden, query), (hidden, key), (query, hidden), (hidden, width), (width, hidden),
             (hidden, config.vocab_size)}
    return [(rows, *pair) for pair in sorted(pairs)]


def matmul_peak(dtype: torch.dtype, device: torch.device, shapes: Iterable[tuple[int, int, int]] = (),
                seconds_per_shape: float = 0.4) -> float:
    """FLOP/s of the fastest of all the products (rows, in) x (in, out): a square one of 2,048, and `shapes`.

    Each is written into memory that exists already, so that no page fault is counted, as often as fits into
    `seconds_per_shape`; its fastest time counts. 2 * rows * in * out FLOP each.
    """
    return max(_flops(shape, dtype, device, seconds_per_shape) for shape in (SQUARE, *shapes))


def _flops(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    rows, inner, columns = shape
    left, weight = (torch.randn(size, dtype=dtype, device=device) for size in ((rows, inner), (columns, inner)))
    product = torch.empty(rows, columns, dtype=dtype, device=device)
    repeats = 1 if device.type == "cpu" else 20  # one product is too short there to be timed from outside

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
