"""The training loop: `train_step` makes one optimizer step, `fit` makes all of a run."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from minimind_sft.data.batching import StepBatch, TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.processes import worker_context
from minimind_sft.settings.evaluation import EvaluationSettings
from minimind_sft.settings.training import TrainSettings
from minimind_sft.terminal import counted
from minimind_sft.training.best import has_stalled, note_scores, stall_note
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.interruptions import batches_of, leave_signals_to_the_trainer, stop_on_signals
from minimind_sft.training.learner import Learner
from minimind_sft.training.parallel import full_tensor, gradient_sync, reshard
from minimind_sft.training.peak import Meter, peak_memory
from minimind_sft.training.progress import Progress
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.saving import Saver
from minimind_sft.training.schedule import Schedule
from minimind_sft.training.watch import LoggedStep

NOTHING_SUPERVISED = "no supervised token in it"
NOT_FINITE = "loss or gradient not finite"


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step; losses are means over its global batch (NaN if it has no supervised token)."""

    loss: float
    aux_loss: float
    grad_norm: float
    skipped: str | None = None
    """Why the step made no update; None if it made one."""


class Evaluation(Protocol):
    """The scores of the weights at one step; equal on all ranks."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the evaluation set's supervised tokens, in nats."""

    @property
    def exact_match(self) -> float | None:
        """The share of exact answers; None if no answer was compared."""

    def lines(self) -> list[str]:
        """Returns the scores in a few words, and what else the terminal should show."""

    def metrics(self) -> dict[str, Any]:
        """Returns the values of the evaluation's line in the metrics file."""


def train_step(learner: Learner, batch: StepBatch, grad_clip: float) -> StepResult:
    """Makes one optimizer step: follows the gradient of the mean loss over the supervised tokens of a global batch.

    DDP and FSDP average gradients over the ranks; the factor `world_size` makes that a sum. If a loss or gradient is
    not finite on any rank, all ranks see it in the summed numbers and leave the weights as they are.
    """
    model, optimizer, scaler, ranks = learner.wrapped, learner.optimizer, learner.scaler, learner.ranks
    if batch.supervised_tokens == 0:
        return StepResult(math.nan, math.nan, math.nan, NOTHING_SUPERVISED)
    loss_sum = aux_sum = torch.zeros((), device=ranks.device)
    last = len(batch.micro_batches) - 1
    for index, micro_batch in enumerate(batch.micro_batches):
        micro_batch = micro_batch.to(ranks.device)
        with gradient_sync(model, index == last):
            with torch.autocast(ranks.device.type, learner.dtype, enabled=learner.dtype != torch.float32):
                losses = model(micro_batch.input_ids, micro_batch.labels, micro_batch.cu_seqlens,
                               micro_batch.supervised_positions)
            loss = losses.loss_sum / batch.supervised_tokens + losses.aux_loss_sum / batch.real_tokens
            scaler.scale(loss * ranks.world_size).backward()
        loss_sum = loss_sum + losses.loss_sum.detach()
        aux_sum = aux_sum + losses.aux_loss_sum.detach()

    scaler.unscale_(optimizer)
    grad_norm = full_tensor(nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf))
    # The only place in a step that waits for the device, so that a GPU always has work queued.
    norm, loss_total, aux_total = torch.stack((grad_norm, loss_sum, aux_sum)).tolist()
    loss_total, aux_total = ranks.sum(loss_total, aux_total)
    is_finite = math.isfinite(norm) and math.isfinite(loss_total) and math.isfinite(aux_total)
    if is_finite:
        scaler.step(optimizer)
    scaler.update()  # lowers the scale after an overflow
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_total / batch.supervised_tokens, aux_total / batch.real_tokens, norm,
                      None if is_finite else NOT_FINITE)


def fit(learner: Learner, steps: TrainingSteps, state: TrainState, settings: TrainSettings, *, progress: Progress,
        saver: Saver, evaluate: Callable[[], Evaluation] | None) -> int:
    """Trains from `state` to the last step, or until evaluations bring no gain or a signal asks it to stop.

    Args:
        evaluate: evaluates the weights as they are; None if there is no evaluation set.

    Returns:
        The exit status: 0, or 128 + the signal.

    Raises:
        UserError: after `--max_bad_steps` steps in a row whose loss or gradient is not finite.
    """
    ranks, total_steps = learner.ranks, len(steps)
    optimizer, evaluation = settings.optimizer, settings.evaluation
    eval_interval = evaluation.eval_interval or max(total_steps // 10, 1)

    def save(wait: bool = True) -> None:
        progress.sync()
        with progress.doing("save"):
            saver.save(state, learner, wait)

    schedule = Schedule.of(vars(optimizer), total_steps)
    keep_freed_memory()
    meter = Meter(learner)
    learner.model.train()
    signals = stop_on_signals(passed_on=ranks.world_size > 1, notice=ranks.is_main)
    loader = load_steps(steps, range(state.step, total_steps), settings.runtime.num_workers, ranks.device)
    with signals as stop, batches_of(loader) as batches:
        if state.step == 0 and evaluate:
            validate(learner, state, evaluate, evaluation, progress, saver)
        for batch in progress.waiting_for(batches):
            rate = schedule.rate(state.updates)
            result = next_step(learner, state, batch, rate, settings)
            is_last = state.step == total_steps
            progress.advance(state.step, result.loss, rate, meter.work(batch))
            if is_last or is_logged(state, batch, result, settings.logging.log_interval, progress):
                report_step(learner, state, batch, result, rate, progress)
            if state.bad_steps_in_a_row >= optimizer.max_bad_steps:
                state.bad_steps_in_a_row = 0  # a resumed run, say with a lower learning rate, starts counting anew
                give_up(optimizer.max_bad_steps, save)

            # All ranks act at the same step: the main rank's clock decides, and a signal to any of them stops all.
            signum, is_due, is_writing = ranks.largest(stop.signum, ranks.is_main and saver.is_due(state.step),
                                                       saver.is_writing)
            if not is_writing:
                saver.advance()
            if evaluate and (is_last or state.step % eval_interval == 0):
                validate(learner, state, evaluate, evaluation, progress, saver)
                if not is_last and has_stalled(state, evaluation):
                    progress.say(stall_note(state, evaluation))
                    break
            if is_last:
                break
            if signum:
                save()
                progress.end("interrupted")
                progress.say(f"stopped by {signal.Signals(signum).name} after step {state.step}; "
                             "--from_resume 1 continues from here")
                return 128 + signum  # as a shell reports a program that a signal ended
            if is_due:
                save(wait=not settings.saving.async_save)
        state.finished = True
        save()
        progress.end("finished" if state.step == total_steps else "stopped early")
    return 0


def load_steps(steps: TrainingSteps, numbers: range, num_workers: int, device: torch.device) -> DataLoader:
    """Loads this rank's batches of the given steps."""
    return DataLoader(steps, sampler=numbers, batch_size=None, num_workers=num_workers,
                      worker_init_fn=leave_signals_to_the_trainer,
                      multiprocessing_context=worker_context() if num_workers else None,
                      pin_memory=device.type == "cuda")


def next_step(learner: Learner, state: TrainState, batch: StepBatch, rate: float,
              settings: TrainSettings) -> StepResult:
    """Makes the run's next step, at the learning rate `rate`, and counts it in the state."""
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    seed_step(settings.data.seed, batch.step, learner.ranks.rank)
    result = train_step(learner, batch, settings.optimizer.grad_clip)
    count_step(state, batch, result)
    return result


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes dropout's random state a pure function of (seed, step, rank), so that none of it needs saving."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + rank) % 2**63)


def count_step(state: TrainState, batch: StepBatch, result: StepResult) -> None:
    """Counts a finished step in the state."""
    state.step += 1
    state.supervised_tokens += batch.supervised_tokens
    if result.skipped is None:
        state.updates += 1
        state.bad_steps_in_a_row = 0
        state.eval_loss = None  # measured on the previous weights
    elif result.skipped == NOT_FINITE:
        state.bad_steps += 1
        state.bad_steps_in_a_row += 1


def is_logged(state: TrainState, batch: StepBatch, result: StepResult, log_interval: int, progress: Progress) -> bool:
    """Whether the step that was just counted gets a line in the metrics file; the last step of a run always does."""
    step = LoggedStep(state.step, result.loss, result.grad_norm, batch.supervised_tokens)
    return state.step % log_interval == 0 or bool(result.skipped) or progress.stands_out(step)


def give_up(max_bad_steps: int, save: Callable[[], None]) -> NoReturn:
    """Saves the weights from before the bad steps, and ends the run.

    Raises:
        UserError: always.
    """
    kept = "the weights are those from before"
    try:
        save()
    except UserError as error:  # they may have diverged already, beyond what --save_dtype can hold
        kept = f"the weights from before cannot be saved ({error})"
    raise UserError(f"{counted(max_bad_steps, 'step')} in a row without a finite loss and gradient (--max_bad_steps "
                    f"{max_bad_steps}); {kept}. A lower --learning_rate or --dtype float32 may help")


def report_step(learner: Learner, state: TrainState, batch: StepBatch, result: StepResult, rate: float,
                progress: Progress) -> None:
    """Writes a step to the metrics file, and prints a line if it made no update."""
    step = state.step
    aux = {"aux_loss": result.aux_loss} if learner.model.config.use_moe else {}
    skipped = {"skipped": result.skipped} if result.skipped else {}
    progress.log(step, epoch=batch.epoch, loss=result.loss, **aux, learning_rate=rate, grad_norm=result.grad_norm,
                 supervised_tokens=state.supervised_tokens, step_supervised_tokens=batch.supervised_tokens,
                 **progress.performance(),
                 peak_memory_mib=peak_memory(learner.ranks.device), **skipped)
    if result.skipped == NOT_FINITE:
        hint = "; in float16 this may be an overflow, and the scale is lowered" if learner.scaler.is_enabled() else ""
        progress.say(f"step {step}: {result.skipped} (loss {result.loss}, gradient norm {result.grad_norm}{hint}); "
                     "the weights are unchanged")
    elif result.skipped:
        progress.say(f"step {step}: {result.skipped}; the weights are unchanged")


def validate(learner: Learner, state: TrainState, evaluate: Callable[[], Evaluation], settings: EvaluationSettings,
             progress: Progress, saver: Saver) -> None:
    """Evaluates the weights, and has them written if they are the best of this run so far."""
    with progress.doing("eval"), undisturbed(learner):
        result = evaluate()
    scores, *more = result.lines()
    progress.say(f"{progress.label(state.step)} {scores}")
    for line in more:
        progress.say(f"{'':<12}{line}")
    progress.log(state.step, **result.metrics())
    if note_scores(state, result, settings):
        with progress.doing("save"):
            saver.found_best(state)


@contextmanager
def undisturbed(learner: Learner) -> Iterator[None]:
    """Restores the random state, the modules' modes and the sharding afterwards, so that training goes on as before."""
    device = learner.ranks.device
    modes = [(module, module.training) for module in learner.model.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    reshard(learner.model)
    for module, mode in modes:
        module.training = mode
