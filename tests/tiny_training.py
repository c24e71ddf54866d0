"""A whole run of the tiny model, with or without an interruption, for tests of the loop."""

import os
import signal
import threading
from dataclasses import replace
from unittest.mock import patch

import torch
from programs import PATIENCE
from tiny import TINY, random_documents

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.evaluation.during_training import Evaluation
from minimind_sft.evaluation.losses import ValidationLoss
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.freezing import freeze
from minimind_sft.training.identity import run_settings
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import fit, train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.progress import Progress
from minimind_sft.training.resume_state import TrainState, load_tensors
from minimind_sft.training.saving import Saver
from minimind_sft.training.watch import Watcher

CPU = Ranks(0, 1, torch.device("cpu"))
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


class Training:
    """A complete `fit` over tiny data in a folder.

    `data` are the samples, by default thirty random documents; `step` replaces `train_step`; `weights` maps the steps
    at which weights were written to their validation loss.
    """

    def __init__(self, folder, resume: bool = False, evaluate=None, data=None, **changes):
        folder.mkdir(exist_ok=True)
        self.settings = settings = changed(
            SFTSettings(), batch_size=4, micro_batch_tokens=768,
            **{"epochs": 2, "learning_rate": 1e-2, "dropout": 0.2, "eval_interval": 4, "save_interval": 3,
               "log_interval": 1, **changes})
        torch.manual_seed(0)
        self.model = MiniMindForCausalLM(replace(TINY, dropout=settings.model.dropout))
        freeze(self.model, settings.model.freeze)
        self.optimizer = build_optimizer(self.model, settings.optimizer.learning_rate, settings.optimizer.weight_decay)
        self.learner = Learner(self.model, self.model, self.optimizer, torch.amp.GradScaler("cpu", enabled=False),
                               CPU, torch.float32)
        self.state = TrainState(samples_per_step=4, settings=run_settings(settings, torch.float32))
        self.checkpoints = Checkpoints(folder / "resume", keep=2, ranks=CPU, fresh=not resume)
        if resume:
            path, self.state, _ = self.checkpoints.newest()
            load_tensors(path, self.model, self.optimizer, self.learner.scaler, CPU)
            self.state.settings = run_settings(settings, torch.float32)
        self.steps = TrainingSteps(data or random_documents(30), BatchLayout(64), epochs=settings.optimizer.epochs,
                                   samples_per_step=4, seed=1, max_steps=settings.optimizer.max_steps)
        self.progress = Progress(folder / "metrics.jsonl", total_steps=len(self.steps), step=self.state.step,
                                 is_main=True, watcher=Watcher(settings.optimizer, len(self.steps)))
        self.evaluate, self.step, self.weights = evaluate, train_step, {}

    def run(self, interrupt_at: int | None = None) -> int:
        def step(*arguments):
            result = self.step(*arguments)
            if self.state.step + 1 == interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            return result

        saver = Saver(self.checkpoints, lambda state: self.weights.update({state.step: state.eval_loss}),
                      interval=self.settings.saving.save_interval,
                      keeps_best=self.settings.saving.keep_best and self.evaluate is not None)
        with self.progress, patch("minimind_sft.training.loop.train_step", step):
            status = fit(self.learner, self.steps, self.state, self.settings, progress=self.progress, saver=saver,
                         evaluate=self.evaluate)
        wait_for_signals()
        return status


def wait_for_signals() -> None:
    """Waits until all signals to a run that has ended are read and acknowledged; another test would see the line."""
    for action in ("_end_at_the_second", "_acknowledge"):
        for thread in threading.enumerate():
            if thread.name.endswith(f"({action})"):
                thread.join(PATIENCE)
                assert not thread.is_alive(), thread


def losses_in_turn(*losses: float):
    """Returns an evaluation that gives these losses in turn."""
    turns = iter(losses)
    return lambda: Evaluation(ValidationLoss(next(turns), token_accuracy=0.5, tokens=10))
