"""Says at the start of a run how long it will be, and which settings and data are allowed but probably not meant."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minimind_sft.data.batching import TrainingSteps, schedule_length
from minimind_sft.data.dataset import Mixture, Samples
from minimind_sft.data.overlap import count_shared
from minimind_sft.data.prepared_folder import PreparedDataset
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.settings.data import DataSettings, SFTDataSettings
from minimind_sft.settings.evaluation import EvaluationSettings
from minimind_sft.settings.optimizer import OptimizerSettings
from minimind_sft.settings.training import TrainSettings
from minimind_sft.terminal import counted
from minimind_sft.training.experience import Experience
from minimind_sft.training.identity import IMPLIED
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.schedule import Schedule
from minimind_sft.training.watch import RunWarning

LARGE_WARMUP = 0.3
FEW_EVALUATION_SAMPLES = 50
LARGE_RATE_CHANGE = 0.05
LOW_SHARE, HIGH_SHARE = 0.01, 0.95
"""Of the tokens of conversations so many are usually supervised: in the bundled ones 20%."""
FEW_SHARED = 0.05
LARGE_NEW_SHARE = 0.1
"""To the bundled model, below 1% of the tokens and none of the lengths of the bundled conversations are new; of other
instructions, web text and tool calls 33 to 52% of the tokens are, of Russian 73%."""


def opening_lines(settings: TrainSettings, before: Mapping[str, Any], state: TrainState, steps: TrainingSteps,
                  eval_set: Samples | None) -> list[str]:
    """Describes the length of the run, and notes settings that are probably not meant.

    Args:
        before: the settings of the run so far (`identity.run_settings`).
        state: where it stands, with the settings that now apply.
    """
    return [describe_length(settings.optimizer, steps),
            *warmup_advice(settings.optimizer, len(steps)),
            *evaluation_advice(settings, None if eval_set is None else len(eval_set)),
            *rate_advice(before, state.settings, state.updates, steps.steps_per_epoch)]


def describe_length(optimizer: OptimizerSettings, steps: TrainingSteps) -> str:
    """Gives steps and epochs, and which of `--max_steps` and `--epochs` ends the run."""
    max_steps, all_epochs = optimizer.max_steps, optimizer.epochs * steps.steps_per_epoch
    total = len(steps)
    length = counted(optimizer.epochs, "epoch")
    if total < all_epochs:
        epochs = total / steps.steps_per_epoch
        number = f"{epochs:.{'0f' if epochs >= 10 else '2g'}}"
        length = (f"{number} epoch{'s' * (number != '1')}: --max_steps {max_steps} ends the run before "
                  f"--epochs {optimizer.epochs}, which would be {counted(all_epochs, 'step')}")
    elif max_steps > all_epochs:
        length += f", which {'ends' if optimizer.epochs == 1 else 'end'} the run before --max_steps {max_steps}"
    schedule = "" if optimizer.schedule == "cosine" else f" ({optimizer.schedule})"
    return (f"training    {counted(total, 'step')} of {counted(steps.samples_per_step, 'sample')}, "
            f"learning rate {optimizer.learning_rate:g}{schedule}; {length}")


def warmup_advice(optimizer: OptimizerSettings, total_steps: int) -> list[str]:
    """Notes a warmup that takes a large part of the run."""
    warmup = optimizer.warmup_steps
    if not LARGE_WARMUP * total_steps < warmup < total_steps:  # a longer one is a warning, see below
        return []
    share = warmup / total_steps
    return [f"note        --warmup_steps {warmup} is {share:.0%} of the run's {counted(total_steps, 'step')}"]


def opening_warnings(settings: TrainSettings, total_steps: int, train_set: Samples,
                     eval_set: Samples | None) -> list[RunWarning]:
    """Returns the warnings that need no training: a run that cannot go as it is probably meant."""
    return [*_long_warmup(settings.optimizer, total_steps), *_supervised_share(settings, train_set),
            *(_shared_rows(settings.data, train_set, eval_set) if eval_set is not None else ())]


def _long_warmup(optimizer: OptimizerSettings, total_steps: int) -> Iterator[RunWarning]:
    warmup = optimizer.warmup_steps
    if total_steps <= warmup:
        highest = Schedule.of(vars(optimizer), total_steps).rate(total_steps - 1)
        yield RunWarning("long_warmup", (
            f"--warmup_steps {warmup} is not less than the run's {counted(total_steps, 'step')}: the learning rate "
            f"rises to {highest:.3g} and never reaches --learning_rate {optimizer.learning_rate:g}"))


def _supervised_share(settings: TrainSettings, samples: Samples) -> Iterator[RunWarning]:
    """Some words of conversations, the user's and the template's, are not learned unless that is asked for."""
    parts = samples.sources if isinstance(samples, Mixture) else [samples]
    counts = [part.counts for part in parts if isinstance(part, PreparedDataset)]
    tokens, supervised = sum(one.tokens for one in counts), sum(one.supervised for one in counts)
    if not (isinstance(settings.data, SFTDataSettings) and tokens):
        return
    share = supervised / tokens
    if share < LOW_SHARE:
        yield RunWarning("supervised_share", (
            f"only {share:.2%} of the training tokens are supervised, so a step reads {1 / share:,.0f} tokens for each "
            "one it learns; scripts/inspect_data.py shows which"))
    elif share > HIGH_SHARE and not settings.data.train_on_prompt:
        yield RunWarning("supervised_share", (
            f"{share:.1%} of the training tokens are supervised, so nearly nothing is only read; "
            "scripts/inspect_data.py shows whether questions are learned as answers"))


def _shared_rows(data: DataSettings, train_set: Samples, eval_set: Samples) -> Iterator[RunWarning]:
    """Some equal rows are usual if the evaluation samples are held out of the training rows, not in their own file."""
    shared, count = count_shared(train_set, eval_set), len(eval_set)
    if shared > (0 if data.eval_data_path else FEW_SHARED * count):
        which = "all" if shared == count else f"{shared:,} of the {count:,}"
        remedy = "--drop_in FILES" if data.eval_data_path else "--drop_duplicates"
        hint = f"; scripts/convert_data.py {remedy} drops them" * isinstance(data, SFTDataSettings)
        yield RunWarning("leaked_rows", (
            f"the run also trains on {which} evaluation samples, so the validation loss looks better than it would on "
            f"new ones{hint}"))


def evaluation_advice(settings: TrainSettings, samples: int | None) -> list[str]:
    """Notes "best" weights chosen on a handful of samples, and flags without effect; `samples` is None without an
    evaluation set."""
    if samples is None:
        return _unused_without_evaluation(settings.evaluation)
    if not settings.saving.keep_best:
        return []
    answers = min(samples, settings.evaluation.eval_samples)
    if settings.evaluation.best_by == "exact_match" and answers < FEW_EVALUATION_SAMPLES:
        return [f"note        the best weights are chosen by {counted(answers, 'answer')}, so chance plays a "
                "large part; more --eval_samples make the choice more reliable"]
    if samples >= FEW_EVALUATION_SAMPLES:
        return []
    more = "more rows in --eval_data_path make" if settings.data.eval_data_path else (
        "a larger --eval_share or an --eval_data_path makes")
    return [f"note        the best weights are chosen on {counted(samples, 'sample')}, so chance plays a "
            f"large part; {more} the choice more reliable, --keep_best 0 keeps the last weights"]


def _unused_without_evaluation(evaluation: EvaluationSettings) -> list[str]:
    given = [f"--best_by {evaluation.best_by}"] * (evaluation.best_by != "eval_loss")
    given += [f"--early_stop_patience {evaluation.early_stop_patience}"] * (evaluation.early_stop_patience > 0)
    return [f"note        no effect without evaluation samples: {', '.join(given)}"] if given else []


def rate_advice(before: Mapping[str, Any], now: Mapping[str, Any], update: int, steps_per_epoch: int) -> list[str]:
    """Notes a learning rate that jumps where a run is resumed.

    Args:
        before, now: the settings of the run so far and those that now apply (`identity.run_settings`).
        update: the next one.
    """
    was, is_now = (Schedule.of(one, schedule_length(one["epochs"], one["max_steps"], steps_per_epoch)).rate(update)
                   for one in ({**IMPLIED, **before}, {**IMPLIED, **now}))
    if abs(is_now - was) <= LARGE_RATE_CHANGE * was:
        return []
    return [f"note        the learning rate jumps: {was:.3g} with the previous settings, {is_now:.3g} with these"]


def data_advice(known: Experience | None, samples: Samples, tokenizer: Tokenizer, weights: str) -> list[str]:
    """Notes how much of `samples` is new to weights with some experience, if that is much.

    Control tokens do not count: a model that has only read text learns them in every fine-tuning.
    """
    if known is None or known.longest == 0:
        return []
    counts = samples.label_counts(len(known.seen))
    control_ids = [tokenizer.token_to_id(token) for token in tokenizer.control_tokens()]
    counts[[index for index in control_ids if index is not None]] = 0
    new = counts[~known.seen].sum() / max(counts.sum(), 1)
    longer = np.mean(samples.document_lengths() > known.longest)
    facts = []
    if new > LARGE_NEW_SHARE:
        facts.append(f"{new:.0%} of the tokens to learn never occurred in what {weights} was trained on")
    if longer > LARGE_NEW_SHARE:
        facts.append(f"{longer:.0%} of the samples are longer than any that {weights} was trained on "
                     f"({known.longest} tokens)")
    if not facts:
        return []
    return [f"note        {'; '.join(facts)}: the model must learn that from your rows alone, and docs/real_run.md "
            "shows what 10,000 rows give"]
