"""Sums up a run at its end: how it went, and what to look at next."""

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from minimind_sft.paths import place, program
from minimind_sft.settings.spec import names_of
from minimind_sft.settings.training import TrainSettings
from minimind_sft.training.progress import Effort, clock

MIN_EVALUATIONS_SINCE_LOWEST = 2


def closing_lines(metrics: Sequence[dict], effort: Effort, keep_best: bool) -> list[str]:
    """Says how the run went.

    Args:
        metrics: the lines of the metrics file, also those from before the run was resumed.
        keep_best: whether the weights with the lowest validation loss are kept, rather than the last.
    """
    return [*_time(effort), *_loss(metrics), *_validation(metrics, keep_best)]


def _time(effort: Effort) -> list[str]:
    if not effort.steps:
        return []
    rate = effort.supervised_tokens / max(effort.training_seconds, 1e-9)
    beside = effort.all_seconds - effort.training_seconds
    more = f"; evaluating and saving took {clock(beside)} of it" if beside >= 1 else ""
    steps = f"{effort.steps:,} step{'s' * (effort.steps > 1)}"
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
    shown = {step: f"{loss:.4f} at step {step}" for step, loss in (evaluated[0], (lowest, lowest_loss), evaluated[-1])}
    shown[lowest] += ", the lowest" * (len(shown) > 1)
    lines = [f"validation  {'; '.join(shown.values())}"]
    since = [loss for step, loss in evaluated if step >= lowest]
    if len(since) > MIN_EVALUATIONS_SINCE_LOWEST:
        rising = all(one < other for one, other in pairwise(since))
        remedy = "" if keep_best else "; --keep_best 1 would keep those weights"
        lines.append(f"note        the validation loss has been {'rising' if rising else 'higher'} since step "
                     f"{lowest}: {lowest_loss:.4f} then, {last_loss:.4f} at step {last}{remedy}; fewer --epochs or a "
                     "lower --learning_rate may do better")
    return lines


def _numbers(metrics: Sequence[dict], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in metrics if isinstance(line.get(name), float)]


def next_lines(stage: str, settings: TrainSettings, weights: Path, metrics: Path) -> list[str]:
    """Gives the commands that look at the result, to be pasted where the run was started."""
    same = [word for name in names_of(settings, "tokens") if (value := getattr(settings.data, name))
            for word in (f"--{name}", place(value))]
    chat = [program("eval_llm.py"), "--weight", place(weights), *same]
    if stage == "pretrain":
        commands = {"chat": [*chat, "--prompt", "Once upon a time"],
                    "fine-tune": [program("trainer/train_full_sft.py"), "--from_weight", place(weights), *same]}
    else:
        file = next((place(path) for path in settings.data.eval_data_path if Path(path).is_file()), "FILE")
        commands = {"chat": chat, "score": [*chat, "--score", file]}
    commands["curves"] = [program("scripts/plot_metrics.py"), place(metrics)]
    return [f"{name:<12}{shlex.join(['python', *command])}" for name, command in commands.items()]
