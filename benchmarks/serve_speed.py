"""Times the engine of many requests beside llama.cpp, transformers and, if asked, another checkout's generate_batch.

    python benchmarks/serve_speed.py --before ../before --json benchmarks/results/serve_speed.json \\
        --plot benchmarks/results/serve_speed.png
    python benchmarks/serve_speed.py --models bundled SmolLM2-135M-Instruct.Q4_1.gguf --streams 1 8 --rounds 3

Every contender is a process of its own, with the same weights at the same precision and the same number of threads. It
answers the same random prompts greedily, all at once, with the same number of tokens; reading the prompts is part of
the time. In each round all contenders take turns with every number of streams, so that other load on the machine
affects them alike. Medians of the rounds count, and ratios are taken within a round.

    engine        inference/engine.py: what the server runs
    before        generate_batch of the checkout that --before names
    llama.cpp     through node-llama-cpp (MINIMIND_NODE_MODULES, or proofs/llama_cpp/node_modules): N sequences of one
                  context, from a GGUF file in this precision
    transformers  AutoModelForCausalLM.generate, from an exported folder

Precision float16 means weights rounded to float16, as in our files: so in the GGUF file, multiplied in float32 by ours
(which keeps two bytes per weight) and by transformers. After that, requests arrive at the engine at random (a Poisson
process at `--load` of the rate it reached with the most streams): the seconds to the first token and between tokens,
as percentiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from serve_contenders import Contender
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUNDLED = ROOT / "out" / "pretrain_256.pth"
MINIMIND_64M = ModelConfig(hidden_size=768, num_hidden_layers=8)
VOCABULARY = 6000
"""Prompts are ids below this, which every model has."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bundled", "64M"], metavar="MODEL",
                        help="bundled, 64M (MiniMind-3's shape, random weights) or weights (default: bundled 64M)")
    parser.add_argument("--precisions", nargs="+", default=["float16", "bfloat16"], choices=["float16", "bfloat16"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16], help="requests at once")
    parser.add_argument("--prompt_tokens", type=int, default=32, help="length of each prompt (default: 32)")
    parser.add_argument("--new_tokens", type=int, default=48, help="length of each answer (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: PyTorch's own)")
    parser.add_argument("--cpu_time", action="store_true",
                        help="count the contenders' time on the processor, which other load disturbs less; with one "
                             "thread only, because idle threads of llama.cpp spin")
    parser.add_argument("--before", type=Path, help="another checkout, whose generate_batch takes part")
    parser.add_argument("--load", type=float, default=0.7, help="share of the engine's rate that arrives")
    parser.add_argument("--arrivals", type=int, default=64, help="requests that arrive at random; 0: none")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here (PNG; needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads > 1:
        parser.error("--cpu_time needs --threads 1")

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for precision in arguments.precisions:
                contenders = start(model, precision, Path(folder), arguments)
                rows += measure(model, precision, contenders, arguments)
                for contender in contenders.values():
                    contender.close()
    report = {"command": " ".join(["python", "benchmarks/serve_speed.py", *sys.argv[1:]]), "torch": torch.__version__,
              "cores": os.cpu_count(), "cpu_time": arguments.cpu_time, "threads": arguments.threads,
              "rounds": arguments.rounds, "prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens,
              "load_average_at_end": round(os.getloadavg()[0], 1), "rows": rows}
    print_tables(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(report, arguments.plot)
    return 0


def start(model: str, precision: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Contender]:
    """Exports the weights and starts every contender that is installed."""
    weights = weights_of(model, folder)
    own = [sys.executable, HERE / "serve_contenders.py"]
    contenders = {"engine": Contender([*own, "engine", weights, precision, str(arguments.threads)], ROOT)}
    if arguments.before:
        other = arguments.before.resolve()
        contenders["before"] = Contender([*own, "batch", weights, precision, str(arguments.threads)], other)
    modules = Path(os.environ.get("MINIMIND_NODE_MODULES") or ROOT / "proofs" / "llama_cpp" / "node_modules")
    if (modules / "node-llama-cpp").is_dir():
        gguf = export(weights, "gguf", precision, folder / f"{weights.stem}-{precision}.gguf")
        contenders["llama.cpp"] = Contender(["node", HERE / "serve_streams.mjs", modules, gguf, str(arguments.threads)])
    exported = export(weights, "huggingface", precision, folder / f"{weights.stem}-{precision}")
    contenders["transformers"] = Contender([*own, "transformers", exported, precision, str(arguments.threads)])
    return contenders


def weights_of(model: str, folder: Path) -> Path:
    if model == "bundled":
        return BUNDLED
    if model != "64M":
        return Path(model).resolve()
    path = folder / "full_sft_768.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(MiniMindForCausalLM(MINIMIND_64M).half().state_dict(), path)
    return path


def export(weights: Path, kind: str, dtype: str, output: Path) -> Path:
    if not output.exists():
        own = [] if weights.suffix == ".gguf" or weights.is_dir() else ["--tokenizer_path", "bundled"]
        command = [sys.executable, ROOT / "scripts" / "convert_model.py", "--weight", weights, "--to", kind,
                   "--dtype", dtype, "--output", output, *own]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return output


def measure(model: str, precision: str, contenders: dict[str, Contender], arguments: argparse.Namespace) -> list[dict]:
    """Returns a row of figures for each number of streams."""
    requests = {count: {"prompts": random_prompts(count, arguments.prompt_tokens), "new_tokens": arguments.new_tokens}
                for count in arguments.streams}
    answers = {count: {name: each.ask(**request)["answers"] for name, each in contenders.items()}
               for count, request in requests.items()}  # also the warm-up
    rates: dict[int, dict[str, list[float]]] = {count: {name: [] for name in contenders} for count in requests}
    clock = "cpu_seconds" if arguments.cpu_time else "seconds"
    for _ in tqdm(range(arguments.rounds), desc=f"{model} {precision}", unit=" rounds", leave=False):
        for count, request in requests.items():
            for name, each in contenders.items():
                rates[count][name].append(count * arguments.new_tokens / each.ask(**request)[clock])
    few, most = min(requests), max(requests)
    seconds = contenders["engine"].ask(**requests[most])["seconds"]
    rows: list[dict[str, Any]] = [{
        "model": Path(model).name, "precision": precision, "streams": count,
        "tokens_per_second": {name: summary(values) for name, values in rates[count].items()},
        "engine_x": {name: ratio(rates[count]["engine"], values) for name, values in rates[count].items()
                     if name != "engine"},
        "engine_x_fewest_streams": ratio(rates[count]["engine"], rates[few]["engine"]),
        "same_tokens": {name: agreement(answers[count]["engine"], given) for name, given in answers[count].items()
                        if name != "engine"},
    } for count in requests]
    if arguments.arrivals:
        per_second = arguments.load * most / seconds
        came = contenders["engine"].ask(
            prompts=random_prompts(arguments.arrivals, arguments.prompt_tokens), new_tokens=arguments.new_tokens,
            per_second=per_second, max_running=most)
        rows[-1]["arrivals"] = {"requests": arguments.arrivals, "per_second": round(per_second, 2),
                                "ms_to_first_token": percentiles(came["first"]),
                                "ms_between_tokens": percentiles(came["between"])}
    return rows


def random_prompts(count: int, length: int) -> list[list[int]]:
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(count)).tolist()


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    return summary([one / other for one, other in zip(ours, theirs, strict=True)])


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Returns the share of answers that are equal; rounding differs, and a greedy answer may fork."""
    return round(statistics.mean(one == other for one, other in zip(ours, theirs, strict=True)), 2)


def percentiles(seconds: list[float]) -> dict[str, float]:
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{at}": round(hundredths[at - 1] * 1e3, 1) for at in (50, 90, 99)}


def print_tables(report: dict) -> None:
    print(f"{report['threads']} threads, prompts of {report['prompt_tokens']} tokens, {report['new_tokens']} new ones; "
          f"tokens/s of all streams, median (min-max) of {report['rounds']} rounds; in brackets the engine's ratio\n")
    for row in report["rows"]:
        others = "".join(f"  {name} {spread(row['tokens_per_second'][name], 0)} [{spread(ratio, 2)}]"
                         for name, ratio in row["engine_x"].items())
        print(f"{row['model']}, {row['precision']}, {row['streams']:>2} streams: "
              f"engine {spread(row['tokens_per_second']['engine'], 0)}{others}")
        if row["streams"] > 1:
            print(f"    {spread(row['engine_x_fewest_streams'], 1)} times the fewest streams")
        for name, unit in (("ms_to_first_token", "first token"), ("ms_between_tokens", "between tokens")):
            if "arrivals" in row:
                values = ", ".join(f"{at} {ms} ms" for at, ms in row["arrivals"][name].items())
                print(f"    {row['arrivals']['per_second']} requests/s arrive: {unit} {values}")


def spread(values: dict[str, float], digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"


def plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys((row["model"], row["precision"]) for row in report["rows"]))
    figure, panels = pyplot.subplots(1, len(groups), figsize=(4.2 * len(groups), 4.2), squeeze=False)
    for panel, group in zip(panels[0], groups, strict=True):
        rows = [row for row in report["rows"] if (row["model"], row["precision"]) == group]
        streams = [row["streams"] for row in rows]
        for name in rows[0]["tokens_per_second"]:
            rates = [row["tokens_per_second"][name] for row in rows]
            middle = [rate["median"] for rate in rates]
            errors = [[abs(rate[end] - rate["median"]) for rate in rates] for end in ("min", "max")]
            panel.errorbar(streams, middle, yerr=errors, label=name, marker="o", capsize=3)
        panel.set(title=f"{group[0]}, {group[1]}", xlabel="requests at once", xscale="log", yscale="log")
        panel.set_xticks(streams, map(str, streams))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    panels[0][0].set_ylabel("tokens per second, all requests together")
    figure.suptitle(f"Answering many requests; CPU threads: {report['threads']}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    run_program(main)
