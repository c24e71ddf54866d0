"""Will it fit? Predicts the peak memory of a run, and where it goes, before it starts.

    python scripts/estimate_memory.py --preset 64m --micro_batch_tokens 8192
    python scripts/estimate_memory.py --from_weight pretrain --gradient_checkpointing 1 --memory 4
    python scripts/estimate_memory.py --from_weight ./SmolLM2 --lora_rank 16 --quantize nf4
    python scripts/estimate_memory.py --hidden_size 1024 --num_hidden_layers 24 --device cuda --ranks 8 --parallel fsdp

The trainers' flags mean the same here. On a CPU the figure is the memory of the whole process, on a GPU what PyTorch
allocates there. docs/memory.md explains it; --batch_size makes no difference.
"""

import sys
from dataclasses import replace

import torch

from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.device import resolve_dtype
from minimind_sft.errors import run_program
from minimind_sft.model.build import check_size, find_start, new_model_config
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.weights import read_weights
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.scripts import EstimatedAdapters, EstimatedModel, EstimatedRun, EstimateSettings
from minimind_sft.terminal import counted, say, say_json
from minimind_sft.training.memory import (
    FLOAT,
    GIB,
    MIB,
    Plan,
    Sizes,
    kept_by_layer,
    kernels_of_one_length,
    largest_micro_batch,
    peak,
)


def main() -> int:
    settings = parse_flags(EstimateSettings, description=__doc__)
    model = model_asked_for(settings.model)
    plan = replace(plan_asked_for(settings.run), freeze=settings.model.freeze,
                   lora=adapters_asked_for(settings.adapters))
    parts, memory = peak(model, plan), settings.answer.memory
    fits = largest_micro_batch(model, plan, memory * GIB) if memory else None
    if settings.answer.json:
        say_json({"peak": round(sum(parts.values())), "parts": {k: round(v) for k, v in parts.items()},
                  "per_token_and_layer": kept_by_layer(model, plan), "most_micro_batch_tokens": fits})
    else:
        say("\n".join([*described(model, plan), "", *table(parts), "", *notes(model, plan)]))
        if memory:
            say(largest_line(settings.run, memory, fits))
    return 0


def model_asked_for(settings: EstimatedModel) -> ModelConfig:
    """Returns the shape of a new model, or that of the weights that --from_weight names.

    Raises:
        UserError: if the weights cannot be found or read, or disagree with the flags.
    """
    if settings.from_weight == "none":
        return new_model_config(settings, settings.vocab_size)
    path = find_start(settings, settings.save_dir, lambda: load_tokenizer(settings.tokenizer_path).fingerprint)
    assert path is not None, "--from_weight is not none"
    weights = read_weights(path)
    for notice in weights.notices:
        say(notice, sys.stderr)
    check_size(settings, weights.config, path)
    return replace(weights.config, dropout=settings.dropout)


def adapters_asked_for(settings: EstimatedAdapters) -> LoraSettings | None:
    """Returns the adapters that train; None if the model itself does."""
    if settings.lora_rank is None:
        return None
    return LoraSettings(lora_rank=settings.lora_rank, lora_dropout=settings.lora_dropout,
                        target_modules=settings.target_modules, modules_to_save=settings.modules_to_save,
                        quantize=settings.quantize)


def plan_asked_for(settings: EstimatedRun) -> Plan:
    """Returns the plan of the run, which may be for a GPU that this machine does not have."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    here = name == "cpu" or torch.cuda.is_available()
    dtype = resolve_dtype(settings.dtype, torch.device(name)) if here or settings.dtype != "auto" else torch.bfloat16
    return Plan(settings.micro_batch_tokens, settings.max_seq_len, dtype, on_cpu=name == "cpu",
                gradient_checkpointing=settings.gradient_checkpointing,
                several_micro_batches=settings.micro_batches > 1, ranks=settings.ranks, parallel=settings.parallel,
                async_save=settings.async_save)


def described(model: ModelConfig, plan: Plan) -> list[str]:
    """Returns lines that repeat what was asked."""
    sizes = Sizes.of(model, plan)
    part = f", of which {sizes.trained / 1e6:.1f}M train" if plan.freeze or plan.lora else ""
    base = ", base in 4 bits" if plan.lora and plan.lora.quantize != "none" else ""
    experts = ", mixture of experts" if model.use_moe else ""
    ranks = f"; each of {plan.ranks} ranks ({plan.parallel})" if plan.ranks > 1 else ""
    again = ", gradient checkpointing" if plan.gradient_checkpointing else ""
    return [f"model       {model.hidden_size} x {counted(model.num_hidden_layers, 'layer')}, "
            f"{sizes.total / 1e6:.1f}M parameters{part}{experts}{base}",
            f"training    micro-batches of {plan.micro_batch_tokens:,} tokens, "
            f"{str(plan.dtype).removeprefix('torch.')} on {'cpu' if plan.on_cpu else 'cuda'}{again}{ranks}"]


def table(parts: dict[str, float]) -> list[str]:
    """Returns the lines of the parts of the peak, given in bytes, and of their sum."""
    total = sum(parts.values())
    lines = [f"{name:<24}{value / MIB:>10,.0f} MiB{value / total:>7.0%}" for name, value in parts.items()]
    return [*lines, f"{'peak':<24}{total / MIB:>10,.0f} MiB   = {total / GIB:.2f} GiB"]


def notes(model: ModelConfig, plan: Plan) -> list[str]:
    """Returns lines about what a layer keeps, and about memory that the estimate leaves out."""
    kept = kept_by_layer(model, plan)
    parts = ", ".join(f"{name} {value:,.0f}" for name, value in kept.items())
    most = "Of layers that train, one keeps at most" if plan.freeze or plan.lora else "A layer keeps"
    lines = [f"{most} {sum(kept.values()):,.0f} bytes per token for its backward pass: {parts}."]
    if plan.on_cpu and plan.dtype != torch.float32:
        lines.append("One size of micro-batch is counted. For every other number of tokens oneDNN keeps about "
                     f"{kernels_of_one_length(model, plan) / MIB:.0f} MiB more.")
    if not plan.on_cpu:
        if plan.async_save:
            lines.append(f"--async_save 1 also takes {3 * FLOAT} bytes of main memory per parameter.")
        lines.append("The GPU's context (a few hundred MiB) and PyTorch's reserve come on top.")
    return lines


def largest_line(settings: EstimatedRun, memory: float, fits: int) -> str:
    """Returns the line about the largest micro-batch (`fits` tokens) in `memory` GiB."""
    if fits < settings.max_seq_len:
        hint = "" if settings.gradient_checkpointing else "; --gradient_checkpointing 1 takes less"
        return f"{memory:g} GiB do not hold even one document of --max_seq_len {settings.max_seq_len}{hint}."
    return f"The largest --micro_batch_tokens that fits into {memory:g} GiB: {fits}"


if __name__ == "__main__":
    run_program(main)
