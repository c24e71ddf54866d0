"""Times decoding in models of other families: the plain model beside its fast form.

    python benchmarks/decode_families.py
    python benchmarks/decode_families.py --rounds 5 --json benchmarks/results/decode_families.json

Both answer the same random prompts of one length greedily. In each round they take turns with every number of
sequences; medians of the rounds count, and ratios are taken within a round. The shapes are those of real models, Qwen's
with a quarter of its layers; the weights are random, rounded to half precision as in most files. One thread and its own
time on the processor: other load on the machine disturbs that least. Exits with status 1 if the two gave different
tokens in float32.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_batch
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

SHAPES = {
    "SmolLM2-135M": ModelConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        head_dim=64, intermediate_size=1536, rope_theta=1e5, qk_norm=False),
    "Qwen2.5-0.5B, 6 layers": ModelConfig(
        vocab_size=151936, hidden_size=896, num_hidden_layers=6, num_attention_heads=14, num_key_value_heads=2,
        head_dim=64, intermediate_size=4864, qk_norm=False, attention_bias="qkv"),
    "GPT-2": ModelConfig(
        vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        intermediate_size=3072, max_position_embeddings=1024, qk_norm=False, attention_bias="all", mlp="gelu",
        mlp_bias=True, norm="layer", positions="learned"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences at once")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--new_tokens", type=int, default=16, help="length of each answer (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each form (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for name, config in SHAPES.items():
        torch.manual_seed(0)
        model = MiniMindForCausalLM(config).half().eval()
        for dtype in arguments.dtypes:
            model = model.to(getattr(torch, dtype))
            forms = {"plain": model, "lowered": ready_to_decode(model)}
            rows += [{"model": name, "dtype": dtype, **measure(forms, sequences, arguments)}
                     for sequences in arguments.batches]
            print_rows(*rows[-len(arguments.batches):])
    if arguments.json:
        arguments.json.write_text(json.dumps({**conditions(arguments), "rows": rows}, indent=1) + "\n")
    return 1 if any(row["dtype"] == "float32" and not row["same_tokens"] for row in rows) else 0


def measure(forms: dict[str, LanguageModel], sequences: int, arguments: argparse.Namespace) -> dict:
    """Returns tokens per second of each form, and whether they gave the same tokens."""
    generator = torch.Generator().manual_seed(sequences)
    prompts = torch.randint(3, forms["plain"].config.vocab_size, (sequences, 32), generator=generator).tolist()
    settings = SamplingSettings(arguments.new_tokens)
    answers = {name: generate_batch(form, prompts, settings, ()) for name, form in forms.items()}  # also the warm-up
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for _ in tqdm(range(arguments.rounds), unit=" rounds", leave=False):
        for name, form in forms.items():
            start = time.process_time()
            generate_batch(form, prompts, settings, ())
            rates[name].append(sequences * arguments.new_tokens / (time.process_time() - start))
    ratio = statistics.median(fast / plain for fast, plain in zip(rates["lowered"], rates["plain"], strict=True))
    return {"sequences": sequences, "ratio": round(ratio, 2), "same_tokens": answers["plain"] == answers["lowered"],
            **{name: round(statistics.median(values), 1) for name, values in rates.items()}}


def print_rows(*rows: dict) -> None:
    for row in rows:
        other = "" if row["same_tokens"] else "   other tokens"
        print(f"{row['model']:<24}{row['dtype']:<10}{row['sequences']:>2} sequences   plain {row['plain']:>7.1f}"
              f"   lowered {row['lowered']:>7.1f} tokens/s   x {row['ratio']:.2f}{other}", flush=True)


def conditions(arguments: argparse.Namespace) -> dict:
    return {"command": " ".join(["python", "benchmarks/decode_families.py", *sys.argv[1:]]),
            "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "rounds": arguments.rounds,
            "new_tokens": arguments.new_tokens, "load_average_at_end": round(os.getloadavg()[0], 1)}


if __name__ == "__main__":
    run_program(main)
