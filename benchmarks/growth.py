"""Measures how the cost of training grows with the model's size, the length of documents and the number of ranks.

    python benchmarks/growth.py --seconds 5 --json benchmarks/results/growth.json --plots benchmarks/results

Random tokens, all supervised, go through the trainer's own `train_step`. Each point also reports its share of the
machine's peak in matrix products (benchmarks/peak.py), measured just before in the same process. It counts 6 FLOP per
parameter and token, and for attention 12 FLOP per layer, component of the query width and pair of positions that
attend.

Ranks share the threads: on 2 cores, 2 ranks of 1 thread do the work of 1 rank with 2 threads, so the loss is the cost
of exchanging gradients. This says nothing about two machines.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from memory_probe import Probe, environment, random_step
from peak import matmul_peak, model_shapes, timed_dtypes
from tqdm import tqdm

from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks, join_ranks
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import parallelize

SIZES = {"5M": (256, 4, 4), "14M": (384, 6, 6), "30M": (512, 8, 8), "64M": (768, 8, 8), "140M": (1024, 10, 16),
         "300M": (1280, 14, 20)}
"""Hidden size, layers and query heads."""
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
TOKENS = 1024
"""Tokens of a step when the model's size varies; twice as many when the ranks do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="*", default=["size", "length", "ranks"], choices=("size", "length", "ranks"))
    parser.add_argument("--seconds", type=float, default=12.0, help="least time of each point")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plots", type=Path, help="folder for growth_size.png, growth_length.png, growth_ranks.png")
    parser.add_argument("--probe", help=argparse.SUPPRESS)  # one point, in a rank under torchrun
    arguments = parser.parse_args()
    if arguments.probe:
        run_as_rank(arguments)
        return
    device = resolve_device(arguments.device)
    if not timed_dtypes([resolve_dtype(arguments.dtype, device)], device):
        return
    rows = []
    todo = [(what, *point) for what in arguments.what for point in points(what, arguments)]
    for what, x, probe, ranks in tqdm(todo, file=sys.stderr):
        rows.append({"what": what, "x": x, **in_process(probe, ranks, arguments)})
    print(f"{'over':<8}{'':>8}{'parameters':>12}{'tokens/s':>11}{'spread':>8}{'of the peak':>13}{'peak GFLOP/s':>14}")
    for row in rows:
        print(f"{row['what']:<8}{row['x']:>8}{row['parameters'] / 1e6:>11.1f}M{row['tokens_per_second']:>11,.0f}"
              f"{row['spread']:>8.0%}{row['share_of_peak']:>13.2f}{row['peak'] / 1e9:>14,.0f}")
    if arguments.json:
        record = {"command": " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]]), "torch": torch.__version__,
                  "cores": os.cpu_count(), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.plots:
        for what in arguments.what:
            draw(what, [row for row in rows if row["what"] == what], arguments.plots / f"growth_{what}.png")


def points(what: str, arguments: argparse.Namespace) -> list[tuple[str, Probe, int]]:
    """Returns (x, what to train, ranks) of one curve's points."""
    if what == "size":
        return [(name, Probe([[256] * (TOKENS // 256)], model=shape(*size)), 1) for name, size in SIZES.items()]
    if what == "length":
        return [(str(length), Probe([[length] * (LENGTHS[-1] // length)], model=shape(*SIZES["5M"])), 1)
                for length in LENGTHS]
    return [(str(ranks), Probe([[256] * (2 * TOKENS // 256 // ranks)], model=shape(*SIZES["30M"])), ranks)
            for ranks in arguments.ranks]


def shape(hidden_size: int, layers: int, heads: int) -> dict:
    return {"hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": heads // 2, "head_dim": None, "intermediate_size": None,
            "moe_intermediate_size": None}


def in_process(probe: Probe, ranks: int, arguments: argparse.Namespace) -> dict:
    """Measures a point with one process per rank; they share the cores."""
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launch, str(Path(__file__).resolve()), "--probe", json.dumps(asdict(probe)), "--device",
               arguments.device, "--dtype", arguments.dtype, "--seconds", str(arguments.seconds)]
    threads = max((os.cpu_count() or 1) // ranks, 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(threads))
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_as_rank(arguments: argparse.Namespace) -> None:
    with join_ranks(arguments.device, 600.0) as ranks:
        figures = take_steps(Probe(**json.loads(arguments.probe)), ranks, arguments)
    if ranks.is_main:
        print(json.dumps(figures))


def take_steps(probe: Probe, ranks: Ranks, arguments: argparse.Namespace) -> dict:
    device = resolve_device(arguments.device, ranks.rank)
    dtype, config = resolve_dtype(arguments.dtype, device), probe.config
    (ceiling,) = ranks.sum(matmul_peak(dtype, device, model_shapes(config)))  # on all ranks at once, as in training
    keep_freed_memory()
    model = MiniMindForCausalLM(config).to(device)
    wrapped = parallelize(model, ranks, "ddp", dtype)
    optimizer, scaler = build_optimizer(model, 1e-4, 0.1), torch.amp.GradScaler(enabled=False)
    learner = Learner(model, wrapped, optimizer, scaler, ranks, dtype)
    batch = random_step(probe, ranks.rank)
    seconds, start = [], time.perf_counter()
    going = 1
    while going:
        begin = time.perf_counter()
        train_step(learner, batch, 1.0)
        seconds.append(time.perf_counter() - begin)
        (going,) = ranks.largest(int(len(seconds) < 4 or time.perf_counter() - start < arguments.seconds))
    per_second = [ranks.world_size * sum(map(sum, probe.micro_batches)) / one for one in seconds[1:]]
    parameters, middle = sum(one.numel() for one in model.parameters()), statistics.median(per_second)
    return {"parameters": parameters, "tokens_per_second": middle,
            "spread": (max(per_second) - min(per_second)) / middle, "steps": len(per_second), "peak": ceiling,
            "share_of_peak": middle * flop_per_token(config, parameters, probe.micro_batches[0]) / ceiling}


def flop_per_token(config: ModelConfig, parameters: int, lengths: Sequence[int]) -> float:
    """Returns the FLOP of forward and backward pass (see above); a causal document of n tokens has n * n / 2 pairs."""
    pairs = sum(length * length / 2 for length in lengths) / sum(lengths)
    return 6 * parameters + 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs


LABELS = {"size": "parameters (millions)", "length": "tokens of a document", "ranks": "ranks"}


def draw(what: str, rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x = [row["parameters"] / 1e6 if what == "size" else int(row["x"]) for row in rows]
    figure, (speed, share) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    speed.plot(x, [row["tokens_per_second"] for row in rows], "o-", color="#1f5fa8")
    speed.set_ylabel("tokens/s")
    share.plot(x, [row["share_of_peak"] for row in rows], "o-", color="#c0561b")
    share.set_ylabel("share of the matrix-multiply peak")
    share.set_ylim(0, 1)
    if what == "size":
        speed.set_yscale("log")
        speed.set_yticks(ticks := [100, 200, 500, 1000, 2000, 5000], [f"{value:,.0f}" for value in ticks])
    else:
        speed.set_ylim(bottom=0)
    for panel in (speed, share):
        if what != "ranks":
            panel.set_xscale("log")
        panel.set_xticks(x, [f"{value:,.0f}" for value in x])
        panel.minorticks_off()
        panel.set_xlabel(LABELS[what])
        panel.grid(alpha=0.3)
    figure.suptitle(f"Training speed over {LABELS[what]}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
