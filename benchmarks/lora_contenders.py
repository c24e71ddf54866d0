"""The contenders of benchmarks/lora_speed.py: our recipes, and TRL's trainer with PEFT, each in its own process."""

import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from memory_probe import resident

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.loading import load_datasets
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.device import position_multiple, resolve_dtype
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.weights import read_weights
from minimind_sft.paths import in_repository
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import LoraSFTSettings, SFTSettings
from minimind_sft.training.adapting import adapted_model
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.memory import Plan, peak
from minimind_sft.training.optim import BETAS, build_optimizer
from minimind_sft.training.start import starting_model

RANK, ALPHA, LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 16, 32, 1e-4, 0.1, 1.0
CPU = torch.device("cpu")


class Turn(NamedTuple):
    """Some optimizer steps, and the process's peak resident memory so far, in bytes."""

    tokens: int
    seconds: float
    peak: int


class Contender(Protocol):
    """One way to train; `flags` are those of our trainers."""

    @property
    def name(self) -> str: ...

    def train(self, flags: tuple[str, ...], turns: "Turns") -> None:
        """Takes optimizer steps until the process is ended."""


class Turns:
    """Holds a contender's steps back until it is its turn. Useful tokens are those of the conversations."""

    def __init__(self, pipe: Connection):
        self._pipe, self._wanted, self._done, self._start = pipe, 0, 0, 0.0

    def before_step(self) -> None:
        """
        Raises:
            SystemExit: if no more turns are wanted.
        """
        if self._done >= self._wanted:
            self._wanted, self._done = self._pipe.recv(), 0
            if not self._wanted:
                raise SystemExit
            self._start = time.perf_counter()

    def after_step(self, tokens: int) -> None:
        self._done += tokens
        if self._done >= self._wanted:
            self._pipe.send(Turn(self._done, time.perf_counter() - self._start, resident("VmHWM")))


class OwnProcess:
    """A contender's own process, so that memory, heap and threads are its own."""

    def __init__(self, contender: Contender, flags: tuple[str, ...]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._name = contender.name
        self._process = context.Process(target=_serve, args=(theirs, contender, flags), daemon=True)
        self._process.start()
        theirs.close()

    def turn(self, tokens: int) -> Turn:
        """Lets it train until it has seen so many tokens; the first time it starts, which is not timed.

        Raises:
            SystemExit: if it has failed; it has printed why.
        """
        self._pipe.send(tokens)
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise SystemExit(f"{self._name}: its process has failed, see above") from error

    def end(self) -> None:
        self._pipe.send(0)
        self._process.join()


def _serve(pipe: Connection, contender: Contender, flags: tuple[str, ...]) -> None:
    with suppress(EOFError):  # the parent is gone
        contender.train(flags, Turns(pipe))


@dataclass(frozen=True)
class Ours:
    """Our full SFT, LoRA or QLoRA."""

    method: str

    @property
    def name(self) -> str:
        return f"ours, {self.method}"

    def train(self, flags: tuple[str, ...], turns: Turns) -> None:
        settings = self._settings(flags)
        tokenizer, template = encoding(settings)
        ranks, dtype = Silent(0, 1, CPU), resolve_dtype(settings.runtime.dtype, CPU)
        start = Path(settings.model.from_weight)
        model: MiniMindForCausalLM
        if isinstance(settings, LoraSFTSettings):
            model, _ = adapted_model(settings, start, tokenizer, template, ranks)
        else:
            model, _ = starting_model(settings, start, tokenizer, template, ranks)
        steps = training_steps(settings, tokenizer, template)
        keep_freed_memory()
        adamw = build_optimizer(model.train(), LEARNING_RATE, WEIGHT_DECAY)
        learner = Learner(model, model, adamw, torch.amp.GradScaler("cpu", enabled=False), ranks, dtype)
        for step in range(len(steps)):
            turns.before_step()
            batch = steps[step]
            train_step(learner, batch, GRAD_CLIP)
            turns.after_step(batch.real_tokens)


    def predicted_peak(self, flags: tuple[str, ...]) -> float:
        """Returns what scripts/estimate_memory.py predicts, in bytes."""
        settings = self._settings(flags)
        plan = Plan(settings.runtime.micro_batch_tokens, settings.data.max_seq_len,
                    resolve_dtype(settings.runtime.dtype, CPU),
                    lora=settings.lora if isinstance(settings, LoraSFTSettings) else None)
        return sum(peak(read_weights(Path(settings.model.from_weight)).config, plan).values())

    def _settings(self, flags: tuple[str, ...]) -> SFTSettings | LoraSFTSettings:
        if self.method == "full SFT":
            return parse_flags(SFTSettings, "", flags)
        quantize = "nf4" if self.method == "QLoRA" else "none"
        return parse_flags(LoraSFTSettings, "", (*flags, "--lora_rank", str(RANK), "--lora_alpha", str(ALPHA),
                                                 "--quantize", quantize))


class Silent(Ranks):
    """One rank that prints nothing."""

    def say(self, *lines: str) -> None:
        pass


@dataclass(frozen=True)
class Theirs:
    """TRL's SFTTrainer with PEFT's adapter: `rows` padded conversations, or packed rows, per optimizer step."""

    packed: bool
    rows: int
    in_4_bits: bool = False

    @property
    def name(self) -> str:
        method = "QLoRA" if self.in_4_bits else "LoRA"
        return f"TRL + PEFT, {method}, {'packed' if self.packed else 'padded'}, {self.rows} a step"

    def train(self, flags: tuple[str, ...], turns: Turns) -> None:
        import datasets
        import transformers
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        warnings.simplefilter("ignore", FutureWarning)  # TRL's own use of transformers
        datasets.disable_progress_bars()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        settings = parse_flags(SFTSettings, "", flags)
        dtype = resolve_dtype(settings.runtime.dtype, CPU)

        class Trainer(SFTTrainer):
            """Counts the useful tokens of the step that it takes."""

            tokens = 0

            def training_step(self, model, inputs, *arguments, **named):
                mask = inputs.get("attention_mask")
                self.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
                return super().training_step(model, inputs, *arguments, **named)

        class OnTurn(transformers.TrainerCallback):
            def on_step_begin(self, *_, **__):
                trainer.tokens = 0
                turns.before_step()

            def on_step_end(self, *_, **__):
                turns.after_step(trainer.tokens)

        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                self._base(settings.model.from_weight, dtype),
                args=SFTConfig(
                    output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1000,
                    use_cpu=True, bf16=dtype == torch.bfloat16, num_train_epochs=1000,
                    per_device_train_batch_size=self.rows, packing=self.packed, max_length=settings.data.max_seq_len,
                    gradient_checkpointing=False, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
                    weight_decay=WEIGHT_DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=GRAD_CLIP,
                    optim="adamw_torch_fused", train_sampling_strategy="sequential", dataloader_pin_memory=False,
                    log_level="error"),
                train_dataset=datasets.Dataset.from_list(list(documents(settings))),
                processing_class=transformers.AutoTokenizer.from_pretrained(in_repository("model")),
                peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
                callbacks=[OnTurn()])
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()

    def _base(self, folder: str, dtype: torch.dtype):
        """Loads the base in the precision of the products, which is fastest and takes least memory, or in 4 bits."""
        import transformers

        in_4_bits = {"quantization_config": transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype), "device_map": "cpu"} if self.in_4_bits else {}
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_cache=False, **in_4_bits)


def prepare(flags: tuple[str, ...]) -> None:
    """Prepares the data, which a contender's process could not do: it may not start processes of its own."""
    settings = parse_flags(SFTSettings, "", flags)
    training_steps(settings, *encoding(settings))


def encoding(settings: SFTSettings | LoraSFTSettings) -> tuple[Tokenizer, ChatTemplate]:
    data = settings.data
    tokenizer = load_tokenizer(data.tokenizer_path, Path(settings.model.from_weight))
    return tokenizer, make_template(tokenizer, data.chat_template, data.end_of_turn)


def training_steps(settings: SFTSettings | LoraSFTSettings, tokenizer: Tokenizer,
                   template: ChatTemplate) -> TrainingSteps:
    data, optimizer, tokens = settings.data, settings.optimizer, settings.runtime.micro_batch_tokens
    encoder = SFTEncoder(template, data.max_seq_len, data.truncation)
    train_set, _ = load_datasets(data, encoder, Path(settings.saving.save_dir, "prepared"), lambda *told: None)
    return TrainingSteps(train_set, BatchLayout(tokens, multiple=position_multiple(CPU, False, tokens)),
                         epochs=optimizer.epochs, samples_per_step=optimizer.batch_size, seed=data.seed)


def documents(settings: SFTSettings) -> Iterator[dict[str, list[int]]]:
    """Yields ids and labels of one epoch as TRL expects them, with labels that are not shifted."""
    steps = training_steps(settings, *encoding(settings))
    for step in range(len(steps) // settings.optimizer.epochs):
        for sample in steps.sample_ids(step):
            for example in steps.dataset[sample]:
                yield {"input_ids": example.input_ids.tolist(),
                       "labels": [IGNORE_INDEX, *example.labels.tolist()[:-1]]}
