"""Compares runs: their scores, what differs between them, and which one did best."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from minimind_sft.report.details import pairs_of
from minimind_sft.report.formats import duration, number, pair, percent
from minimind_sft.report.page import Note
from minimind_sft.report.run_files import Run
from minimind_sft.report.verdict import (
    AVERAGED,
    Evaluation,
    Outcome,
    Verdict,
    exact_counts,
    loss_change,
    outcome,
)
from minimind_sft.terminal import counted

NAMES_OF_OUTPUT = ("save_dir", "save_weight", "lora_name", "prepared_dir", "from_resume", "overwrite", "wandb_project")
"""Settings that say where a run writes; they change nothing about it."""

GROUPS = ("settings", "model", "machine", "versions")
"""Parts of a run's description that are objects."""

NONE = "-"

CHANCE = 0.05
"""A difference that chance makes as large with this probability, or a higher one, decides nothing."""


class Row(NamedTuple):
    """A row of a table with one value for each run; `best` are the indices of the best ones, if that can be said."""

    name: str
    values: list[str]
    best: Sequence[int] = ()


class Part(NamedTuple):
    """One score for each kind or file of the evaluation data."""

    title: str
    heading: str
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """Facts about several runs; each row has a value of every run.

    Attributes:
        scores: of the weights that the runs left, and what they cost.
        parts: scores by kind and by file, where there are several of them.
        differences: settings and circumstances that are not the same.
    """

    names: list[str]
    runs: list[Run]
    verdict: Verdict
    notes: list[Note]
    scores: list[Row]
    parts: list[Part]
    differences: list[Row]


def compare(runs: Mapping[str, Run]) -> Comparison:
    """Compares runs, given by the names that tell them apart."""
    names, found = list(runs), [outcome(run) for run in runs.values()]
    listed = list(runs.values())
    return Comparison(names, listed, _judge(names, listed, found), _notes(names, listed), _scores(listed, found),
                      _parts(listed, found), differences(listed))


def differences(runs: Sequence[Run]) -> list[Row]:
    """Lists the settings and circumstances that differ between the runs that recorded them."""
    facts = [_facts(run) for run in runs]
    described = [one for one in facts if one]
    rows = []
    for name in dict.fromkeys(name for one in described for name in one):
        if len({one.get(name, NONE) for one in described}) > 1:
            rows.append(Row(name, [one.get(name, NONE) for one in facts]))
    settings = {(row.name, *row.values) for row in rows}  # the model's shape may repeat them
    return [row for row in rows if not row.name.startswith("model: ")
            or (row.name.removeprefix("model: "), *row.values) not in settings]


def evaluated_alike(runs: Sequence[Run]) -> bool | None:
    """Says whether all runs were evaluated on the same tokens of the same files; None if they did not record it."""
    described = [_evaluation_data(run) for run in runs]
    if None in described:
        return None
    return all(one == described[0] for one in described)


def _facts(run: Run) -> dict[str, str]:
    """Returns what is known of a run by name. A value that changed when it was resumed has its steps."""
    starts = [(start["step"], _facts_of_start(start)) for start in run.starts]
    facts = {}
    for name in dict.fromkeys(name for _, one in starts for name in one):
        text = before = starts[0][1].get(name, NONE)
        for step, one in starts[1:]:
            value = one.get(name, NONE)
            if value != before:
                text += f"; from step {step:,}: {value}"
            before = value
        facts[name] = text
    return facts


def _facts_of_start(start: Mapping[str, Any]) -> dict[str, str]:
    found = {name: str(start[name]) for name in ("stage", "total_steps") if start.get(name) is not None}
    for group in GROUPS:
        prefix = "" if group == "settings" else f"{group.removesuffix('s')}: "
        found |= {f"{prefix}{name}": text for name, text in pairs_of(start.get(group))
                  if group != "settings" or name not in NAMES_OF_OUTPUT}
    for role in ("training", "evaluation"):
        files = [one for one in start.get("data") or [] if one.get("role") == role]
        if files:
            found[f"data: {role}"] = ", ".join(_described_file(one) for one in files)
    return found


def _described_file(one: Mapping[str, Any]) -> str:
    counts = [f"{one[name]:,} {name}" for name in ("samples", "tokens") if one.get(name) is not None]
    return f"{one['name']} ({', '.join(counts)})" if counts else one["name"]


def _evaluation_data(run: Run) -> tuple | None:
    files = [one["name"] for one in run.about.get("data") or [] if one.get("role") == "evaluation"]
    tokens = next((one["eval_tokens"] for one in run.evaluations if one.get("eval_tokens") is not None), None)
    return None if not files or tokens is None else (sorted(files), tokens)


def _judge(names: list[str], runs: list[Run], found: list[Outcome]) -> Verdict:
    """Says which run did best, by validation loss and by exact match."""
    if len(runs) < 2:
        return Verdict("hint", "One run: there is nothing to compare it with.")
    if not all(one.kept for one in found):
        without = [name for name, one in zip(names, found, strict=True) if not one.kept]
        return Verdict("hint", f"Not known which is best: {', '.join(without)} "
                               f"{'was' if len(without) == 1 else 'were'} not evaluated after the first step.")
    if evaluated_alike(runs) is False:
        return Verdict("warning", "Not known which is best: the runs were not evaluated on the same tokens of the "
                                  "same files, so their scores cannot be compared.")
    kept = [one.kept for one in found if one.kept]
    by_loss, by_answers = _lowest_loss(names, kept), _most_exact(names, kept)
    judged = [one for one in (by_answers, by_loss) if one]
    judged.sort(key=lambda one: not one[0])  # what decides comes first
    winners = {winner for winner, _ in judged if winner}
    if not judged:
        return Verdict("hint", "Not known which is best: no validation loss is finite.")
    if len(winners) == 1:
        return Verdict("fine", f"{winners.pop()} is best: {'; '.join(words for _, words in judged)}.")
    sentence = "; ".join(f"{winner} has {words}" if winner else words for winner, words in judged)
    return Verdict("warning", f"Mixed: {sentence}.") if winners else Verdict(
        "hint", f"No clear difference: {sentence}.")


def _lowest_loss(names: list[str], kept: list[Evaluation]) -> tuple[str, str] | None:
    """Returns the run with the lowest validation loss ("" if the next one is as low), and that in words."""
    losses = sorted((one["eval_loss"], name) for one, name in zip(kept, names, strict=True)
                    if one["eval_loss"] is not None)
    if len(losses) < 2:
        return None
    (lowest, best), (second, other) = losses[:2]
    texts = pair(lowest, second)
    if not loss_change(lowest, second):
        return "", f"the lowest validation losses are {texts[0]} ({best}) and {texts[1]} ({other})"
    return best, f"validation loss {texts[0]} against {texts[1]} ({other})"


def _most_exact(names: list[str], kept: list[Evaluation]) -> tuple[str, str] | None:
    """Returns the run with most exact answers ("" if that may be chance), and that in words."""
    counts = [exact_counts(one) for one in kept]
    asked = {one[1] for one in counts if one}
    if None in counts or len(asked) != 1:
        return None
    ranked = sorted(((one[0], name, kept[index]) for index, (one, name) in enumerate(zip(counts, names, strict=True))
                     if one), key=lambda one: (-one[0], one[1]))
    (most, best, first), (second, other, next_one) = ranked[:2]
    asked_for = asked.pop()
    if most == second:
        return "", f"exact answers decide nothing, {most:,} of {asked_for:,} ({best} and {other})"
    if may_be_chance(first, next_one):
        return "", (f"exact answers decide nothing, {most:,} of {asked_for:,} ({best}) and {second:,} ({other}) may be "
                    "chance")
    return best, f"{most:,} of {counted(asked_for, 'answer')} exact against {second:,} ({other})"


def may_be_chance(better: Evaluation, worse: Evaluation) -> bool:
    """Says whether two runs that answer equally well may differ as much as these do.

    Takes the exact, two-sided sign test over the questions that only one of them answers exactly (McNemar 1947).
    Without answers to the same questions, chance cannot be excluded.
    """
    ours, theirs = (one.get("answers") or [] for one in (better, worse))
    if not ours or [one["question"] for one in ours] != [one["question"] for one in theirs]:
        return True
    pairs = [(bool(one.get("exact")), bool(other.get("exact"))) for one, other in zip(ours, theirs, strict=True)]
    gains, losses = pairs.count((True, False)), pairs.count((False, True))
    differing = gains + losses
    as_uneven = sum(math.comb(differing, count) for count in range(max(gains, losses), differing + 1))
    return min(2 * as_uneven / 2 ** differing, 1.0) >= CHANCE


def _notes(names: list[str], runs: list[Run]) -> list[Note]:
    notes = []
    silent = [name for name, run in zip(names, runs, strict=True) if not run.about]
    if silent:
        notes.append(Note("hint", f"{', '.join(silent)}: the metrics file does not record settings and data; a later "
                                  "version's would."))
    if evaluated_alike(runs) is None and len(runs) > 1 and all(run.evaluations for run in runs):
        notes.append(Note("hint", "Losses can be compared only if the runs were evaluated on the same data, which not "
                                  "all of the files record."))
    for name, run in zip(names, runs, strict=True):
        notes += [Note("warning", f"{name}, step {one.step:,}: {one.text}") for one in run.warnings]
    return notes


def _scores(runs: list[Run], found: list[Outcome]) -> list[Row]:
    """Returns the scores of the weights that the runs left, and what they cost; rows without values are left out."""
    kept = [one.kept or one.before or {} for one in found]
    comparable = evaluated_alike(runs) is not False

    def row(name: str, values: list[float | None], texts: list[str], sign: int) -> Row:
        return Row(name, texts, _best(values, sign) if comparable else ())

    losses, accuracy = ([one.get(field) for one in kept] for field in ("eval_loss", "token_accuracy"))
    rows = [
        row("validation loss", losses, _loss_texts(losses), -1),
        Row("before the first step", _loss_texts([(one.before or {}).get("eval_loss") for one in found])),
        Row("perplexity", [_text(one.get("perplexity"), number) for one in kept]),
        row("token accuracy", accuracy, [percent(value) for value in accuracy], 1),
        row("exact match", [one.get("exact_match") for one in kept], [_exact(exact_counts(one)) for one in kept], 1),
        Row("measured at step", [_text(one.get("step"), "{:,}".format) for one in kept]),
        Row("training loss, last steps", _loss_texts([_last_loss(run) for run in runs])),
        Row("steps", [_steps(run) for run in runs]),
        Row("ended", [run.end.how if run.end else "not yet" if run.about else NONE for run in runs]),
        Row("time", [_text(run.end and run.end.seconds, duration) for run in runs]),
        Row("tokens/s", [_median(run, "tokens_per_second") for run in runs]),
        Row("supervised tokens/s", [_median(run, "supervised_tokens_per_second") for run in runs]),
        Row("peak memory", [_text(_highest(run, "peak_memory_mib"), lambda value: f"{value:,.0f} MiB")
                            for run in runs]),
    ]
    return [row for row in rows if any(value != NONE for value in row.values)]


def _parts(runs: Sequence[Run], found: list[Outcome]) -> list[Part]:
    """Returns exact answers by kind, and losses by kind and by file."""
    kept = [one.kept or one.before or {} for one in found]
    comparable = evaluated_alike(runs) is not False

    def part(title: str, heading: str, field: str, read: Callable[[Any], float | None],
             form: Callable[[Any], str], sign: int) -> Part:
        by_run = [one.get(field) or {} for one in kept]
        rows = []
        for name in sorted({name for one in by_run for name in one}):
            values = [read(one[name]) if one.get(name) else None for one in by_run]
            rows.append(Row(name, [_text(one.get(name), form) for one in by_run],
                            _best(values, sign) if comparable else ()))
        return Part(title, heading, rows)

    parts = [
        part("Exact answers by kind", "kind", "exact_by_kind", lambda counts: counts[0] / max(counts[1], 1), _exact, 1),
        *(part(f"Loss by {heading}", heading, field, lambda scores: scores.get("loss"),
               lambda scores: _text(scores.get("loss"), "{:.4f}".format), -1)
          for heading, field in (("kind", "by_kind"), ("file", "by_source")))]
    return [one for one in parts if len(one.rows) > 1]


def _best(values: Sequence[float | None], sign: int) -> list[int]:
    """Returns the indices of the highest values, or with a sign of -1 of the lowest.

    There are none if a value is missing or all are equal.
    """
    known = [sign * value for value in values if value is not None]
    if len(known) < len(values) or min(known) == max(known):
        return []
    return [index for index, value in enumerate(known) if value == max(known)]


def _loss_texts(losses: Sequence[float | None]) -> list[str]:
    """Formats losses of several runs with the same decimals."""
    return [_text(loss, "{:.4f}".format) for loss in losses]


def _text(value: Any, form: Callable[[Any], str]) -> str:
    return NONE if value is None else form(value)


def _exact(counts: Sequence[int] | None) -> str:
    return f"{counts[0]:,} of {counts[1]:,}" if counts else NONE


def _last_loss(run: Run) -> float | None:
    losses = [value for _, value in run.curve("loss")][-AVERAGED:]
    return sum(losses) / len(losses) if losses else None


def _steps(run: Run) -> str:
    return f"{run.last_step:,} of {run.total_steps:,}" if run.total_steps else f"{run.last_step:,}"


def _median(run: Run, name: str) -> str:
    values = [value for _, value in run.curve(name)]
    return f"{median(values):,.0f}" if values else NONE


def _highest(run: Run, name: str) -> float | None:
    return max((value for _, value in run.curve(name)), default=None)
