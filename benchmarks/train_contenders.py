"""The contenders of benchmarks/train_speed.py: ours and TRL's trainer, each in its own process."""

import argparse
import copy
import multiprocessing
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from peers import qwen3_twin
from train_variants import switched_off

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.chat_template import make_template
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.prepared import prepare
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.device import position_multiple, resolve_device
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.paths import in_repository
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import BETAS, build_optimizer

LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 5e-4, 0.1, 1.0
MAX_SEQ_LEN = 340
CONVERSATIONS_PER_STEP = 16
MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Work:
    """The model, the data and the device that all contenders share."""

    model: MiniMindForCausalLM
    dataset: ExampleDataset
    device: torch.device

    def steps(self) -> TrainingSteps:
        multiple = position_multiple(self.device, False, MICRO_BATCH_TOKENS)
        return TrainingSteps(self.dataset, BatchLayout(MICRO_BATCH_TOKENS, multiple=multiple), epochs=1,
                             samples_per_step=CONVERSATIONS_PER_STEP, seed=0)

    def documents(self, steps: int) -> list[dict[str, list[int]]]:
        """Returns ids and labels of the first steps' conversations as TRL expects them: labels not shifted."""
        plan = self.steps()
        return [{"input_ids": example.input_ids.tolist(), "labels": [-100, *example.labels.tolist()[:-1]]}
                for step in range(steps) for sample in plan.sample_ids(step) for example in self.dataset[sample]]

    def tokens(self, steps: int) -> int:
        plan = self.steps()
        return sum(sum(self.dataset.lengths(sample)) for step in range(steps) for sample in plan.sample_ids(step))


@dataclass
class Ours:
    """Our training, a few steps at a time."""

    name: str
    dtype: torch.dtype
    compiled: bool = False
    without: str | None = None
    """The one of `VARIANTS` that is switched off; None leaves all on."""
    losses: list[float] = field(default_factory=list)

    def start(self, work: Work) -> None:
        keep_freed_memory()
        self.work, self.plan = work, work.steps()
        self.ranks = Ranks(0, 1, work.device)
        self.model = copy.deepcopy(work.model).train()
        if self.compiled:
            for layer in self.model.model.layers:
                layer.compile(dynamic=True)
        self.optimizer = build_optimizer(self.model, LEARNING_RATE, WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(work.device.type, enabled=False)

    def run(self, steps: int, first: int = 0) -> float:
        """Trains on `steps` steps' data from `first` on; returns the seconds, including batch assembly."""
        learner = Learner(self.model, self.model, self.optimizer, self.scaler, self.ranks, self.dtype)
        with switched_off(self.without, self.optimizer):
            start = time.perf_counter()
            for step in range(first, first + steps):
                result = train_step(learner, self.plan[step], GRAD_CLIP)
                self.losses.append(result.loss)
            return time.perf_counter() - start


@dataclass
class Theirs:
    """TRL's SFTTrainer: `batch` rows, `accumulate` times per optimizer step."""

    packed: bool
    dtype: torch.dtype
    batch: int
    accumulate: int = 1
    losses: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        rows = f"{self.batch} x {self.accumulate}" if self.accumulate > 1 else str(self.batch)
        return f"TRL, {'packed' if self.packed else 'padded'}, {rows} rows a step, {short(self.dtype)}"

    def start(self, work: Work) -> None:
        self.work = work

    def run(self, steps: int) -> float:
        """Does as `Ours.run` in a new trainer that starts from the common weights; creating it is not timed."""
        import datasets
        from transformers import PrinterCallback, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        datasets.disable_progress_bars()

        class Clock(TrainerCallback):
            seconds = 0.0

            def on_train_begin(self, *_, **__):
                self.seconds -= time.perf_counter()

            def on_train_end(self, *_, **__):
                self.seconds += time.perf_counter()

        with tempfile.TemporaryDirectory() as folder:
            settings = SFTConfig(
                output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
                use_cpu=self.work.device.type == "cpu", bf16=self.dtype == torch.bfloat16, num_train_epochs=1,
                per_device_train_batch_size=self.batch, gradient_accumulation_steps=self.accumulate,
                packing=self.packed, max_length=MAX_SEQ_LEN, gradient_checkpointing=False,
                learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=GRAD_CLIP, optim="adamw_torch_fused",
                train_sampling_strategy="sequential", dataloader_pin_memory=False, log_level="error",
            )
            clock = Clock()
            trainer = SFTTrainer(qwen3_twin(self.work.model), args=settings,
                                 train_dataset=datasets.Dataset.from_list(self.work.documents(steps)),
                                 processing_class=self.tokenizer(), callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            self.losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return clock.seconds

    def tokenizer(self):
        """Returns a tokenizer, which SFTTrainer requires although the data are ids."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(in_repository("model"))

    @property
    def has_our_step(self) -> bool:
        """Returns whether an optimizer step takes about as many tokens as ours."""
        return self.batch * self.accumulate == CONVERSATIONS_PER_STEP or (self.packed and self.batch == 5)


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def common_work(arguments: argparse.Namespace, folder: Path) -> Work:
    tokenizer = Tokenizer.from_folder(arguments.tokenizer_path)
    rows = SFTEncoder(make_template(tokenizer), MAX_SEQ_LEN)
    prepared = prepare([arguments.file], rows, folder, "skip", True, lambda told: None)
    wanted = arguments.steps * CONVERSATIONS_PER_STEP
    if len(prepared) < wanted:
        raise SystemExit(f"{arguments.file}: {len(prepared)} usable rows, expected at least {wanted} (--steps)")
    torch.manual_seed(0)
    model = MiniMindForCausalLM(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers))
    device = resolve_device(arguments.device)
    return Work(model.to(device), prepared.select(prepared.epoch_order(seed=0, epoch=0)[:wanted]), device)


class OwnProcess:
    """A contender's own process, so that heap, threads and compiled code do not affect the others."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, arguments, folder), daemon=True).start()

    def run(self, contender: Ours | Theirs, steps: int) -> float:
        """Runs its next turn; returns the seconds and its losses so far. Starts the process, untimed, the first time.
        """
        self._pipe.send((contender, steps))
        seconds, contender.losses = self._pipe.recv()
        return seconds


def _serve(pipe: Connection, arguments: argparse.Namespace, folder: Path) -> None:
    # Compile afresh: an earlier run's cache would make the start look cheap.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    work = common_work(arguments, folder)
    started: dict[str, Ours | Theirs] = {}
    with suppress(EOFError):  # the parent is gone
        while True:
            contender, steps = pipe.recv()
            if contender.name not in started:
                started[contender.name] = contender
                contender.start(work)
            contender = started[contender.name]
            seconds = contender.run(steps)
            pipe.send((seconds, contender.losses))
