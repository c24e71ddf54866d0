"""The training loop: one step, and fit."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from minimind_sft.config import TrainConfig
from minimind_sft.data.batching import StepBatch, TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.training.checkpoint import TrainState, save_resume_state
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.optim import learning_rate
from minimind_sft.training.progress import Progress


@dataclass(frozen=True)
class StepResult:
    """What a step was like: losses are means over its global batch."""

    loss: float
    aux_loss: float
    grad_norm: float
    updated: bool


class Evaluation(Protocol):
    """Mean cross-entropy over the evaluation set's supervised tokens."""

    loss: float
    perplexity: float


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; weights, norms, softmax and loss stay float32. float32 itself: no autocast."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout's random state, a pure function of (seed, step, rank): nothing of it needs saving."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + rank)


def train_step(model: nn.Module, batch: StepBatch, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
               ranks: Ranks, dtype: torch.dtype, grad_clip: float) -> StepResult:
    """One optimizer step over a global batch: the gradient of the mean loss over its supervised tokens.

    `model` is wrapped by `Ranks.wrap`, whose backward averages over ranks; hence the factor `world_size`. A gradient
    that is not finite (on any rank: averaging spreads it) changes nothing.
    """
    loss_sum = aux_sum = 0.0
    last = len(batch.micro_batches) - 1
    for index, micro_batch in enumerate(batch.micro_batches):
        micro_batch = micro_batch.to(ranks.device)
        with gradient_sync(model, index == last), autocast(ranks.device, dtype):
            losses = model(micro_batch.input_ids, micro_batch.labels, micro_batch.cu_seqlens)
            loss = losses.loss_sum / batch.supervised_tokens + losses.aux_loss_sum / batch.real_tokens
            scaler.scale(loss * ranks.world_size).backward()
        loss_sum += losses.loss_sum.detach()
        aux_sum += losses.aux_loss_sum.detach()

    scaler.unscale_(optimizer)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    updated = bool(torch.isfinite(grad_norm))
    if updated or scaler.is_enabled():  # the scaler skips by itself, and must see the overflow to lower its scale
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    loss_sum, aux_sum = ranks.sum(float(loss_sum), float(aux_sum))
    return StepResult(loss_sum / batch.supervised_tokens, aux_sum / batch.real_tokens, float(grad_norm), updated)


def gradient_sync(model: nn.Module, wanted: bool):
    """Ranks exchange gradients in the last micro-batch's backward only."""
    if wanted or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


class Stop:
    """Set by SIGINT (Ctrl-C) or SIGTERM; the loop looks after each step."""

    signum = 0

    @property
    def exit_status(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + self.signum if self.signum else 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM lets the step in hand finish and be saved; a second one ends the process at once."""
    stop, previous = Stop(), {}

    def handle(signum: int, _: object) -> None:
        if stop.signum:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        stop.signum = signum

    for signum in (signal.SIGINT, signal.SIGTERM):
        previous[signum] = signal.signal(signum, handle)
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Fit:
    """A training from `state` to its end, or to a signal.

    `evaluate` gives the validation loss, or is None where there is no evaluation set; `write_weights(state)` writes
    the weights for use. Both are handed in, because the loop need not know how either is done.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, steps: TrainingSteps, *, ranks: Ranks,
                 dtype: torch.dtype, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 state: TrainState, progress: Progress, checkpoints: Path,
                 evaluate: Callable[[], Evaluation] | None, write_weights: Callable[[TrainState], None]):
        self.config, self.model, self.steps, self.ranks, self.dtype = config, model, steps, ranks, dtype
        self.optimizer, self.scaler, self.state, self.progress = optimizer, scaler, state, progress
        self.checkpoints, self.evaluate, self.write_weights = checkpoints, evaluate, write_weights
        self.wrapped = ranks.wrap(model)
        self.total_steps = planned_steps(config, steps)
        self.eval_interval = config.eval_interval or max(self.total_steps // 10, 1)

    @property
    def keeps_best(self) -> bool:
        return bool(self.config.keep_best) and self.evaluate is not None

    def run(self) -> int:
        """Trains; the exit status: 0, or 128 + the signal that asked to stop."""
        config, state = self.config, self.state
        loader = DataLoader(self.steps, sampler=range(state.step, self.total_steps), batch_size=None,
                            num_workers=config.num_workers, pin_memory=self.ranks.device.type == "cuda")
        self.model.train()
        if state.step == 0:
            self.validate()
        with stop_on_signals() as stop:
            for batch in loader:
                self.step(batch)
                stop.signum = self.ranks.largest(stop.signum)
                done = state.step == self.total_steps
                if state.step % self.eval_interval == 0 or done:
                    self.validate()
                if stop.signum and not done:
                    self.save()
                    self.progress.say(f"stopped by {signal.Signals(stop.signum).name} after step {state.step}; "
                                      "--from_resume 1 goes on from here")
                    return stop.exit_status
                if state.step % config.save_interval == 0 and not done:
                    self.save()
        state.finished = True
        self.save()
        return 0

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
        state.eval_loss = None
        state.updates += result.updated
        state.supervised_tokens += batch.supervised_tokens
        self.count_bad(result)
        self.progress.advance(result.loss, batch.supervised_tokens)
        if state.step % config.log_interval == 0 or state.step == self.total_steps:
            aux = {"aux_loss": result.aux_loss} if self.model.config.use_moe else {}
            self.progress.log(state.step, epoch=batch.epoch, loss=result.loss, **aux, learning_rate=rate,
                              grad_norm=result.grad_norm, supervised_tokens=state.supervised_tokens)

    def count_bad(self, result: StepResult) -> None:
        """A gradient that is not finite was skipped: it is told, and too many in a row end the training."""
        state = self.state
        if result.updated:
            state.bad_steps_in_a_row = 0
            return
        state.bad_steps += 1
        state.bad_steps_in_a_row += 1
        why = "float16 overflow, the scale is lowered" if self.scaler.is_enabled() else f"loss {result.loss}"
        self.progress.say(f"step {state.step}: gradient not finite ({why}); the weights stay as they were")
        if state.bad_steps_in_a_row >= self.config.max_bad_steps:
            self.save()
            raise UserError(f"{state.bad_steps_in_a_row} steps in a row without a finite gradient "
                            f"(--max_bad_steps {self.config.max_bad_steps}); the weights are those before them. "
                            "A lower --learning_rate or --dtype float32 may help")

    def validate(self) -> None:
        """Measures the validation loss; writes the weights if they are the best of this training so far."""
        if self.evaluate is None:
            return
        state = self.state
        result = self.evaluate()
        self.model.train()
        state.eval_loss = result.loss
        best = state.best_eval_loss is None or result.loss < state.best_eval_loss
        self.progress.say(f"step {state.step:>6}/{self.total_steps}: validation loss {result.loss:.4f}, "
                          f"perplexity {result.perplexity:.2f}")
        self.progress.log(state.step, eval_loss=result.loss, perplexity=result.perplexity)
        if state.step > 0 and best:
            state.best_eval_loss = result.loss
            if self.keeps_best:
                self.write_weights(state)
        self.progress.pause()

    def save(self) -> None:
        """The resume state, and the weights unless better ones stand there already."""
        if not self.keeps_best or self.state.best_eval_loss is None:
            self.write_weights(self.state)
        if self.ranks.is_main:
            save_resume_state(self.checkpoints, self.state, self.model, self.optimizer, self.scaler,
                              self.config.keep_checkpoints)
        self.ranks.wait()
        self.progress.pause()


def planned_steps(config: TrainConfig, steps: TrainingSteps) -> int:
    """All epochs, or `--max_steps` where that is less."""
    return min(len(steps), config.max_steps or len(steps))
