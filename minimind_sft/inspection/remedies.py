"""Suggests commands that fix what the inspector found, ready to paste."""

import shlex
from collections.abc import Iterator, Sequence

from minimind_sft.inspection.tally import Tally
from minimind_sft.paths import program
from minimind_sft.settings.runtime import RuntimeSettings
from minimind_sft.settings.spec import as_typed
from minimind_sft.settings.training import SFTSettings, TrainSettings

CLEANED = "clean.jsonl"
ROUND_UP = 64
"""A suggested length is a multiple of this."""


def commands(training: Tally, evaluation: Tally, settings: TrainSettings) -> list[str]:
    """Returns the commands to run next: one that cleans the data, if that helps, and one that trains on them.

    Args:
        training, evaluation: the findings of all files of each kind.
        settings: the trainer's settings that the data were inspected for.
    """
    clean = _cleaning(training, evaluation, settings)
    paths = (CLEANED,) if clean else settings.data.data_path
    return [*([shlex.join(clean)] if clean else []), shlex.join([*_training(training, settings, paths)])]


def _cleaning(training: Tally, evaluation: Tally, settings: TrainSettings) -> list[str]:
    """Returns the command that drops duplicates and rows of the evaluation data, or [] if it would change nothing.

    A mixture gets none, because one cleaned file would lose its shares.
    """
    duplicated, leaked = training.findings["duplicated"].count, evaluation.findings["leaked"].count
    is_mixture = any(":" in path for path in settings.data.data_path)
    if is_mixture or not (duplicated or leaked) or not isinstance(settings, SFTSettings):
        return []
    return ["python", program("scripts/convert_data.py"), *settings.data.data_path, "--out", CLEANED,
            *(["--drop_duplicates"] if duplicated else []),
            *(["--drop_in", *settings.data.eval_data_path] if leaked else [])]


def _training(training: Tally, settings: TrainSettings, paths: Sequence[str]) -> Iterator[str]:
    is_sft = isinstance(settings, SFTSettings)
    trainer = program(f"trainer/{'train_full_sft' if is_sft else 'train_pretrain'}.py")
    yield from ("python", trainer, "--data_path", *paths)
    defaults = as_typed(type(settings))
    for name, value in as_typed(settings).items():
        if name in ("data_path", "bad_rows", "micro_batch_tokens") or value == defaults[name]:
            continue
        if name in ("max_seq_len", "truncation") and _cut(training):
            continue
        yield from (f"--{name}", *map(str, value if isinstance(value, tuple) else (value,)))
    if training.counts.bad_rows:
        yield from ("--bad_rows", "skip")
    if is_sft and _cut(training):
        yield from _room(training, settings)


def _cut(training: Tally) -> bool:
    return bool(training.findings["truncated"].count or training.findings["dropped"].count)


def _room(training: Tally, settings: TrainSettings) -> Iterator[str]:
    """Yields flags that keep whole conversations, or whole turns if conversations do not fit into a batch."""
    longest = -(-max(training.lengths) // ROUND_UP) * ROUND_UP
    if settings.data.max_seq_len < longest <= RuntimeSettings().micro_batch_tokens:
        yield from ("--max_seq_len", str(longest))
    else:
        yield from ("--max_seq_len", str(settings.data.max_seq_len), "--truncation", "turns")
