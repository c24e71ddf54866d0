"""Loads the training and evaluation sets that a run's settings name."""

from collections.abc import Callable, Sequence
from pathlib import Path

from minimind_sft.data.dataset import ExampleDataset, Mixture, Samples, hold_out
from minimind_sft.data.prepared import NAMED_AT_ONCE, prepare
from minimind_sft.data.prepared_folder import PreparedDataset
from minimind_sft.data.samples import RowEncoder
from minimind_sft.data.sources import Source, find_eval_sources, find_sources
from minimind_sft.paths import shown
from minimind_sft.settings.data import DataSettings


def load_datasets(data: DataSettings, encoder: RowEncoder, folder: Path, say: Callable[[str], None],
                  show_progress: bool = True) -> tuple[Samples, Samples | None]:
    """Loads the training set and the evaluation set, and says what is in them.

    The evaluation set is `--eval_data_path`, or `--eval_share` of the training samples, held out; None without either.

    Args:
        folder: holds prepared data; rows that are not in it are prepared now.

    Raises:
        UserError: for files, rows and shares that cannot be used.
    """
    sources = find_sources(data.data_path, "--data_path")
    eval_sources = find_eval_sources(data.eval_data_path)
    prepared = [prepare(source.files, encoder, folder, data.bad_rows, show_progress, say)
                for source in (*sources, *eval_sources)]
    training, evaluation = prepared[:len(sources)], prepared[len(sources):]
    if evaluation:
        train_set, evaluated = _mix(training, sources), evaluation[0]  # without shares all files are one source
        _describe("data", sources, training, train_set, say)
        _describe("evaluation", eval_sources, evaluation, None, say)
        return train_set, evaluated
    parts = [hold_out(dataset, data.eval_share, data.seed) for dataset in training]
    train_set = _mix([train for train, _ in parts], sources)
    _describe("data", sources, training, train_set, say)
    held_out = [held for _, held in parts if held is not None]
    if not held_out:
        if data.eval_share:
            say("evaluation  none: where there is only one sample, --eval_share holds none out")
        return train_set, None
    eval_set: Samples = held_out[0] if len(held_out) == 1 else Mixture(held_out)
    count = "1 sample is" if len(eval_set) == 1 else f"{len(eval_set):,} samples are"
    say(f"evaluation  {count} held out (--eval_share {data.eval_share:g})")
    return train_set, eval_set


def _mix(datasets: Sequence[ExampleDataset], sources: Sequence[Source]) -> Samples:
    """Mixes the datasets in the shares of their sources; without shares there is only one."""
    shares = [source.share for source in sources if source.share is not None]
    return Mixture(datasets, shares) if shares else datasets[0]


def _describe(label: str, sources: Sequence[Source], datasets: Sequence[PreparedDataset], mixed: Samples | None,
              say: Callable[[str], None]) -> None:
    """Says for each source how many rows it has, how much of an epoch it is, and which bad rows were skipped."""
    for number, (source, dataset) in enumerate(zip(sources, datasets, strict=True)):
        drawn = (f" [{mixed.draws[number]:,} of the {len(mixed):,} samples of an epoch]"
                 if isinstance(mixed, Mixture) and mixed.draws else "")
        say(f"{label:<10}  {shown(source.name)}: {dataset.counts.summary()}{drawn}")
        for line in dataset.counts.bad[:NAMED_AT_ONCE]:
            say(f"skipped     {line}")
        if dataset.counts.bad_rows > NAMED_AT_ONCE:
            say("skipped     ... (scripts/inspect_data.py lists all)")
