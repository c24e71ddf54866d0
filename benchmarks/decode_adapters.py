"""Times decoding with an adapter: unmerged in the fast form, beside the base alone and a model with the change merged.

    python benchmarks/decode_adapters.py --json benchmarks/results/decode_adapters.json

All answer the same random prompts of one length greedily, with the shape of SmolLM2-135M, float32 and random weights
rounded to half precision as in most files. Merged with a change they are no longer half precision, and take twice the
memory when packed. In each round all take turns with every number of sequences; medians of the rounds count, and ratios
are taken within a round. One thread and its own time on the processor: other load on the machine disturbs that least.
Exits with status 1 if forms of the same adapter gave different tokens.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from decode_families import SHAPES
from torch import nn
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.inference import fast_forms
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_batch
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoraShape, adapted, add_adapters, merge_adapters
from minimind_sft.model.lora_targets import projections

MODEL = "SmolLM2-135M"
PROMPT_TOKENS = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences at once")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64], help="ranks of the adapters")
    parser.add_argument("--new_tokens", type=int, default=16, help="length of each answer (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each form (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    torch.manual_seed(0)
    model = MiniMindForCausalLM(SHAPES[MODEL]).half().float().eval()
    forms = {"base alone": ready_to_decode(model)}
    for rank in arguments.ranks:
        forms |= forms_of_adapter(copy.deepcopy(model), rank)
    rows = [measure(forms, sequences, arguments) for sequences in arguments.batches]
    if arguments.json:
        arguments.json.write_text(json.dumps({**conditions(arguments), "rows": rows}, indent=1) + "\n")
    return int(not all(row["same_tokens"] for row in rows))


def forms_of_adapter(model: MiniMindForCausalLM, rank: int) -> dict[str, LanguageModel]:
    """Returns the forms of the model with an adapter of all projections."""
    add_adapters(model, projections(model), LoraShape(rank, 2.0 * rank))
    for _, change in adapted(model):
        nn.init.normal_(change.lora_B, std=0.01)
    forms = {f"rank {rank}": ready_to_decode(model)}
    rows = {kind: form for kind, form in fast_forms.FAST_FORMS.items() if kind is not type(change)}
    with patch.dict(fast_forms.FAST_FORMS, rows, clear=True):
        forms[f"rank {rank}, without its fast form"] = ready_to_decode(copy.deepcopy(model))
    merge_adapters(model)
    forms[f"rank {rank}, merged"] = ready_to_decode(model)
    return forms


def measure(forms: dict[str, LanguageModel], sequences: int, arguments: argparse.Namespace) -> dict:
    """Returns tokens per second of each form, how they compare with the base alone, and whether tokens are the same."""
    generator = torch.Generator().manual_seed(sequences)
    prompts = torch.randint(3, SHAPES[MODEL].vocab_size, (sequences, PROMPT_TOKENS), generator=generator).tolist()
    settings = SamplingSettings(arguments.new_tokens)
    answers = {name: generate_batch(form, prompts, settings, ()) for name, form in forms.items()}  # also the warm-up
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for _ in tqdm(range(arguments.rounds), unit=" rounds", leave=False):
        for name, form in forms.items():
            start = time.process_time()
            generate_batch(form, prompts, settings, ())
            rates[name].append(sequences * arguments.new_tokens / (time.process_time() - start))
    relative = {name: statistics.median(one / base for one, base in zip(values, rates["base alone"], strict=True))
                for name, values in rates.items()}
    for name in forms:
        print(f"{sequences:>2} sequences   {name:<32}{statistics.median(rates[name]):>8.1f} tokens/s"
              f"   x {relative[name]:.2f}", flush=True)
    return {"sequences": sequences, "tokens_per_second": {
                name: round(statistics.median(values), 1) for name, values in rates.items()},
            "relative_to_base": {name: round(value, 2) for name, value in relative.items()},
            "same_tokens": all(given == answers[name.partition(",")[0]] for name, given in answers.items())}


def conditions(arguments: argparse.Namespace) -> dict:
    return {"command": " ".join(["python", "benchmarks/decode_adapters.py", *sys.argv[1:]]), "model": MODEL,
            "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "rounds": arguments.rounds,
            "new_tokens": arguments.new_tokens, "load_average_at_end": round(os.getloadavg()[0], 1)}


if __name__ == "__main__":
    run_program(main)
