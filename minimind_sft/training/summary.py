"""Describes a run to its user: the model at the start; at the end how it went, and what to look at next."""

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from minimind_sft.device import described_dtype
from minimind_sft.model.adapters.own_file import PREFIX
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.quantized import quantised_weights
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.paths import place, program, shown
from minimind_sft.settings.spec import names_of
from minimind_sft.settings.training import TrainSettings
from minimind_sft.terminal import counted
from minimind_sft.training.freezing import trained_parameters
from minimind_sft.training.progress import Effort, clock
from minimind_sft.training.resume_state import TrainState

MIN_EVALUATIONS_SINCE_LOWEST = 2
DIGITS = 4
"""Of a loss, after the point; a smaller difference does not show."""


def describe_model(model: MiniMindForCausalLM, start: Path | None, family: str | None, dtype: str,
                   device: torch.device) -> str:
    """Gives the model's origin, family, shape and size, and where it computes; `dtype` is `--dtype`."""
    shape = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters()) + quantised_weights(model)
    trained = trained_parameters(model)
    count = f"{trained / 1e6:.1f}M" if trained >= 1e6 else f"{trained / 1e3:.1f}K"
    part = f", of which {count} train" if trained < parameters else ""
    return (f"model       {shown(start) if start else 'new'}: {f'{family}, ' if family else ''}"
            f"{shape.hidden_size} x {counted(shape.num_hidden_layers, 'layer')}, "
            f"{parameters / 1e6:.1f}M parameters{part}{', mixture of experts' if shape.use_moe else ''}; "
            f"{described_dtype(dtype, device)} on {device}")


def closing_lines(metrics: Sequence[dict], effort: Effort, keep_best: bool) -> list[str]:
    """Says how the run went.

    Args:
        metrics: the lines of the metrics file, including those from before the run was resumed.
        keep_best: whether the run keeps the best weights, not the last ones.
    """
    return [*_time(effort), *_loss(metrics), *_validation(metrics, keep_best), *_answers(metrics)]


def _time(effort: Effort) -> list[str]:
    if not effort.steps:
        return []
    rate = effort.supervised_tokens / max(effort.training_seconds, 1e-9)
    beside = effort.all_seconds - effort.training_seconds
    more = f"; evaluating and saving took {clock(beside)} of it" if beside >= 1 else ""
    steps = f"{counted(effort.steps, 'step')}"
    return [f"time        {steps} in {clock(effort.all_seconds)}, {rate:,.0f} supervised tokens/s{more}"]


def _loss(metrics: Sequence[dict]) -> list[str]:
    losses = _numbers(metrics, "loss")
    ends = dict(losses[:1] + losses[-1:])
    return [f"loss        {'; '.join(f'{loss:.4f} at step {step}' for step, loss in ends.items())}"] if ends else []


def _validation(metrics: Sequence[dict], keep_best: bool) -> list[str]:
    """Gives the first, lowest and last validation loss, and a note if it has not fallen for a while."""
    evaluated = _numbers(metrics, "eval_loss")
    if not evaluated:
        return []
    lowest, lowest_loss = min(evaluated, key=lambda one: one[1])
    last, last_loss = evaluated[-1]
    named = {step: f"{loss:.4f} at step {step}" for step, loss in (evaluated[0], (lowest, lowest_loss), evaluated[-1])}
    named[lowest] += ", the lowest" * (len(named) > 1)
    lines = [f"validation  {'; '.join(named.values())}"]
    since = [loss for step, loss in evaluated if step >= lowest]
    is_higher = all(round(loss, DIGITS) > round(lowest_loss, DIGITS) for loss in since[1:])
    if len(since) > MIN_EVALUATIONS_SINCE_LOWEST and is_higher:
        rising = all(one < other for one, other in pairwise(since))
        remedy = "" if keep_best else "; --keep_best 1 would keep those weights"
        lines.append(f"note        the validation loss has been {'rising' if rising else 'higher'} since step "
                     f"{lowest}: {lowest_loss:.4f} then, {last_loss:.4f} at step {last}{remedy}; fewer --epochs or a "
                     "lower --learning_rate may do better")
    return lines


def _answers(metrics: Sequence[dict]) -> list[str]:
    """Gives the exact answers of the first and the last evaluation."""
    compared = {line["step"]: [sum(column) for column in zip(*by_kind.values(), strict=True)] for line in metrics
                if (by_kind := line.get("exact_by_kind"))}
    ends = dict([*compared.items()][:1] + [*compared.items()][-1:])
    exact = "; ".join(f"{right} of {asked} exact at step {step}" for step, (right, asked) in ends.items())
    return [f"answers     {exact}"] if exact else []


def _numbers(metrics: Sequence[dict], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in metrics if isinstance(line.get(name), float)]


def result_lines(state: TrainState, weights: Path) -> list[str]:
    """Reports the steps that made no update, and the weights."""
    best = f" (validation loss {state.best_eval_loss:.4f})" if state.best_eval_loss is not None else ""
    if best and state.best_exact_match is not None and state.settings["best_by"] == "exact_match":
        best = f"{best.removesuffix(')')}, {state.best_exact_match:.0%} of the answers exact)"
    skipped = f"skipped     {state.bad_steps} of {counted(state.step, 'step')}: loss or gradient was not finite"
    return [*([skipped] if state.bad_steps else []),
            f"wrote       {shown(weights)}{best} and {shown(sidecar_path(weights))}"]


def next_lines(stage: str, settings: TrainSettings, weights: Path, metrics: Path,
               base: Path | None = None) -> list[str]:
    """Gives commands that look at the result, to paste where the run was started.

    Args:
        base: the weights that `weights`, if it is an adapter, belongs to.
    """
    same = [word for name in names_of(settings, "tokens") if (value := getattr(settings.data, name))
            for word in (f"--{name}", place(value))]
    model = ["--weight", place(base), "--lora_weight", place(weights)] if base else ["--weight", place(weights)]
    chat = [program("eval_llm.py"), *model, *same]
    if stage == "pretrain":
        commands = {"chat": [*chat, "--prompt", "Once upon a time"],
                    "fine-tune": [program("trainer/train_full_sft.py"), "--from_weight", place(weights), *same]}
    else:
        file = next((place(path) for path in settings.data.eval_data_path if Path(path).is_file()), "FILE")
        commands = {"chat": chat, "score": [*chat, "--score", file]}
    if base:
        name, _, _ = weights.stem.removeprefix(PREFIX).removesuffix("_moe").rpartition("_")
        commands["merge"] = [program("scripts/merge_lora.py"), *model, "--save_weight", f"{name}_merged",
                             "--save_dir", place(weights.parent)]
    commands["curves"] = [program("scripts/plot_metrics.py"), place(metrics)]
    return [f"{name:<12}{shlex.join(['python', *command])}" for name, command in commands.items()]
