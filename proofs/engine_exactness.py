"""Answers requests in random schedules, and compares each with the same request alone: tokens and scores, bit for bit.

    python proofs/engine_exactness.py --json proofs/results/engine_exactness.json

Requests join and leave at any step, some are cancelled, prompts share beginnings and are read in small pieces, half of
the answers are drawn with a seed, and most caches are too small for all. The models are tiny, with random weights:
dense, with experts, with adapters, of other dtypes, with matrices in 4 bits (needs bitsandbytes), and of every family
(needs transformers), each as it is and in its fast form. Exits with status 1 if an answer differs.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from engine_schedules import Pool

from minimind_sft.errors import run_program
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.inference.rows import exact_rows
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoraShape, adapted, add_adapters
from minimind_sft.model.lora_targets import chosen_projections
from minimind_sft.model.quantized import quantize

DENSE = ModelConfig(vocab_size=61, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=72, max_position_embeddings=64)
EXPERTS = ModelConfig(vocab_size=61, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                      max_position_embeddings=64, use_moe=True, num_experts_per_tok=2, moe_intermediate_size=40)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=200, help="of each model (default: 200)")
    parser.add_argument("--requests", type=int, default=14, help="from which a schedule chooses (default: 14)")
    parser.add_argument("--only", nargs="+", help="names of models")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    results = []
    for name, build in models():
        if not arguments.only or name in arguments.only:
            model = build()
            for form, own in (("plain", model), ("fast", ready_to_decode(model))):
                if form == "plain" or own is not model:
                    results.append({"model": name, "form": form, **measured(own, arguments)})
                    print(results[-1], flush=True)
    if arguments.json:
        report = {"command": " ".join(["python", "proofs/engine_exactness.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(result["wrong"] for result in results) else 0


def measured(model: MiniMindForCausalLM, arguments: argparse.Namespace) -> dict:
    pool, wrong, shared = Pool(model, arguments.requests), 0, 0
    for seed in range(arguments.schedules):
        try:
            shared += pool.check(seed)
        except AssertionError:
            wrong += 1
    return {"schedules": arguments.schedules, "wrong": wrong, "prompt_tokens_shared": shared,
            "rows": list(exact_rows(model).counts)}


def models() -> Iterator[tuple[str, Callable[[], MiniMindForCausalLM]]]:
    """Yields names, and what builds the model."""
    yield "dense", lambda: random_model(DENSE)
    yield "experts", lambda: random_model(EXPERTS)
    yield "dense, adapters", lambda: with_adapters(random_model(DENSE))
    yield "experts, adapters", lambda: with_adapters(random_model(EXPERTS))
    yield "dense, bfloat16", lambda: random_model(DENSE).bfloat16()
    yield "experts, bfloat16", lambda: random_model(EXPERTS).bfloat16()
    yield "dense, float64", lambda: random_model(DENSE).double()
    if importlib.util.find_spec("bitsandbytes"):
        yield "dense, nf4", nf4_model
    if importlib.util.find_spec("transformers"):
        yield from family_models()


def random_model(config: ModelConfig) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.2)
    return model


def with_adapters(model: MiniMindForCausalLM) -> MiniMindForCausalLM:
    add_adapters(model, chosen_projections(model, ("all-linear",)), LoraShape(rank=3, alpha=6.0))
    for _, change in adapted(model):
        torch.nn.init.normal_(change.lora_B, std=0.2)
    return model.eval()


def nf4_model() -> MiniMindForCausalLM:
    model = random_model(DENSE)
    quantize(model, "nf4")
    return model


def family_models() -> Iterator[tuple[str, Callable[[], MiniMindForCausalLM]]]:
    from family_models import CASES, our_model, their_model

    def build(model_type: str, values: dict) -> MiniMindForCausalLM:
        if model_type != "gpt2":
            values = {**values, "max_position_embeddings": 64}
        with tempfile.TemporaryDirectory() as folder:
            their_model(model_type, values).save_pretrained(folder)
            return our_model(Path(folder))

    for name, (model_type, values) in CASES.items():
        yield name, lambda model_type=model_type, values=values: build(model_type, values)


if __name__ == "__main__":
    run_program(main)
