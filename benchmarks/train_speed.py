"""Times training beside TRL's SFTTrainer, on the same rows, weights and hyperparameters, in one run.

    python benchmarks/train_speed.py alpaca_zh_10k.json --tokenizer_path minimind --repeat 3 \\
        --json benchmarks/results/train_speed.json --plot benchmarks/results/train_speed.png
    python benchmarks/train_speed.py --skip_peers --switched_off

The work is 192 conversations of at most 340 tokens, 16 per optimizer step, and a model of 512 x 8 (30.0M parameters).
TRL gets our ids and labels, so that both train on the same tokens, and transformers' Qwen3 with a copy of the weights.

1. Compares the losses of the first steps, in float32.
2. Searches for TRL's best configuration: padded and packed, float32 and bfloat16, several batch sizes.
3. Lets the best one, the best one with our number of tokens per optimizer step, the close ones, and ours take turns,
   `--repeat` times; the medians count. Useful tokens are those of the conversations; padding counts for no one. Each of
   our runs has its own process, and so has TRL.
4. With `--switched_off`, also takes our steps without each of our ideas in turn (benchmarks/train_variants.py).

The ceiling is how fast this machine multiplies matrices in the same run (benchmarks/peak.py), at 6 FLOP per parameter
and useful token.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peak import matmul_peak, model_shapes, timed_dtypes
from tqdm import tqdm
from train_contenders import Ours, OwnProcess, Theirs, Work, common_work, short
from train_variants import VARIANTS

from minimind_sft.paths import in_repository

EAGER, COMPILED = "ours, bf16", "ours, bf16, compiled"
SEARCH_STEPS = 3
LOSSES_AGREE = 1e-3
NEAR = 0.85
"""TRL configurations within this factor of the best also take turns, because three steps decide little."""


def trl_configurations(dtypes: list[torch.dtype]) -> list[Theirs]:
    """Lists configurations; five packed rows of 340 tokens hold about as many tokens as 16 conversations."""
    shapes = [(False, 16, 1), (False, 4, 4), (False, 4, 1), (True, 5, 1), (True, 3, 1), (True, 2, 1)]
    return [Theirs(packed, dtype, batch, accumulate) for dtype in dtypes for packed, batch, accumulate in shapes]


def compare_losses(ours: Ours, theirs: Theirs) -> float:
    """Returns the largest difference of the first steps' losses, which must not exceed 1e-3."""
    worst = max(abs(a - b) for a, b in zip(ours.losses[:SEARCH_STEPS], theirs.losses[:SEARCH_STEPS], strict=True))
    print(f"losses of the first {SEARCH_STEPS} steps in fp32: ours "
          f"{', '.join(f'{loss:.4f}' for loss in ours.losses[:SEARCH_STEPS])}; TRL's at most {worst:.1e} apart")
    if worst > LOSSES_AGREE:
        raise SystemExit(f"the losses are {worst:.1e} apart: the two do not train alike")
    return worst


def search(configurations: list[Theirs], trl: OwnProcess, work: Work) -> tuple[list[Theirs], dict[str, float]]:
    """Returns TRL configurations that may be fastest, overall or with our tokens per step, and the tokens/s of all."""
    rates = {}
    for theirs in tqdm(configurations, desc="TRL's best", unit=" configurations"):
        rates[theirs.name] = work.tokens(SEARCH_STEPS) / trl.run(theirs, SEARCH_STEPS)
    for name, rate in rates.items():
        print(f"  {name:<44}{rate:>8,.0f} useful tokens/s")
    most = max(rates.values())
    most_of_our_step = max(rates[theirs.name] for theirs in configurations if theirs.has_our_step)
    near = [theirs for theirs in configurations if rates[theirs.name] >= NEAR * most
            or (theirs.has_our_step and rates[theirs.name] >= NEAR * most_of_our_step)]
    return near, rates


def fastest(contenders: list[Theirs], rows: dict[str, dict]) -> str:
    return max((theirs.name for theirs in contenders), key=lambda name: rows[name]["useful_tokens_per_second"])


def take_turns(places: list[tuple[Ours | Theirs, OwnProcess]], work: Work, steps: int, repeat: int,
               peak: Callable[[], dict[str, float]]) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """Returns, by round, each contender's useful tokens/s and the measured ceilings."""
    rates: dict[str, list[float]] = {contender.name: [] for contender, _ in places}
    peaks, tokens = [], work.tokens(steps)
    with tqdm(total=repeat * len(places), unit=" runs") as bar:
        for turn in range(repeat):
            peaks.append(peak())
            first = turn % len(places)  # the first contender after the peak measurement finds cold caches
            for contender, process in places[first:] + places[:first]:
                bar.set_description(contender.name)
                rates[contender.name].append(tokens / process.run(contender, steps))
                bar.update()
    return rates, peaks


def summary(contenders: list[Ours | Theirs], rates: dict[str, list[float]], peaks: list[dict[str, float]],
            parameters: int) -> dict[str, dict]:
    ceiling = {name: statistics.median(peak[name] for peak in peaks) for name in peaks[0]}
    rows = {}
    for contender in contenders:
        of = rates[contender.name]
        rate, dtype = statistics.median(of), short(contender.dtype)
        rows[contender.name] = {
            "useful_tokens_per_second": round(rate, 1), "least": round(min(of), 1), "most": round(max(of), 1),
            "dtype": dtype, "share_of_matmul_peak": round(6 * parameters * rate / ceiling[dtype], 3),
        }
    return rows


def print_table(rows: dict[str, dict], references: list[str]) -> None:
    """Prints the table, with ratios to `references`: TRL's best, and its best with our tokens per step."""
    headings = ["x TRL's best", "x at our step"][:len(references)]
    print(f"\n{'':<44}{'tokens/s':>9}{'spread':>14}{'of peak':>9}" + "".join(f"{h:>15}" for h in headings))
    for name, row in rows.items():
        ratios = "".join(f"{row['useful_tokens_per_second'] / rows[reference]['useful_tokens_per_second']:>14.2f}x"
                         for reference in references)
        spread = f"{row['least']:,.0f}-{row['most']:,.0f}"
        print(f"{name:<44}{row['useful_tokens_per_second']:>9,.0f}{spread:>14}{row['share_of_matmul_peak']:>9.2f}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path(in_repository("dataset/sft_demo.jsonl")),
                        help="conversations to train on (default: the bundled ones, which are short)")
    parser.add_argument("--tokenizer_path", default=in_repository("model"), help="tokenizer folder")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps in each turn (default: 12)")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--skip_peers", action="store_true", help="leave TRL out")
    parser.add_argument("--skip_compile", action="store_true", help="leave torch.compile out (it takes a minute)")
    parser.add_argument("--switched_off", action="store_true", help="also run ours without each of its ideas")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        from train_speed_plot import draw

        draw(report, arguments.plot)


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    bf16, fp32 = torch.bfloat16, torch.float32
    work = common_work(arguments, folder)
    dtypes = timed_dtypes((bf16, fp32), work.device)
    compiles = bf16 in dtypes and not arguments.skip_compile
    parameters = sum(parameter.numel() for parameter in work.model.parameters())
    report = {"command": "python benchmarks/train_speed.py " + " ".join(sys.argv[1:]),
              "torch": torch.__version__, "machine": platform.machine(),
              "threads": torch.get_num_threads(), "device": str(work.device), "parameters": parameters,
              "tokens_per_step": work.tokens(arguments.steps) / arguments.steps, "repeat": arguments.repeat}
    ours = [Ours(f"ours, {short(dtype)}", dtype) for dtype in dtypes]
    if compiles:
        ours.insert(0, Ours(COMPILED, bf16, compiled=True))
    places: list[tuple[Ours | Theirs, OwnProcess]] = [(one, OwnProcess(arguments, folder)) for one in ours]
    report["seconds_of_first_steps"] = {}
    for contender, process in places:
        seconds = process.run(contender, SEARCH_STEPS)
        report["seconds_of_first_steps"][contender.name] = seconds
        print(f"{contender.name}: first {SEARCH_STEPS} steps {seconds:.1f} s")
    peers: list[Theirs] = []
    if not arguments.skip_peers:
        trl, configurations = OwnProcess(arguments, folder), trl_configurations(dtypes)
        peers, report["trl_search"] = search(configurations, trl, work)
        plain = next(theirs for theirs in configurations if theirs.dtype == fp32 and theirs.has_our_step
                     and not theirs.packed)
        report["losses_apart"] = compare_losses(ours[-1], plain)
        places += [(theirs, trl) for theirs in peers]
    shapes = model_shapes(work.model.config)

    def peak() -> dict[str, float]:
        return {short(dtype): matmul_peak(dtype, work.device, shapes, seconds_per_shape=0.15) for dtype in dtypes}

    rates, peaks = take_turns(places, work, arguments.steps, arguments.repeat, peak)
    report["peak_flops"] = {name: statistics.median(one[name] for one in peaks) for name in peaks[0]}
    report["contenders"] = summary([contender for contender, _ in places], rates, peaks, parameters)
    rows = report["contenders"]
    of_our_step = [theirs for theirs in peers if theirs.has_our_step]
    references = [fastest(these, rows) for these in (peers, of_our_step) if these]
    report["references"] = references
    print("\nmatrix-multiply peak: " + ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}"
                                                 for name, flops in report["peak_flops"].items()))
    print_table(report["contenders"], references)
    if compiles:
        pays = compiling_pays_after(report)
        report["compiling_pays_after_steps"] = pays
        print("\ncompiling " + ("never pays for its start here" if pays is None
                                else f"pays for its start after {pays:,.0f} such steps"))
    if arguments.switched_off:
        report["switched_off"] = without_each(work, arguments.steps, dtypes[0])
    return report


def compiling_pays_after(report: dict) -> float | None:
    """Returns how many steps a run needs for compiling to pay; None if compiled steps are no faster."""
    start = report["seconds_of_first_steps"][COMPILED] - report["seconds_of_first_steps"][EAGER]
    eager, compiled = (report["tokens_per_step"] / report["contenders"][name]["useful_tokens_per_second"]
                       for name in (EAGER, COMPILED))
    return start / (eager - compiled) if eager > compiled else None


def without_each(work: Work, steps: int, dtype: torch.dtype) -> dict[str, float]:
    """Returns how many times as long a step takes without each idea, as the median over steps taken in turn.

    The variants share one model, so that each finds memory as the one before left it, and take turns at going first.
    """
    ours = Ours("switched off", dtype)
    ours.start(work)
    ideas = {name: idea for name, idea in VARIANTS.items() if dtype == torch.bfloat16 or not idea.needs_bfloat16}
    variants = [None, *ideas]

    def seconds(name: str | None, step: int) -> float:
        ours.without, ours.dtype = name, torch.float32 if name == "bfloat16" else dtype
        return ours.run(1, step)

    for name in variants:
        seconds(name, 0)
    times = []
    for step in tqdm(range(steps), desc="without each idea", unit=" steps"):
        turn = step % len(variants)
        times.append({name: seconds(name, step) for name in variants[turn:] + variants[:turn]})
    print(f"\n{'without':<66}{'time':>8}")
    slower = {}
    for name, idea in ideas.items():
        slower[idea.title] = statistics.median(one[name] / one[None] for one in times)
        print(f"{idea.title:<66}{slower[idea.title]:>7.2f}x")
    return slower


if __name__ == "__main__":
    main()
