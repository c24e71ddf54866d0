"""Describes a run: its data, settings, machine and versions, as tables and pairs of the page."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from minimind_sft.paths import shown
from minimind_sft.report.formats import moment, percent
from minimind_sft.report.page import Badge, Column, Table
from minimind_sft.report.run_files import Run
from minimind_sft.settings.spec import as_typed
from minimind_sft.settings.training import LoraSFTSettings, PretrainSettings, SFTSettings

STAGES = {"pretrain": "Pretraining", "full_sft": "Full fine-tuning", "lora": "Fine-tuning with adapters (LoRA)"}
DEFAULTS = {"pretrain": PretrainSettings, "full_sft": SFTSettings, "lora": LoraSFTSettings}
COUNTS = {"truncated": "cut", "dropped_rows": "dropped", "bad_rows": "bad"}


def subtitle(run: Run) -> str:
    """Says what kind of run it was, from what it started, when, and how far it came."""
    stage = STAGES.get(run.about.get("stage") or "", "")
    start = run.settings.get("from_weight")
    parts = [f"{stage}, from {start}" if stage and start and start != "none" else stage]
    if run.starts and run.starts[0].get("started"):
        parts.append(f"started {moment(run.starts[0]['started'])}")
    if len(run.starts) > 1:
        resumed = ", ".join(f"{one['step']:,}" for one in run.starts[1:])
        parts.append(f"resumed at step {resumed}")
    of_all = f" of {run.total_steps:,}" if run.total_steps else ""
    parts.append(f"step {run.last_step:,}{of_all}")
    return " · ".join(part for part in parts if part)


def data_table(run: Run) -> Table | None:
    """Returns the files of a run with their rows, samples and tokens; None if the metrics file does not have them."""
    files = run.about.get("data") or []
    if not files:
        return None
    counts = [Column(name, True) for name in ("rows", "samples", "tokens", "supervised")]
    columns = [Column("file"), Column("used for"), *counts, Column("rows that were")]
    return Table(columns, [[
        one["name"], one.get("role") or "", *(_count(one.get(name)) for name in ("rows", "samples", "tokens")),
        percent(one["supervised"] / one["tokens"]) if one.get("supervised") is not None and one.get("tokens") else "-",
        _lost(one)] for one in files])


def changed_settings(run: Run) -> list[tuple[str, str]]:
    """Returns the settings that differ from the trainer's defaults; none if the trainer is not known."""
    trainer = DEFAULTS.get(run.about.get("stage") or "")
    if trainer is None:
        return []
    defaults = as_typed(trainer())
    return pairs_of({name: value for name, value in run.settings.items()
                     if name in defaults and _as_json(defaults[name]) != value})


def pairs_of(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns names with values as text; inner objects are named with a point."""
    pairs = []
    for name, value in (values or {}).items():
        if isinstance(value, dict):
            pairs += [(f"{name}.{inner}", text) for inner, text in pairs_of(value)]
        else:
            pairs.append((name, _text(value)))
    return pairs


def machine(run: Run) -> list[tuple[str, str]]:
    """Returns where the run computed, and how well it used that."""
    facts = run.about.get("machine") or {}
    found = pairs_of({name: value for name, value in facts.items()
                      if name != "device_name" or value != facts.get("processor")})
    if shares := [value for _, value in run.curve("peak_share")]:
        found.append(("share of matmul peak", f"{percent(median(shares))} (median)"))
    if memory := [value for _, value in run.curve("peak_memory_mib")]:
        found.append(("peak memory", f"{max(memory):,.0f} MiB"))
    return found


def _lost(one: Mapping[str, Any]) -> Badge | str:
    lost = [f"{one[name]:,} {word}" for name, word in COUNTS.items() if one.get(name)]
    return Badge("warning", ", ".join(lost)) if lost else "-"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def _as_json(value: Any) -> Any:
    """Returns a default as the metrics file has it: lists, and paths in the repository without its own place."""
    if isinstance(value, tuple):
        return [_as_json(one) for one in value]
    return shown(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _text(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)
