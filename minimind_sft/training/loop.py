"""The training loop: one step, and fit."""

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from minimind_sft.config import TrainConfig
from minimind_sft.data.batching import StepBatch, TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.processes import worker_context
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.interruptions import (
    SaveClock,
    batches_of,
    leave_signals_to_the_trainer,
    stop_on_signals,
)
from minimind_sft.training.optim import learning_rate, schedule_length
from minimind_sft.training.parallel import gradient_sync, reshard, whole
from minimind_sft.training.progress import Progress, step_label
from minimind_sft.training.resume_state import TrainState

NOTHING_SUPERVISED = "no supervised token in it"
NOT_FINITE = "loss or gradient not finite"


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step; losses are means over its global batch (NaN where it has no supervised token)."""

    loss: float
    aux_loss: float
    grad_norm: float
    skipped: str | None = None
    """Why the step made no update; None if it made one."""


class Evaluation(Protocol):
    """Mean cross-entropy over the evaluation set's supervised tokens."""

    loss: float
    perplexity: float


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; weights, norms, softmax and loss stay float32. float32 itself: no autocast."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout's random state, a pure function of (seed, step, rank): nothing of it needs saving."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + rank) % 2**63)


def train_step(model: nn.Module, batch: StepBatch, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
               ranks: Ranks, dtype: torch.dtype, grad_clip: float) -> StepResult:
    """One optimizer step over a global batch: the gradient of the mean loss over its supervised tokens.

    `model` is what `parallelize` gave, whose backward averages over ranks; hence the factor `world_size`. A loss or
    gradient that is not finite, on whichever rank, changes nothing on any: all decide by the same summed numbers.
    """
    if batch.supervised_tokens == 0:
        return StepResult(math.nan, math.nan, math.nan, NOTHING_SUPERVISED)
    loss_sum = aux_sum = 0.0
    last = len(batch.micro_batches) - 1
    for index, micro_batch in enumerate(batch.micro_batches):
        micro_batch = micro_batch.to(ranks.device)
        with gradient_sync(model, index == last):
            with autocast(ranks.device, dtype):
                losses = model(micro_batch.input_ids, micro_batch.labels, micro_batch.cu_seqlens,
                               micro_batch.supervised_positions)
            loss = losses.loss_sum / batch.supervised_tokens + losses.aux_loss_sum / batch.real_tokens
            scaler.scale(loss * ranks.world_size).backward()
        loss_sum += losses.loss_sum.detach()
        aux_sum += losses.aux_loss_sum.detach()

    scaler.unscale_(optimizer)
    grad_norm = whole(nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf))
    # The only place of a step that waits for the device: until here a GPU has always been given more to do.
    grad_norm, loss_sum, aux_sum = torch.stack((grad_norm, loss_sum, aux_sum)).tolist()
    loss_sum, aux_sum = ranks.sum(loss_sum, aux_sum)
    finite = math.isfinite(grad_norm) and math.isfinite(loss_sum) and math.isfinite(aux_sum)
    if finite:
        scaler.step(optimizer)
    scaler.update()  # after an overflow this lowers the scale
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_sum / batch.supervised_tokens, aux_sum / batch.real_tokens, grad_norm,
                      None if finite else NOT_FINITE)


class Fit:
    """Runs from `state` to the end, or to a signal.

    `wrapped` is the model as `parallelize` gave it. `evaluate` gives the validation loss, or is None where there is
    no evaluation set; `write_weights(state)` writes the weights for use. Both are handed in, because the loop need
    not know how either is done.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, wrapped: nn.Module, steps: TrainingSteps, *,
                 ranks: Ranks, dtype: torch.dtype, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 state: TrainState, progress: Progress, checkpoints: Checkpoints,
                 evaluate: Callable[[], Evaluation] | None, write_weights: Callable[[TrainState], None]):
        self.config, self.model, self.wrapped, self.steps = config, model, wrapped, steps
        self.ranks, self.dtype = ranks, dtype
        self.optimizer, self.scaler, self.state, self.progress = optimizer, scaler, state, progress
        self.checkpoints, self.evaluate, self.write_weights = checkpoints, evaluate, write_weights
        self.total_steps = planned_steps(config, steps)
        self.eval_interval = config.eval_interval or max(self.total_steps // 10, 1)
        self.clock = SaveClock(config.save_interval)

    @property
    def keeps_best(self) -> bool:
        return bool(self.config.keep_best) and self.evaluate is not None

    def run(self) -> int:
        """Trains; the exit status: 0, or 128 + the signal that asked to stop."""
        state = self.state
        self.model.train()
        signals = stop_on_signals(passed_on=self.ranks.world_size > 1, notice=self.ranks.is_main)
        with signals as stop, batches_of(self.loader()) as batches:
            if state.step == 0:
                self.validate()
            for batch in batches:
                self.step(batch)
                # The main rank's clock decides for all, a signal to one rank stops all, and with an unfinished resume
                # state all go on at the same step.
                signum, due, writing = self.ranks.largest(
                    stop.signum, self.ranks.is_main and self.clock.due(state.step), self.checkpoints.is_writing)
                if not writing and self.checkpoints.advance():
                    self.clock.end(self.checkpoints.thread_seconds)
                done = state.step == self.total_steps
                if state.step % self.eval_interval == 0 or done:
                    self.validate()
                if done:
                    break
                if signum:
                    self.save()
                    self.progress.say(f"stopped by {signal.Signals(signum).name} after step {state.step}; "
                                      "--from_resume 1 goes on from here")
                    return 128 + signum  # what a shell expects of a program that a signal ended
                if due:
                    self.save(wait=not self.config.async_save)
            state.finished = True
            self.save()
        return 0

    def loader(self) -> DataLoader:
        """Loads this rank's batches of the steps that are left."""
        return DataLoader(self.steps, sampler=range(self.state.step, self.total_steps), batch_size=None,
                          num_workers=self.config.num_workers, worker_init_fn=leave_signals_to_the_trainer,
                          multiprocessing_context=worker_context() if self.config.num_workers else None,
                          pin_memory=self.ranks.device.type == "cuda")

    def step(self, batch: StepBatch) -> None:
        config, state = self.config, self.state
        rate = learning_rate(state.updates, self.total_steps, config.learning_rate, config.min_lr_ratio,
                             config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_step(config.seed, batch.step, self.ranks.rank)
        result = train_step(self.wrapped, batch, self.optimizer, self.scaler, self.ranks, self.dtype,
                            config.grad_clip)
        state.step += 1
        if result.skipped is None:
            state.eval_loss = None
            state.updates += 1
        state.supervised_tokens += batch.supervised_tokens
        self.progress.advance(state.step, result.loss, rate, batch.supervised_tokens)
        if state.step % config.log_interval == 0 or state.step == self.total_steps or result.skipped:
            aux = {"aux_loss": result.aux_loss} if self.model.config.use_moe else {}
            skipped = {"skipped": result.skipped} if result.skipped else {}
            self.progress.log(state.step, epoch=batch.epoch, loss=result.loss, **aux, learning_rate=rate,
                              grad_norm=result.grad_norm, supervised_tokens=state.supervised_tokens, **skipped)
        self.count_bad(result)

    def count_bad(self, result: StepResult) -> None:
        """Reports a step that made no update; too many in a row that are not finite end the run."""
        state = self.state
        if result.skipped is None:
            state.bad_steps_in_a_row = 0
            return
        if result.skipped != NOT_FINITE:
            self.progress.say(f"step {state.step}: {result.skipped}; nothing changed")
            return
        state.bad_steps += 1
        state.bad_steps_in_a_row += 1
        why = f"loss {result.loss}, gradient norm {result.grad_norm}"
        if self.scaler.is_enabled():
            why += "; in float16 an overflow does that, and the scale is lowered"
        self.progress.say(f"step {state.step}: {result.skipped} ({why}); the weights stay as they were")
        if state.bad_steps_in_a_row >= self.config.max_bad_steps:
            state.bad_steps_in_a_row = 0  # whoever goes on, with a lower learning rate, may have as many again
            self.save()
            raise UserError(f"{self.config.max_bad_steps} steps in a row without a finite loss and gradient "
                            f"(--max_bad_steps {self.config.max_bad_steps}); the weights are those before them. "
                            "A lower --learning_rate or --dtype float32 may help")

    def validate(self) -> None:
        """Measures the validation loss; writes the weights if they are the best of this run so far."""
        if self.evaluate is None:
            return
        state = self.state
        result = self.evaluate()
        reshard(self.model)
        self.model.train()
        state.eval_loss = result.loss if math.isfinite(result.loss) else None
        best = state.eval_loss is not None and (
            state.best_eval_loss is None or state.eval_loss < state.best_eval_loss)
        self.progress.say(f"{step_label(state.step, self.total_steps)} validation loss {result.loss:.4f}, "
                          f"perplexity {result.perplexity:.2f}")
        self.progress.log(state.step, eval_loss=result.loss, perplexity=result.perplexity)
        if state.step > 0 and best:
            state.best_eval_loss = result.loss
            if self.keeps_best:
                self.write_weights(state)
        self.progress.pause()

    def save(self, wait: bool = True) -> None:
        """Writes the weights, unless better ones are there already, then the resume state that counts on them.

        Without `wait` training goes on while the resume state is written.
        """
        with self.clock.saving():
            if not self.keeps_best:
                self.state.best_eval_loss = None  # these weights may replace those that had it
            if self.state.best_eval_loss is None:
                self.write_weights(self.state)
            self.progress.sync()
            self.checkpoints.save(self.state, self.model, self.optimizer, self.scaler, wait)
        if wait:
            self.clock.end()
        self.progress.pause()


def planned_steps(config: TrainConfig, steps: TrainingSteps) -> int:
    """Counts the steps of all epochs, or of `--max_steps` where that is less."""
    return schedule_length(config.epochs, config.max_steps, steps.steps_per_epoch)
