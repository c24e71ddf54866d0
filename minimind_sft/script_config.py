"""The settings of the programs in scripts/, as config.py has those of the trainers; most are borrowed from there."""

import math
from dataclasses import dataclass, fields, replace

from minimind_sft.config import DATA_HELP, MOST, PretrainConfig, SFTConfig, TrainConfig, same_setting, setting


@dataclass(frozen=True)
class InspectConfig:
    """Defaults of scripts/inspect_data.py; where one is None here, it is that of the trainer of such rows."""

    data_path: tuple[str, ...] = same_setting(PretrainConfig, "data_path", default=(), help=DATA_HELP, positional=True)
    eval_data_path: tuple[str, ...] = setting((), "evaluation data: inspected too, and compared with the training data",
                                              many=True)
    rows: str = setting("conversations", "what the rows are read as: conversations, as by train_full_sft.py, or text, "
                                         "as by train_pretrain.py", ("conversations", "text"))
    tokenizer_path: str | None = same_setting(SFTConfig, "tokenizer_path")
    chat_template: str | None = same_setting(SFTConfig, "chat_template")
    end_of_turn: str | None = same_setting(SFTConfig, "end_of_turn")
    max_seq_len: int | None = setting(None, "longest sequence in tokens; default: the trainer's, 768 (text: 512)")
    truncation: str = same_setting(SFTConfig, "truncation")
    train_turns: str = same_setting(SFTConfig, "train_turns")
    train_on_prompt: int = same_setting(SFTConfig, "train_on_prompt")

    epochs: int | None = setting(None, "for the number of steps; default: the trainer's, 2 (text: 1)")
    batch_size: int | None = setting(None, "for the number of steps; default: the trainer's, 16 (text: 32)")
    accumulation_steps: int | None = setting(None, "for the number of steps; default: the trainer's, 1 (text: 8)")
    max_steps: int = same_setting(SFTConfig, "max_steps")
    eval_share: float = same_setting(SFTConfig, "eval_share")
    ranks: int = setting(1, "for the number of steps: processes that train together")

    check_prompts: int = setting(0, "1: compare what stands before every answer in training with what a chat shows the "
                                    "model there, id for id (before the first and last 20 of a row); takes several "
                                    "times as long", (0, 1))
    strict: int = setting(0, "1: rows that are cut, dropped, duplicated, empty or not alternating count as wrong too",
                          (0, 1))
    show: int = setting(3, "how many rows to show of each file")
    most: int = setting(100, "how many bad rows to print, 0: all; --json has up to 100,000")
    html: str | None = setting(None, "write the report as a page for the browser to this file too")
    json: int = setting(0, "1: print the report as one JSON object instead", (0, 1))

    def trainer(self) -> TrainConfig:
        """The settings of the trainer that would be given the same flags."""
        config_class = SFTConfig if self.rows == "conversations" else PretrainConfig
        names = {one.name for one in fields(config_class)} & {one.name for one in fields(self)}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        trainer = config_class(**given)
        return replace(trainer, micro_batch_tokens=trainer.max_seq_len)  # of no influence on what is reported

    def problems(self) -> list[str]:
        """As `TrainConfig.problems`."""
        problems = self.trainer().problems()
        problems += [f"--{name} is {getattr(self, name)}, expected at least {least}"
                     for name, least in (("ranks", 1), ("show", 0), ("most", 0)) if getattr(self, name) < least]
        if self.rows == "text":
            problems += [f"--{name}: expected only with --rows conversations"
                         for name in ("chat_template", "end_of_turn", "check_prompts") if getattr(self, name)]
        return problems


@dataclass(frozen=True)
class EstimateConfig:
    """Defaults of scripts/estimate_memory.py: those of trainer/train_full_sft.py, but for a new model."""

    preset: str | None = same_setting(SFTConfig, "preset")
    from_weight: str = same_setting(SFTConfig, "from_weight", default="none")
    save_dir: str = same_setting(SFTConfig, "save_dir", help="folder that --from_weight looks in first")
    tokenizer_path: str | None = same_setting(SFTConfig, "tokenizer_path", help="tokenizer of the weights, where "
                                              "--from_weight means several files")
    hidden_size: int | None = same_setting(SFTConfig, "hidden_size")
    num_hidden_layers: int | None = same_setting(SFTConfig, "num_hidden_layers")
    use_moe: int | None = same_setting(SFTConfig, "use_moe")
    vocab_size: int = setting(6400, "number of tokens, for a new model")
    dropout: float = same_setting(SFTConfig, "dropout")

    max_seq_len: int = same_setting(SFTConfig, "max_seq_len", help="longest document in tokens; a micro-batch has room "
                                                                   "for one")
    micro_batch_tokens: int = same_setting(SFTConfig, "micro_batch_tokens")
    micro_batches: int = setting(2, "micro-batches per step; 1: a step's rows fit into one, and no gradients wait "
                                    "while another is computed")
    gradient_checkpointing: int = same_setting(SFTConfig, "gradient_checkpointing")
    device: str = setting("auto", "auto (CUDA if there is one, else CPU), cpu, cuda; it need not be here",
                          ("auto", "cpu", "cuda"))
    dtype: str = same_setting(SFTConfig, "dtype")
    ranks: int = setting(1, "processes that train together")
    parallel: str = same_setting(SFTConfig, "parallel")
    async_save: int = same_setting(SFTConfig, "async_save")

    memory: float = setting(0.0, "GiB that each rank may take: says the largest --micro_batch_tokens that fits; 0: "
                                 "does not")
    json: int = setting(0, "1: print the estimate as one JSON object, in bytes", (0, 1))

    def problems(self) -> list[str]:
        """As `TrainConfig.problems`."""
        problems = [f"--{name} is {getattr(self, name)}, expected {least} to {MOST:,}"
                    for name, least in (("max_seq_len", 2), ("micro_batches", 1), ("ranks", 1), ("vocab_size", 1),
                                        ("micro_batch_tokens", 1), ("memory", 0))
                    if not least <= getattr(self, name) <= MOST]
        if not (math.isfinite(self.dropout) and 0 <= self.dropout < 1):
            problems.append(f"--dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.micro_batch_tokens < self.max_seq_len:
            problems.append(f"--micro_batch_tokens {self.micro_batch_tokens} is below --max_seq_len "
                            f"{self.max_seq_len}: a document is never split over micro-batches")
        return problems
