"""Every setting of the project: its name, its default and its help line, once.

A field of one of these frozen dataclasses is a flag of the program that uses it (`--<field name>`, see
`minimind_sft/flags.py`). Paths that are defaults lie in the repository; paths that are typed are relative to the
working directory.
"""

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from minimind_sft.foreign_flags import load_from_problems, lora_problems
from minimind_sft.model.config import PRESETS
from minimind_sft.paths import in_repository

DTYPES = ("auto", "float32", "bfloat16", "float16")

MOST = 10**9

TRUNCATIONS = ("tail", "turns", "drop")


def setting(default: Any, help: str, choices: tuple | None = None, many: bool = False, positional: bool = False) -> Any:
    """A dataclass field that is also a flag: `help` is its help line, `many` lets it take several values, `positional`
    too, and those stand without a flag. The choices (0, 1) make it a switch: without a value it is 1."""
    return field(default=default, metadata={"help": help, "choices": choices, "many": many, "positional": positional})


def same_setting(config_class: type, name: str, **changed: Any) -> Any:
    """The field of another program's settings, but for what is `changed` of its default and help."""
    (other,) = (one for one in fields(config_class) if one.name == name)
    return setting(**{**other.metadata, "default": other.default, **changed})


DATA_HELP = ("training data: JSON, JSONL, CSV, TSV, Parquet, Arrow and text files, also compressed, folders of "
             "datasets.save_to_disk, and globs; with a share each, as in "
             "a.jsonl:0.7 b.jsonl:0.3, they are mixed in that proportion")


TOKENIZER_HELP = ("folder with tokenizer.json and tokenizer_config.json, or bundled for the repository's model/; "
                  "default: bundled, but weights without a sidecar, such as MiniMind's, need it named")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of every run; `PretrainConfig` and `SFTConfig` set the defaults that differ."""

    data_path: tuple[str, ...] = setting((), DATA_HELP, many=True)
    eval_data_path: tuple[str, ...] = setting((), "evaluation data; without it a share of the training data is held "
                                                  "out, see --eval_share", many=True)
    eval_share: float = setting(0.02, "share of the training rows held out for evaluation, at most 2,000, where there "
                                      "is no --eval_data_path; 0 trains on all rows")
    bad_rows: str = setting("error", "a row that cannot be used: error stops before training and names it, skip "
                                     "leaves it out and counts it", ("error", "skip"))
    prepared_dir: str | None = setting(None, "folder of the prepared data, made once and used again; default: "
                                             "<save_dir>/prepared")
    tokenizer_path: str | None = setting(None, TOKENIZER_HELP)
    max_seq_len: int = setting(512, "longest document in tokens")

    from_weight: str = setting("none", "weights to start from: a NAME (reads <save_dir>/NAME_*.pth or .safetensors, "
                                       "then the repository's out/), a path, or none")
    save_dir: str = setting(in_repository("out"), "folder that weights, metrics and resume states are written to")
    save_weight: str = setting("", "name of the weights to write: <save_dir>/<save_weight>_<hidden_size>[_moe].pth")
    save_dtype: str = setting("float16", "precision of the written weights", DTYPES[1:])
    from_resume: int = setting(0, "1: go on from the newest resume state of --save_weight", (0, 1))
    overwrite: int = setting(0, "1: replace files of that name that another run wrote; they move to <name>.previous, "
                                "which keeps one generation", (0, 1))
    allow_changed_data: int = setting(0, "1: go on from a resume state though the data, --seed, --max_seq_len or what "
                                         "else decides the samples are not those it was made with", (0, 1))
    keep_checkpoints: int = setting(2, "how many resume states to keep")

    preset: str | None = setting(None, "model by name", tuple(PRESETS))
    hidden_size: int | None = setting(None, "hidden size; by default what --from_weight or --preset says, else 512")
    num_hidden_layers: int | None = setting(None, "number of layers; default as for --hidden_size, else 8")
    use_moe: int | None = setting(None, "1: mixture of experts; default as for --hidden_size, else 0", (0, 1))
    dropout: float = setting(0.0, "dropout on attention weights and on what each block adds")

    epochs: int = setting(1, "passes over the data")
    batch_size: int = setting(32, "documents (rows) per rank in one batch")
    accumulation_steps: int = setting(1, "batches per optimizer step: a step takes batch_size * accumulation_steps * "
                                         "ranks rows and averages over all their supervised tokens")
    micro_batch_tokens: int = setting(4096, "most tokens in one forward pass: sets memory and speed, never the result")
    max_steps: int = setting(0, "stop after this many optimizer steps; 0: after --epochs")
    learning_rate: float = setting(5e-4, "peak learning rate")
    min_lr_ratio: float = setting(0.1, "the cosine schedule ends at this share of --learning_rate")
    warmup_steps: int = setting(0, "steps of linear warmup")
    weight_decay: float = setting(0.1, "AdamW's weight decay, on matrices only")
    grad_clip: float = setting(1.0, "largest gradient norm; 0: no clipping")

    device: str = setting("auto", "auto (CUDA if there is one, else an Apple GPU, else CPU), cpu, cuda, cuda:N, mps")
    dtype: str = setting("auto", "arithmetic of the matrix products; auto: bfloat16 where the device computes in it, "
                                 "else float32; float16 uses a GradScaler", DTYPES)
    use_compile: int = setting(0, "1: torch.compile every layer; a slow start, faster steps (on a CPU by a few "
                                  "percent)", (0, 1))
    gradient_checkpointing: int = setting(0, "1: keep of each layer only what goes into it, and compute the rest again "
                                             "for the gradients: less memory, one more forward pass", (0, 1))
    parallel: str = setting("ddp", "under torchrun: ddp keeps the model on every rank, fsdp a shard of it (needs a "
                                   "--save_dir that all ranks share)", ("ddp", "fsdp"))
    rank_timeout: float = setting(600.0, "seconds that a rank waits for the others before it gives up")
    local_rank: int = setting(-1, "what torch.distributed.launch passes; it has to agree with the environment's "
                                  "LOCAL_RANK, which is what counts")
    num_workers: int = setting(0, "worker processes that assemble batches; 0: the training process itself")
    seed: int = setting(42, "seed of the data order, the held-out share, new weights and dropout")

    log_interval: int = setting(10, "steps between two lines of the metrics file, and of a log that is no terminal")
    eval_interval: int = setting(0, "steps between two evaluations; 0: ten in the whole run")
    keep_best: int = setting(1, "1: <save_weight> holds the weights with the lowest validation loss (needs an "
                                "evaluation set); 0: the last", (0, 1))
    save_interval: int = setting(0, "steps between two resume states; 0: by the clock, 10 seconds apart, or "
                                    "more where writing one would cost above 3% of the time")
    async_save: int = setting(0, "1: training goes on while a thread writes a resume state from a copy of weights "
                                 "and moments (12 bytes of main memory per parameter); 0: it waits", (0, 1))
    max_bad_steps: int = setting(10, "stop after this many steps in a row whose loss or gradient is not finite")
    use_wandb: int = setting(0, "1: log to Weights & Biases", (0, 1))
    wandb_project: str = setting("MiniMind-SFT", "Weights & Biases project")

    def problems(self) -> list[str]:
        """Lists what is wrong with the values by themselves, one line each; checked before anything is loaded."""
        problems = [
            f"--{name} is {getattr(self, name)}, expected at least {least}"
            for name, least in (("epochs", 1), ("batch_size", 1), ("accumulation_steps", 1), ("max_seq_len", 2),
                                ("max_steps", 0), ("warmup_steps", 0), ("weight_decay", 0), ("grad_clip", 0),
                                ("num_workers", 0), ("log_interval", 1), ("eval_interval", 0), ("save_interval", 0),
                                ("keep_checkpoints", 1), ("max_bad_steps", 1), ("seed", 0), ("rank_timeout", 1))
            if getattr(self, name) < least
        ]
        problems += [f"--{name} is {value}, expected at most {MOST:,}"
                     for name in ("epochs", "batch_size", "accumulation_steps", "max_steps")
                     if (value := getattr(self, name)) > MOST]
        if not self.learning_rate > 0:
            problems.append(f"--learning_rate is {self.learning_rate}, expected more than 0")
        for name in ("min_lr_ratio", "eval_share", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"--{name} is {getattr(self, name)}, expected 0 to 1")
        named = {problem.split()[0] for problem in problems}
        problems += [f"--{one.name} is {value}, expected a finite number" for one in fields(self)
                     if isinstance(value := getattr(self, one.name), float) and not math.isfinite(value)
                     and f"--{one.name}" not in named]
        if self.micro_batch_tokens < self.max_seq_len:
            problems.append(f"--micro_batch_tokens {self.micro_batch_tokens} is below --max_seq_len "
                            f"{self.max_seq_len}: a document is never split over micro-batches")
        if not self.data_path:
            problems.append("--data_path: expected one or more files")
        in_environment = os.environ.get("LOCAL_RANK", "0")
        if self.local_rank != -1 and str(self.local_rank) != in_environment:
            problems.append(f"--local_rank is {self.local_rank}, but the environment's LOCAL_RANK is {in_environment}: "
                            "torchrun starts several ranks and sets it")
        if Path(self.save_weight).name != self.save_weight or not self.save_weight:
            problems.append(f"--save_weight is {self.save_weight!r}, expected a name; --save_dir is the folder")
        return problems


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Defaults of trainer/train_pretrain.py."""

    data_path: tuple[str, ...] = setting((in_repository("dataset/pretrain_demo.jsonl"),),
                                         DATA_HELP + '; rows {"text": ...}, or lines of a .txt', many=True)
    save_weight: str = setting("pretrain", "name of the weights to write: <save_dir>/<save_weight>_<hidden_size>"
                                           "[_moe].pth")
    accumulation_steps: int = setting(8, "batches per optimizer step: a step takes batch_size * accumulation_steps * "
                                         "ranks rows and averages over all their tokens")


@dataclass(frozen=True)
class SFTConfig(TrainConfig):
    """Defaults of trainer/train_full_sft.py."""

    data_path: tuple[str, ...] = setting((in_repository("dataset/sft_demo.jsonl"),), DATA_HELP + "; docs/data.md shows "
                                         "the forms that rows may have", many=True)
    truncation: str = setting("tail", "a conversation longer than --max_seq_len: tail cuts its end off, turns keeps "
                                      "the longest run of whole turns that fits, drop leaves it out", TRUNCATIONS)
    train_turns: str = setting("all", "which of the assistant's turns are learned", ("all", "last"))
    train_on_prompt: int = setting(0, "1: learn everything else too, not only the assistant's turns", (0, 1))
    chat_template: str | None = setting(None, "a Jinja file, chatml or alpaca, instead of the tokenizer's own template")
    end_of_turn: str | None = setting(None, "control token to end an answer with, for a template that writes none")
    save_weight: str = setting("full_sft", "name of the weights to write: <save_dir>/<save_weight>_<hidden_size>"
                                           "[_moe].pth")
    from_weight: str = setting("pretrain", "weights to start from: a NAME (reads <save_dir>/NAME_*.pth or "
                                           ".safetensors, then the repository's out/), a path, or none")
    max_seq_len: int = setting(768, "longest conversation in tokens; what becomes of a longer one: --truncation")
    epochs: int = setting(2, "passes over the data")
    batch_size: int = setting(16, "conversations per rank in one batch")
    learning_rate: float = setting(5e-4, "peak learning rate; docs/learning_rate.md has the sweep behind the default")


@dataclass(frozen=True)
class TokenizerConfig:
    """Defaults of trainer/train_tokenizer.py."""

    data_path: tuple[str, ...] = setting((), "files to learn the merges from; of rows, all strings", many=True)
    vocab_size: int = setting(6400, "number of tokens, the 36 control tokens included")
    save_dir: str = setting(in_repository("model"), "folder for tokenizer.json and tokenizer_config.json")
    overwrite: int = setting(0, "1: replace a tokenizer in --save_dir; it moves to tokenizer.previous there, which "
                                "keeps one generation", (0, 1))


@dataclass(frozen=True)
class ChatConfig:
    """Defaults of eval_llm.py."""

    weight: str = setting("full_sft", "weights to chat with: a NAME (reads <save_dir>/NAME_*.pth or .safetensors) or "
                                      "a path")
    save_dir: str = setting(in_repository("out"), "folder of the weights")
    tokenizer_path: str | None = setting(None, TOKENIZER_HELP)
    load_from: str | None = setting(None, "MiniMind's flag for the tokenizer's folder, as --tokenizer_path; a folder "
                                          "in transformers' format cannot be loaded yet")
    lora_weight: str = setting("None", "MiniMind's flag for LoRA adapters, which are not here yet: None")
    chat_template: str | None = setting(None, "the template that the weights were trained with, if it is not the "
                                              "tokenizer's: a Jinja file, chatml or alpaca")
    end_of_turn: str | None = setting(None, "the --end_of_turn that the weights were trained with")
    hidden_size: int | None = setting(None, "hidden size, where several weights of that name lie in --save_dir")
    num_hidden_layers: int | None = setting(None, "number of layers, for weights without a sidecar")
    use_moe: int | None = setting(None, "1: the mixture-of-experts weights of that name", (0, 1))
    inference_rope_scaling: int = setting(0, "1: stretch RoPE by YaRN for contexts longer than trained on", (0, 1))

    prompt: tuple[str, ...] = setting((), "answer these prompts, one after the other, and leave; without it: chat",
                                      many=True)
    score: tuple[str, ...] = setting((), "files of conversations, as --data_path takes: ask for the last assistant "
                                         "turn of each, greedily, compare, and report exact match per kind", many=True)
    score_out: str | None = setting(None, "JSONL to write the questions, expected and given answers of --score to")
    system: str | None = setting(None, "system turn that opens the conversation")
    tools: str | None = setting(None, "JSON file with a list of functions that the model may call")
    historys: int = setting(0, "messages kept in view before the newest, as MiniMind counts: a question and its answer "
                               "are two, an odd number counts as one less; 0: none, -1: all that fit")
    open_thinking: int = setting(0, "1: let the model think before it answers", (0, 1))

    max_new_tokens: int = setting(512, "longest answer in tokens")
    temperature: float = setting(0.85, "0: always the most likely token")
    top_p: float = setting(0.85, "sample from the fewest tokens whose probabilities sum to this")
    top_k: int = setting(0, "sample from this many most likely tokens; 0: all")
    repetition_penalty: float = setting(1.0, "above 1: tokens that already occurred become less likely")
    seed: int = setting(42, "seed of the sampling")
    batch_size: int = setting(32, "questions answered at once by --score")
    show_speed: int = setting(1, "1: show tokens/s after each answer", (0, 1))
    device: str = setting("auto", "auto (CUDA if there is one, else an Apple GPU, else CPU), cpu, cuda, cuda:N, mps")
    dtype: str = setting("float32", "precision of the weights while answering", DTYPES)

    def __post_init__(self):
        if self.load_from and self.tokenizer_path is None:
            object.__setattr__(self, "tokenizer_path", self.load_from)

    def problems(self) -> list[str]:
        """As `TrainConfig.problems`."""
        other = None if self.tokenizer_path == self.load_from else self.tokenizer_path
        problems = load_from_problems(self.load_from, other) + lora_problems(self.lora_weight)
        if self.historys < -1:
            problems.append(f"--historys is {self.historys}, expected -1 (all that fit), 0 or more")
        if self.batch_size < 1:
            problems.append(f"--batch_size is {self.batch_size}, expected at least 1")
        if self.score_out and not self.score:
            problems.append("--score_out has the results of --score, which is not given")
        if self.score:
            problems += [f"--{name} does not go with --score, which takes the conversations as the rows have them"
                         for name in ("prompt", "system", "tools") if getattr(self, name)]
        return problems
