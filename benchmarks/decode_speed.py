"""Times decoding, beside transformers' `generate` with the same weights and beside the memory's bandwidth.

    python benchmarks/decode_speed.py
    python benchmarks/decode_speed.py --rounds 7 --json benchmarks/results/decode_speed.json \\
        --plot benchmarks/results/decode_speed.png

Every contender answers the same random prompts of one length greedily, with the same number of tokens; reading the
prompts is part of the measured time. In each round all contenders take turns with every number of sequences, so that
other load on the machine affects them alike. Medians of the rounds count, and ratios are taken within a round.

    ours          generate_batch, with the model from `ready_to_decode`
    dynamic       transformers' Qwen3ForCausalLM.generate with its default cache, which grows with every token
    static        the same with its preallocated cache

The weights are random, rounded to half precision as in our files, and held in memory as float32 or bfloat16. Each token
reads all of them. The ceiling is therefore the bandwidth of a sum over as much float32 memory, measured in the same
rounds, divided by the size of the weights at 4 or 2 bytes each; our share of it is taken within a round. The last table
shows what each idea gains for one sequence. Exits with status 1 if two contenders in float32 gave different tokens.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peak import timed_dtypes
from peers import qwen3_twin
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_batch
from minimind_sft.inference.lowering import LoweredModel, ready_to_decode
from minimind_sft.inference.packed import plain
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

MODEL = ModelConfig(hidden_size=512, num_hidden_layers=8, intermediate_size=1664)
PEERS = ("dynamic", "static")
Answers = list[list[int]]
Contender = Callable[[Answers], Answers]
"""Maps prompts to answers."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="sequences at once")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--prompt_tokens", type=int, default=32, help="length of each prompt (default: 32)")
    parser.add_argument("--new_tokens", type=int, default=48, help="length of each answer (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: PyTorch's own)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here (PNG; needs matplotlib)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = half_precision_weights(MODEL)
    rows, wrong = [], 0
    timed = timed_dtypes([getattr(torch, dtype) for dtype in arguments.dtypes], torch.device("cpu"))
    for dtype in [name for name in arguments.dtypes if getattr(torch, name) in timed]:
        model = model.to(getattr(torch, dtype))
        contenders = make_contenders(model, arguments.new_tokens)
        for row in measure(dtype, contenders, model, arguments.batches, arguments):
            wrong += dtype == "float32" and not row["same_tokens"]
            rows.append({"dtype": dtype, **row})
    ideas = measure_ideas(arguments)
    report = {**conditions(arguments), "rows": rows, "ideas": ideas}
    print_tables(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(report, arguments.plot)
    return 1 if wrong else 0


def half_precision_weights(config: ModelConfig) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(config).half().float().eval()


def conditions(arguments: argparse.Namespace) -> dict:
    import transformers

    return {
        "command": " ".join(["python", "benchmarks/decode_speed.py", *sys.argv[1:]]),
        "torch": torch.__version__, "transformers": transformers.__version__, "cores": os.cpu_count(),
        "threads": arguments.threads, "batches": arguments.batches, "rounds": arguments.rounds,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens, "load_average_at_end": round(os.getloadavg()[0], 1),
        "weights_million": round(weights_read(half_precision_weights(MODEL)) / 1e6, 1),
    }


def weights_read(model: MiniMindForCausalLM) -> int:
    """Counts the weights that one token reads; a tied embedding counts once, as the head."""
    return sum(weight.numel() for weight in model.parameters())


def make_contenders(model: MiniMindForCausalLM, new_tokens: int) -> dict[str, Contender]:
    peer = qwen3_twin(model, model.lm_head.weight.dtype).eval()
    return {
        "ours": partial(answer, ready_to_decode(model), new_tokens),
        "dynamic": partial(answer_by_transformers, peer, new_tokens, None),
        "static": partial(answer_by_transformers, peer, new_tokens, "static"),
    }


def answer(model: LanguageModel, new_tokens: int, prompts: Answers) -> Answers:
    return generate_batch(model, prompts, SamplingSettings(new_tokens), ())


def answer_by_transformers(peer: torch.nn.Module, new_tokens: int, cache: str | None, prompts: Answers) -> Answers:
    prompt_ids = torch.tensor(prompts)
    with torch.inference_mode():
        ids = peer.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False, max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None, use_cache=True,
            cache_implementation=cache)
    return ids[:, prompt_ids.shape[1]:].tolist()


def random_prompts(batch: int, arguments: argparse.Namespace) -> Answers:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(3, MODEL.vocab_size, (batch, arguments.prompt_tokens), generator=generator).tolist()


def measure(name: str, contenders: dict[str, Contender], model: MiniMindForCausalLM, batches: list[int],
            arguments: argparse.Namespace) -> list[dict]:
    """Measures tokens per second of each contender with each number of sequences, and the bandwidth, by round."""
    prompts = {batch: random_prompts(batch, arguments) for batch in batches}
    answers = {batch: {who: contender(prompts[batch]) for who, contender in contenders.items()}
               for batch in batches}  # also the warm-up
    memory = torch.ones(max(weights_read(model), 64_000_000))
    rates = {batch: {who: [] for who in contenders} for batch in batches}
    bandwidths = []
    for _ in tqdm(range(arguments.rounds), desc=name, unit=" rounds", leave=False):
        for batch in batches:
            for contender in contenders:
                start = time.perf_counter()
                contenders[contender](prompts[batch])
                elapsed = time.perf_counter() - start
                rates[batch][contender].append(batch * arguments.new_tokens / elapsed)
        bandwidths.append(max(bandwidth(memory) for _ in range(3)))
    gigabytes = weights_read(model) * model.lm_head.weight.itemsize / 1e9
    reads = [each / gigabytes for each in bandwidths]
    return [{
        "batch": batch,
        "tokens_per_second": {who: summary(values) for who, values in rates[batch].items()},
        "ratio": {peer: ratio(rates[batch]["ours"], rates[batch][peer]) for peer in contenders if peer != "ours"},
        "x_fewest_sequences": ratio(rates[batch]["ours"], rates[min(batches)]["ours"]),
        "steps_per_reading_of_the_weights": ratio([rate / batch for rate in rates[batch]["ours"]], reads),
        "bandwidth_gb_per_second": summary(bandwidths),
        "same_tokens": all(given == answers[batch]["ours"] for given in answers[batch].values()),
    } for batch in batches]


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Returns the median and spread of ours over theirs, by round."""
    return summary([one / other for one, other in zip(ours, theirs, strict=True)])


def bandwidth(memory: torch.Tensor) -> float:
    """Measures the GB/s of a sum."""
    start = time.perf_counter()
    memory.sum()
    return memory.nbytes / (time.perf_counter() - start) / 1e9


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "least": round(min(values), 2),
            "most": round(max(values), 2)}


def measure_ideas(arguments: argparse.Namespace) -> dict:
    """Measures one sequence in float32, each line with one more of our ideas."""
    model, full = half_precision_weights(MODEL), half_precision_weights(MODEL)
    with torch.no_grad():
        for weight in full.parameters():
            weight.mul_(1.001)  # now float16 cannot hold them
    forms = {
        "ours": ready_to_decode(model),
        "packed as float32": ready_to_decode(full),
        "fewer operations": LoweredModel(model, plain),
        "the model, KV cache": model,
    }
    contenders = {name: partial(answer, form, arguments.new_tokens) for name, form in forms.items()}
    (measured,) = measure("ideas", contenders, model, [1], arguments)
    return {name: measured["tokens_per_second"][name] for name in forms}


def print_tables(report: dict) -> None:
    print(f"{report['weights_million']} million weights, {report['threads']} threads, prompts of "
          f"{report['prompt_tokens']} tokens, {report['new_tokens']} new ones, median (least-most) of "
          f"{report['rounds']} rounds\n")
    print(f"{'':>9} {'':>5}  {'tokens/s':^55}  {'ours, times as fast as':^35}")
    print(f"{'dtype':>9} {'batch':>5}  {'ours':^19}{'dynamic':^18}{'static':^18}  {'dynamic':^18}{'static':^17}")
    for row in report["rows"]:
        rates = "".join(f"{spread(row['tokens_per_second'][name], 0):<18} " for name in ("ours", *PEERS))
        ratios = "".join(f"{spread(row['ratio'][peer], 1):<18}" for peer in PEERS)
        print(f"{row['dtype']:>9} {row['batch']:>5}  {rates} {ratios}")
    for row in report["rows"]:
        if row["batch"] > 1 and min(report["batches"]) == 1:
            times = spread(row["x_fewest_sequences"], 1)
            print(f"{row['dtype']}: {row['batch']} at once make {times} times the tokens of one")
    same = all(row["same_tokens"] for row in report["rows"] if row["dtype"] == "float32")
    print(f"\nfloat32: all contenders gave {'the same tokens' if same else 'DIFFERENT tokens'}")
    for row in report["rows"]:
        if row["batch"] == 1:
            gb, size = row["bandwidth_gb_per_second"]["median"], 2 if row["dtype"] == "bfloat16" else 4
            share = spread(row["steps_per_reading_of_the_weights"], 2)
            print(f"{row['dtype']}: {gb:.0f} GB/s read {size} bytes per weight {ceiling(report, gb, size):.0f} times a "
                  f"second; meanwhile one sequence makes {share} of a token")
    print("\none sequence, float32              tokens/s")
    for name, rate in report["ideas"].items():
        print(f"{name:<34} {spread(rate, 0)}")


def spread(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['least']:.{digits}f}-{values['most']:.{digits}f})"


def ceiling(report: dict, gb_per_second: float, bytes_per_weight: int) -> float:
    return gb_per_second * 1e3 / (report["weights_million"] * bytes_per_weight)


def plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = list(dict.fromkeys(row["dtype"] for row in report["rows"]))
    figure, panels = pyplot.subplots(1, len(dtypes), figsize=(5.6 * len(dtypes), 4.4), sharey=True, squeeze=False)
    styles = {"ours": ("ours", "tab:blue", "o"), "dynamic": ("transformers, default cache", "tab:orange", "s"),
              "static": ("transformers, static cache", "tab:green", "^")}
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        rows = [row for row in report["rows"] if row["dtype"] == dtype]
        batches = [row["batch"] for row in rows]
        for name, (label, color, marker) in styles.items():
            rates = [row["tokens_per_second"][name] for row in rows]
            middle = [rate["median"] for rate in rates]
            errors = [[abs(rate[end] - rate["median"]) for rate in rates] for end in ("least", "most")]
            panel.errorbar(batches, middle, yerr=errors, label=label, color=color, marker=marker, capsize=3)
        gb = statistics.median(row["bandwidth_gb_per_second"]["median"] for row in rows)
        panel.axhline(ceiling(report, gb, 2), color="gray", linestyle=":", label="one sequence: bandwidth / 2 bytes")
        if dtype == "float32":
            panel.axhline(ceiling(report, gb, 4), color="gray", linestyle="--",
                          label="one sequence: bandwidth / 4 bytes")
        panel.set(title=dtype, xlabel="sequences at once", xscale="log", yscale="log")
        panel.set_xticks(batches, map(str, batches))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0][0].set_ylabel("tokens per second, all sequences together")
    ticks = [50, 100, 200, 500, 1000, 2000, 5000]
    panels[0][0].set_yticks(ticks, map(str, ticks))
    figure.suptitle(f"Decoding with {report['weights_million']} million weights on {report['threads']} CPU threads")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    run_program(main)
