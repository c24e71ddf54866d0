"""Commands that fix what the inspector found, ready to paste."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields

from minimind_sft.config import SFTConfig, TrainConfig
from minimind_sft.inspection.tally import Tally
from minimind_sft.paths import program

CLEANED = "clean.jsonl"
ROUND_UP = 64
"""A suggested length is a multiple of this."""


def commands(training: Tally, evaluation: Tally, config: TrainConfig) -> list[str]:
    """Returns the commands to run next: one that cleans the data, where that helps, then one that trains on them.

    Args:
        training, evaluation: the findings of all files of each kind.
        config: the trainer's settings that the data were inspected for.
    """
    clean = _cleaning(training, evaluation, config)
    paths = (CLEANED,) if clean else config.data_path
    return [*([shlex.join(clean)] if clean else []), shlex.join([*_training(training, config, paths)])]


def _cleaning(training: Tally, evaluation: Tally, config: TrainConfig) -> list[str]:
    """Returns the command that leaves out rows that are there twice, or in the evaluation data; [] where there is none.

    Shares of a mixture would be lost in one cleaned file.
    """
    duplicated, leaked = training.findings["duplicated"].count, evaluation.findings["leaked"].count
    is_mixture = any(":" in path for path in config.data_path)
    if is_mixture or not (duplicated or leaked) or not isinstance(config, SFTConfig):
        return []
    return ["python", program("scripts/convert_data.py"), *config.data_path, "--out", CLEANED,
            *(["--drop_duplicates"] if duplicated else []),
            *(["--drop_in", *config.eval_data_path] if leaked else [])]


def _training(training: Tally, config: TrainConfig, paths: Sequence[str]) -> Iterator[str]:
    is_sft = isinstance(config, SFTConfig)
    trainer = program(f"trainer/{'train_full_sft' if is_sft else 'train_pretrain'}.py")
    yield from ("python", trainer, "--data_path", *paths)
    defaults = type(config)()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in ("data_path", "bad_rows", "micro_batch_tokens") or value == getattr(defaults, field.name):
            continue
        if field.name in ("max_seq_len", "truncation") and _cut(training):
            continue
        yield from (f"--{field.name}", *map(str, value if isinstance(value, tuple) else (value,)))
    if training.counts.bad_rows:
        yield from ("--bad_rows", "skip")
    if is_sft and _cut(training):
        yield from _room(training, config)


def _cut(training: Tally) -> bool:
    return bool(training.findings["truncated"].count or training.findings["dropped"].count)


def _room(training: Tally, config: TrainConfig) -> Iterator[str]:
    """Yields the flags with which no conversation is cut, or none of its turns where they do not fit into a batch."""
    longest = -(-max(training.lengths) // ROUND_UP) * ROUND_UP
    if config.max_seq_len < longest <= TrainConfig.micro_batch_tokens:
        yield from ("--max_seq_len", str(longest))
    else:
        yield from ("--max_seq_len", str(config.max_seq_len), "--truncation", "turns")
