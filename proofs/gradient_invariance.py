"""Proves that the gradient of a step does not depend on how its global batch is divided, in float64.

    python proofs/gradient_invariance.py --json proofs/results/gradient_invariance.json

One global batch of 16 documents goes through small models, dense, with experts, of each family that computes something
differently, and with adapters: whole, in micro-batches, and over several ranks (processes joined by Gloo) with DDP and
FSDP. For each cut the table shows how far the gradient of the worst parameter is from that of the whole batch,
|g - g0| / |g0|, for the families and for those with adapters in the worst of them. Exits with status 1 if a difference
exceeds 1e-10.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from processes import on_ranks

from minimind_sft.data.batching import BatchLayout, StepBatch, TrainingSteps, collate
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.example import make_example
from minimind_sft.errors import run_program
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kernels import padded_attention
from minimind_sft.model.lora import LoraShape, adapted, add_adapters
from minimind_sft.model.lora_targets import projections
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.parallel import full_tensor, parallelize

LIMIT = 1e-10
DOCUMENTS = 16
LONGEST = 48
SILENT = (3, 9)
SHAPE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
MODELS = {
    "dense": ModelConfig(**SHAPE),
    # More experts than a short document has tokens, so that some stay unused; a large auxiliary loss.
    "experts": ModelConfig(**SHAPE, use_moe=True, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16,
                           router_aux_loss_coef=0.1),
}
_PLAIN = replace(MODELS["dense"], qk_norm=False)
FAMILIES = {
    "Qwen2": replace(_PLAIN, attention_bias="qkv"),
    # Windows and original contexts that are shorter than most documents.
    "Mistral": replace(_PLAIN, sliding_window=9, head_dim=12, vocab_size=101, tie_word_embeddings=False),
    "SmolLM3": replace(_PLAIN, layers_without_rope=(0,), sliding_window=20, full_attention_layers=(1,)),
    "GPT-2": replace(_PLAIN, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu", positions="learned",
                     num_key_value_heads=4, max_position_embeddings=LONGEST),
    "Llama, dynamic RoPE": replace(_PLAIN, rope_scaling=RopeScaling("dynamic", 4.0, 16)),
    "MiniMind-2-MoE": replace(MODELS["experts"], qk_norm=False, num_shared_experts=2, norm_topk_prob=True),
}
ADAPTED = {f"{name}, adapters": {**MODELS, **FAMILIES}[name] for name in ("dense", "experts", "GPT-2", "Mistral")}
"""Models whose projections have adapters. The base is frozen, except the embedding, which trains in full."""
COMPARED = {**MODELS, **FAMILIES, **ADAPTED}
MODELS = {**COMPARED, "experts_per_batch": replace(MODELS["experts"], aux_loss_scope="batch")}
Gradients = dict[str, np.ndarray]
NOTHING = 1e-6
"""A gradient smaller than this share of the whole model's is rounding. The key bias of a layer without RoPE adds the
same number to all scores of a query, so it has no influence."""


@dataclass(frozen=True)
class Cut:
    """One way to cut the global batch; `step(dataset, ranks)` returns a rank's part of it."""

    name: str
    step: Callable[[ExampleDataset, Ranks], StepBatch]
    world_size: int = 1
    parallel: str = "ddp"
    padding: float = padded_attention.MAX_PADDING


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    rows = measure(CUTS)
    print(f"| {'how the batch is cut':<58} | {'dense':>8} | {'experts':>8} | {'families':>8} | {'adapters':>8} |\n"
          f"|{'-' * 60}|{'-' * 9}:|{'-' * 9}:|{'-' * 9}:|{'-' * 9}:|")
    for row in rows:
        families, adapters = (float(np.max([row[name] for name in group])) for group in (FAMILIES, ADAPTED))
        print(f"| {row['cut']:<58} | {row['dense']:8.1e} | {row['experts']:8.1e} | {families:8.1e} | {adapters:8.1e} |")
    worst = float(np.max([[row[name] for name in COMPARED] for row in rows]))  # NaN if any is NaN
    print(f"\nworst: {worst:.1e}; limit: {LIMIT:.0e}\n\nways that do depend on the cut, for comparison (batch 8 x 2):")
    controls = measure_controls()
    for name, value in controls.items():
        print(f"| {name:<58} | {value:8.1e} |")
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/gradient_invariance.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "limit": LIMIT, "rows": rows, "controls": controls}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(not worst <= LIMIT)


def measure(cuts: Sequence[Cut]) -> list[dict]:
    """Returns, for each cut, its name and each model's largest relative difference over the parameters."""
    references = gradients(WHOLE)
    rows = []
    for cut in cuts:
        of_cut = gradients(cut)
        rows.append({"cut": cut.name, **{name: difference(of_cut[name], references[name]) for name in COMPARED}})
    return rows


def measure_controls() -> dict[str, float]:
    """Measures two ways to train whose result does depend on the cut, to show that the measure can tell."""
    in_two = by_hand([consecutive(8)])
    means = []
    for half in range(2):
        own = Cut("", by_hand([[consecutive(8)[half]]], counted=consecutive(8)[half]))
        means.append(gradients_alone(own, "dense"))
    mean_of_means = {name: (means[0][name] + means[1][name]) / 2 for name in means[0]}
    return {
        "mean of the micro-batches' means": difference(mean_of_means, gradients_alone(WHOLE, "dense")),
        'auxiliary loss per micro-batch (aux_loss_scope="batch")': difference(
            gradients_alone(Cut("", in_two), "experts_per_batch"), gradients_alone(WHOLE, "experts_per_batch")),
    }


def documents() -> ExampleDataset:
    """Makes 16 documents of 2 to 48 tokens; the `SILENT` ones have no supervised token."""
    random = np.random.default_rng(0)
    samples = []
    for index in range(DOCUMENTS):
        length = int(random.integers(2, LONGEST + 1))
        supervised = random.random(length) < (0.0 if index in SILENT else 0.5)
        samples.append([make_example(random.integers(0, SHAPE["vocab_size"], length), supervised)])
    return ExampleDataset(samples)


def planned(micro_batch_tokens: int, multiple: int = 1) -> Callable[[ExampleDataset, Ranks], StepBatch]:
    """Cuts as the trainer does: by length over the ranks, then into padded micro-batches of a token budget."""
    def step(dataset: ExampleDataset, ranks: Ranks) -> StepBatch:
        layout = BatchLayout(micro_batch_tokens, ranks.rank, ranks.world_size, multiple)
        return TrainingSteps(dataset, layout, epochs=1, samples_per_step=DOCUMENTS, seed=1)[0]
    return step


def by_hand(shares: Sequence[Sequence[Sequence[int]]], counted: Sequence[int] = range(DOCUMENTS)
            ) -> Callable[[ExampleDataset, Ranks], StepBatch]:
    """Cuts as `shares[rank][micro-batch]` lists; divides the loss by the tokens of the `counted` documents."""
    def step(dataset: ExampleDataset, ranks: Ranks) -> StepBatch:
        everything = collate([dataset[i][0] for i in counted])
        own = tuple(collate([dataset[i][0] for i in indices]) for indices in shares[ranks.rank])
        return StepBatch(0, 0, tuple(range(DOCUMENTS)), own, everything.supervised, len(everything.input_ids))
    return step


def consecutive(size: int) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(0, DOCUMENTS, size)]


def gradients(cut: Cut) -> dict[str, Gradients]:
    """Returns the gradients of all compared models."""
    if cut.world_size == 1:
        return {name: gradients_alone(cut, name) for name in COMPARED}
    return on_ranks(cut.world_size, gradients_on_rank, CUTS.index(cut))[0]


def gradients_on_rank(ranks: Ranks, index: int) -> dict[str, Gradients]:
    return {name: _gradients(CUTS[index], name, ranks) for name in COMPARED}


def gradients_alone(cut: Cut, model_name: str) -> Gradients:
    return _gradients(cut, model_name, Ranks(0, 1, torch.device("cpu")))


def _gradients(cut: Cut, model_name: str, ranks: Ranks) -> Gradients:
    model = build(model_name)
    wrapped = parallelize(model, ranks, cut.parallel, torch.float32)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    keeper = GradientKeeper(trained.values(), lr=0.0)
    learner = Learner(model, wrapped, keeper, torch.amp.GradScaler("cpu", enabled=False), ranks, torch.float32)
    usual, padded_attention.MAX_PADDING = padded_attention.MAX_PADDING, cut.padding
    try:
        train_step(learner, cut.step(documents(), ranks), grad_clip=0.0)
    finally:
        padded_attention.MAX_PADDING = usual
    return dict(zip(trained, keeper.gradients, strict=True))


def build(model_name: str) -> MiniMindForCausalLM:
    """Builds a model with random weights, in adapters as well."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(MODELS[model_name])
    if model_name in ADAPTED:
        add_adapters(model, projections(model), LoraShape(rank=4))
        for _, change in adapted(model):
            torch.nn.init.normal_(change.lora_B, std=0.1)
        model.embed_tokens.requires_grad_(True)
    return model.double().train()


class GradientKeeper(torch.optim.SGD):
    """An optimizer that keeps the gradients instead of making an update."""

    def step(self, closure=None) -> None:
        self.gradients = [full_tensor(parameter.grad).numpy().copy() for parameter in self.param_groups[0]["params"]]


def difference(gradients: Gradients, reference: Gradients) -> float:
    least = NOTHING * np.linalg.norm([np.linalg.norm(gradient) for gradient in reference.values()])
    return float(np.max([np.linalg.norm(gradients[name] - expected) / max(np.linalg.norm(expected), least)
                         for name, expected in reference.items()]))


WHOLE = Cut("the whole batch at once: batch 16 x accumulation 1", by_hand([consecutive(16)]))
CUTS = [
    WHOLE,
    *(Cut(f"batch {size} x accumulation {DOCUMENTS // size}", by_hand([consecutive(size)])) for size in (8, 4)),
    Cut("batch 1 x accumulation 16: one document at a time", by_hand([consecutive(1)])),
    *(Cut(f"packed into micro-batches of {tokens} tokens", planned(tokens)) for tokens in (48, 64, 100, 250, 4096)),
    *(Cut(f"micro-batches of {tokens} tokens, filled up to multiples of {multiple}", planned(tokens, multiple))
      for tokens, multiple in ((4096, 16), (100, 64))),
    Cut("attention without padding: equal lengths only", planned(4096), padding=0.0),
    Cut("attention padded to the longest document", planned(4096), padding=1e9),
    *(Cut(f"{ranks} ranks, {parallel.upper()}, micro-batches of {tokens} tokens", planned(tokens), ranks, parallel)
      for ranks in (2, 4) for parallel in ("ddp", "fsdp") for tokens in (48, 4096)),
    *(Cut(f"2 ranks, {parallel.upper()}, no supervised token on one of them",
          by_hand([[list(SILENT)], [[i for i in range(DOCUMENTS) if i not in SILENT]]]), 2, parallel)
      for parallel in ("ddp", "fsdp")),
    *(Cut(f"2 ranks, {parallel.upper()}, all documents on one, none on the other",
          by_hand([[list(range(DOCUMENTS))], [[]]]), 2, parallel)
      for parallel in ("ddp", "fsdp")),
]


if __name__ == "__main__":
    run_program(main)
