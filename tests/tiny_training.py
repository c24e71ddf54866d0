"""A whole training of the tiny model, with or without an interruption, that tests of the loop share."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from tiny import TINY, random_documents

from minimind_sft.config import SFTConfig
from minimind_sft.data.batching import TrainingSteps
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.loop import Fit
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.progress import Progress
from minimind_sft.training.resume_state import TrainState

CPU = Ranks(0, 1, torch.device("cpu"))
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


class Training:
    """A whole Fit over tiny data in a folder; `weights` holds the
    validation loss that write_weights was called with, by step."""

    def __init__(self, folder, resume: bool = False, evaluations=None, **changes):
        folder.mkdir(exist_ok=True)
        config = replace(SFTConfig(), batch_size=4, epochs=2, micro_batch_tokens=768, eval_interval=4, log_interval=1,
                         learning_rate=1e-2, dropout=0.2, **{"save_interval": 3, **changes})
        torch.manual_seed(0)
        self.model = MiniMindForCausalLM(replace(TINY, dropout=0.2))
        self.optimizer = build_optimizer(self.model, config.learning_rate, config.weight_decay)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.state = TrainState(samples_per_step=4)
        checkpoints = Checkpoints(folder / "resume", keep=2, ranks=CPU, fresh=not resume)
        if resume:
            path, self.state, _ = checkpoints.newest()
            checkpoints.load(path, self.model, self.optimizer, self.scaler)
        self.weights = {}
        steps = TrainingSteps(random_documents(30), epochs=2, samples_per_step=4, micro_batch_tokens=64, seed=1)
        self.progress = Progress(folder / "metrics.jsonl", total_steps=16, step=self.state.step, is_main=True)
        evaluate = None
        if evaluations is not None:
            losses = iter(evaluations)
            evaluate = lambda: SimpleNamespace(loss=next(losses), perplexity=1.0)  # noqa: E731
        def write_weights(state: TrainState) -> None:
            self.weights[state.step] = state.eval_loss

        self.fit = Fit(config, self.model, self.model, steps, ranks=CPU, dtype=torch.float32, optimizer=self.optimizer,
                       scaler=self.scaler, state=self.state, progress=self.progress, checkpoints=checkpoints,
                       evaluate=evaluate, write_weights=write_weights)

    def run(self, interrupt_at: int | None = None) -> int:
        if interrupt_at is not None:
            step = self.fit.step

            def interrupted(batch):
                step(batch)
                if self.state.step == interrupt_at:
                    os.kill(os.getpid(), signal.SIGINT)

            self.fit.step = interrupted
        with self.progress:
            return self.fit.run()


def lines(path: Path) -> list[dict]:
    """The metrics file, but for its timings."""
    timed = "supervised_tokens_per_second"
    return [{k: v for k, v in json.loads(line).items() if k != timed} for line in path.read_text().splitlines()]
