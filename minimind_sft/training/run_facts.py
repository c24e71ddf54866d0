"""Describes a run for its metrics file: what trains on what, with which settings, where."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from minimind_sft import __version__
from minimind_sft.data.dataset import ExampleDataset, Mixture, Samples
from minimind_sft.data.prepared_folder import PreparedDataset
from minimind_sft.data.sources import Source, find_eval_sources, find_sources
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.quantized import quantised_weights
from minimind_sft.paths import shown
from minimind_sft.settings.data import DataSettings
from minimind_sft.settings.spec import as_typed, flags_of
from minimind_sft.settings.training import TrainSettings
from minimind_sft.training.freezing import trained_parameters
from minimind_sft.training.learner import Learner
from minimind_sft.training.outputs import Outputs, this_command

TRAINING, EVALUATION = "training", "evaluation"
COUNTS = ("rows", "tokens", "supervised", "truncated", "dropped_rows", "bad_rows")
"""Fields of `DatasetCounts`; they count whole files, samples held out by `--eval_share` included."""


def run_facts(stage: str, outputs: Outputs, settings: TrainSettings, learner: Learner, total_steps: int,
              sets: tuple[Samples, Samples | None]) -> dict[str, Any]:
    """Returns the line that a run writes to its metrics file at each start, as JSON values.

    Args:
        sets: the training set and the evaluation set.
    """
    return {
        "id": outputs.run,
        "name": outputs.weights.stem,
        "stage": stage,
        "command": this_command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "total_steps": total_steps,
        "settings": settings_facts(settings),
        "model": {"from_weight": settings.model.from_weight, **model_facts(learner.model)},
        "machine": machine_facts(learner),
        "versions": {"minimind_sft": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "data": data_facts(settings.data, *sets),
    }


def settings_facts(settings: TrainSettings) -> dict[str, Any]:
    """Returns every setting as typed; the path of a file in the repository says nothing of where that lies."""
    paths = {flag.name for flag in flags_of(settings) if flag.setting.kind == "path"}
    typed = as_typed(settings)
    for name in paths:
        value = typed[name]
        typed[name] = list(map(_shortened, value)) if isinstance(value, tuple) else value and _shortened(value)
    return typed


def _shortened(path: str) -> str:
    return shown(path) if Path(path).is_absolute() else path  # else it may be a name, such as pretrain


def model_facts(model: MiniMindForCausalLM) -> dict[str, Any]:
    """Returns the shape and the size of a model."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) + quantised_weights(model)
    return {"parameters": parameters, "trained_parameters": trained_parameters(model), **asdict(model.config)}


def machine_facts(learner: Learner) -> dict[str, Any]:
    """Returns where a run computes, in how many processes, in which precision; names no host."""
    device = learner.ranks.device
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "ranks": learner.ranks.world_size,
        "dtype": str(learner.dtype).removeprefix("torch."),
    }


def processor() -> str:
    """Returns the processor's name; on Linux from /proc, because Python knows only its kind there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def data_facts(data: DataSettings, train_set: Samples, eval_set: Samples | None) -> list[dict[str, Any]]:
    """Returns for each source its rows, what became of them, and how many of its samples the run uses."""
    facts = _source_facts(TRAINING, find_sources(data.data_path, "--data_path"), train_set)
    if eval_set is None:
        return facts
    if data.eval_data_path:
        return facts + _source_facts(EVALUATION, find_eval_sources(data.eval_data_path), eval_set)
    return [*facts, {"name": f"--eval_share {data.eval_share:g} of the training rows", "role": EVALUATION,
                     "samples": len(eval_set)}]


def _source_facts(role: str, sources: Sequence[Source], samples: Samples) -> list[dict[str, Any]]:
    parts: Sequence[ExampleDataset] = samples.sources if isinstance(samples, Mixture) else [samples]
    facts = []
    for number, (source, part) in enumerate(zip(sources, parts, strict=True)):
        fact: dict[str, Any] = {"name": shown(source.name), "role": role, "samples": len(part)}
        if isinstance(part, PreparedDataset):
            fact |= {name: getattr(part.counts, name) for name in COUNTS}
        if isinstance(samples, Mixture) and samples.draws:
            fact["samples_per_epoch"] = samples.draws[number]
        facts.append(fact)
    return facts
