"""Times the attention backends on the documents of a batch, on this device and this PyTorch.

    python benchmarks/attention_backends.py --device cuda --json attention_backends.json

The backends of minimind_sft/model that run here (on a CPU there is one) take turns on the same queries, keys and
values, forward and backward, including their index tensors. Prints medians in milliseconds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from minimind_sft.device import resolve_device
from minimind_sft.errors import run_program
from minimind_sft.model.kernels.padded_attention import PaddedAttention
from minimind_sft.model.kernels.selection import Attend
from minimind_sft.model.kernels.varlen_attention import VarlenAttention, groups_heads

HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="passes of each backend (default 20)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch (default 4096)")
    parser.add_argument("--longest", type=int, default=768, help="longest document (default 768)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()

    device = resolve_device(arguments.device)
    backends = {"PaddedAttention": lambda: PaddedAttention(cu_seqlens, qkv[2])}
    if device.type == "cuda" and groups_heads():
        backends["VarlenAttention"] = lambda: VarlenAttention(cu_seqlens, device)
    cu_seqlens = boundaries(arguments.tokens, arguments.longest)
    qkv = [torch.randn(arguments.tokens, heads, HEAD_DIM, dtype=torch.bfloat16, device=device, requires_grad=True)
           for heads in (HEADS, KV_HEADS, KV_HEADS)]
    milliseconds = {name: [] for name in backends}
    for round_ in range(-3, arguments.rounds):  # three warm-up rounds
        for name, make in backends.items():
            elapsed = seconds(make, qkv, device)
            if round_ >= 0:
                milliseconds[name].append(1000 * elapsed)
    rows = {name: statistics.median(own) for name, own in milliseconds.items()}
    print(f"| {'backend':<12} | {'ms':>8} |\n|{'-' * 14}|{'-' * 9}:|")
    for name, median in rows.items():
        print(f"| {name:<12} | {median:8.2f} |")
    if arguments.json:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        record = {"command": " ".join(["python", "benchmarks/attention_backends.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "device": where, "documents": len(cu_seqlens) - 1, "milliseconds": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def boundaries(tokens: int, longest: int) -> tuple[int, ...]:
    """Returns the boundaries of documents of 10 to `longest` tokens, mostly short; the last takes the rest."""
    random = np.random.default_rng(0)
    lengths = []
    while tokens:
        lengths.append(min(int(random.lognormal(5, 0.8)) + 10, longest, tokens))
        tokens -= lengths[-1]
    return tuple(accumulate(lengths, initial=0))


def seconds(make: Callable[[], Attend], qkv: list[torch.Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    torch.autograd.grad(make()(*qkv).sum(), qkv)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_program(main)
