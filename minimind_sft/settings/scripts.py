"""Settings of the programs in scripts/, and of trainer/train_tokenizer.py."""

from dataclasses import dataclass, replace
from pathlib import Path

from minimind_sft.files import resolved
from minimind_sft.languages import LETTERS
from minimind_sft.paths import in_repository
from minimind_sft.settings.data import DATA_HELP, DataSettings, SFTDataSettings
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.model import ModelSettings
from minimind_sft.settings.optimizer import OptimizerSettings
from minimind_sft.settings.runtime import RuntimeSettings, room_problems
from minimind_sft.settings.saving import SavingSettings
from minimind_sft.settings.spec import MAX_COUNT, MAX_SEED, as_typed, changed, flags_of, same_setting, setting
from minimind_sft.settings.training import PretrainSettings, SFTSettings, TrainSettings


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of trainer/train_tokenizer.py."""

    data_path: tuple[str, ...] = setting(
        (), "files to learn the merges from; in rows, every string is used", kind="path")
    vocab_size: int = setting(6400, "number of tokens, including the 36 control tokens", max=10**6)
    save_dir: str = setting(
        in_repository("model"), "folder for tokenizer.json and tokenizer_config.json", kind="path")
    overwrite: bool = setting(
        False, "replace a tokenizer in --save_dir; it moves to tokenizer.previous there, which keeps one generation")


@dataclass(frozen=True)
class ReadingSettings:
    """Which rows to read, and how."""

    files: tuple[str, ...] = setting(
        (), "files and globs of any kind that docs/data.md lists", kind="path", positional=True)
    drop_fields: tuple[str, ...] = setting((), "fields to ignore, as if the rows did not have them")
    preference: str | None = setting(
        None, "keep the chosen one of a row's two answers, chosen and rejected", choices=("chosen",))
    dialogue_field: str | None = setting(
        None, "field that holds a dialogue as one text, with Human: and Assistant: at the beginnings of lines")

    def problems(self) -> list[str]:
        if not (self.preference and self.dialogue_field):
            return []
        return ["--preference and --dialogue_field do not go together; --dialogue_field chosen is enough"]


@dataclass(frozen=True)
class FilterSettings:
    """Which rows to drop."""

    min_answer: int = setting(0, "drop rows with an answer of fewer characters; 0: keep all", min=0)
    max_tokens: int = setting(0, "drop rows with more tokens in the chat template; 0: keep all", min=0)
    tokenizer_path: str | None = setting(None, "tokenizer that counts for --max_tokens (default: bundled)", kind="path")
    language: str | None = setting(
        None, "drop rows with a smaller share of letters of this language, as in zh:0.5; languages: "
              f"{', '.join(LETTERS)}")
    drop_duplicates: bool = setting(False, "keep only the first of equal rows")
    drop_in: tuple[str, ...] = setting((), "drop rows that are in these files too: the evaluation data", kind="path")


@dataclass(frozen=True)
class WritingSettings:
    """Files to write."""

    out: str = setting("", "JSONL file to write", endings=(".jsonl",), required=True)
    to: str = setting("conversations", "format of the rows to write", choices=("conversations", "text"))
    overwrite: bool = setting(
        False, "replace --out and --eval_out if they exist; the old files become FILE.previous")
    eval_rows: int = setting(0, "rows to draw at random and write to --eval_out instead", min=0)
    eval_out: str | None = setting(None, "JSONL file for the rows of --eval_rows", endings=(".jsonl",))
    seed: int = setting(42, "seed of the draw", min=0, max=MAX_SEED)

    def problems(self) -> list[str]:
        if bool(self.eval_rows) != bool(self.eval_out):
            return ["--eval_rows and --eval_out go together"]
        if self.eval_out and resolved(Path(self.eval_out)) == resolved(Path(self.out)):
            return [f"--eval_out {self.eval_out}: expected another file than --out"]
        return []


@dataclass(frozen=True)
class ConvertSettings:
    """Settings of scripts/convert_data.py."""

    reading: ReadingSettings = ReadingSettings()
    filters: FilterSettings = FilterSettings()
    writing: WritingSettings = WritingSettings()


@dataclass(frozen=True)
class PlotSettings:
    """Settings of scripts/plot_metrics.py."""

    metrics: tuple[str, ...] = setting(
        (), "metrics files, <save_dir>/<name>_metrics.jsonl", kind="path", positional=True)
    out: str = setting("loss.png", "picture to write", endings=(".png", ".svg", ".pdf", ".jpg"))
    title: str = setting("", "title of the picture")


@dataclass(frozen=True)
class CompareSettings:
    """Settings of scripts/compare_runs.py."""

    metrics: tuple[str, ...] = same_setting(PlotSettings, "metrics")
    html: str | None = setting(None, "HTML page to write", endings=(".html", ".htm"))


@dataclass(frozen=True)
class WatchSettings:
    """Settings of scripts/watch_training.py."""

    metrics: tuple[str, ...] = same_setting(
        PlotSettings, "metrics", help="metrics files, <save_dir>/<name>_metrics.jsonl, or folders of them")
    port: int = setting(8642, "port of the page on this machine; 0: any free one", min=0, max=65535)


@dataclass(frozen=True)
class InspectedData:
    """Which data to inspect, and how training would read them."""

    data_path: tuple[str, ...] = same_setting(DataSettings, "data_path", default=(), help=DATA_HELP, positional=True)
    eval_data_path: tuple[str, ...] = same_setting(
        DataSettings, "eval_data_path", help="evaluation data: inspected too, and compared with the training data")
    eval_share: float = same_setting(DataSettings, "eval_share")
    rows: str = setting(
        "conversations", "read rows as conversations, like train_full_sft.py, or as text, like train_pretrain.py",
        choices=("conversations", "text"))
    from_weight: str | None = same_setting(
        ModelSettings, "from_weight", default=None, help="weights that training would start from, if their tokenizer "
                                                         "and chat template are to be used: as for the trainers")
    tokenizer_path: str | None = same_setting(DataSettings, "tokenizer_path")
    max_seq_len: int | None = same_setting(
        DataSettings, "max_seq_len", default=None, help="maximum tokens of a sequence (default: the trainer's, 768; "
                                                        "text: 512)")
    truncation: str = same_setting(SFTDataSettings, "truncation")
    train_turns: str = same_setting(SFTDataSettings, "train_turns")
    train_on_prompt: bool = same_setting(SFTDataSettings, "train_on_prompt")
    chat_template: str | None = same_setting(SFTDataSettings, "chat_template")
    end_of_turn: str | None = same_setting(SFTDataSettings, "end_of_turn")


@dataclass(frozen=True)
class InspectedRun:
    """The run whose steps the report counts."""

    epochs: int | None = same_setting(
        OptimizerSettings, "epochs", default=None, help="passes over the data (default: the trainer's, 2; text: 1)")
    batch_size: int | None = same_setting(
        OptimizerSettings, "batch_size", default=None, help="rows per batch and rank (default: the trainer's, 16; "
                                                            "text: 32)")
    accumulation_steps: int | None = same_setting(
        OptimizerSettings, "accumulation_steps", default=None, help="batches per optimizer step (default: the "
                                                                    "trainer's, 1; text: 8)")
    max_steps: int = same_setting(OptimizerSettings, "max_steps")
    ranks: int = setting(1, "processes that train together", min=1)


@dataclass(frozen=True)
class ReportSettings:
    """Checks to make, and the form of the report."""

    check_prompts: bool = setting(
        False, "compare what stands before every answer in training with what a chat shows the model there, id for id "
               "(the first and last 20 answers of a row); takes several times as long")
    strict: bool = setting(
        False, "also count as wrong: rows that are cut, dropped, duplicated, empty or not alternating")
    show: int = setting(3, "rows to show of each file", min=0)
    most: int = setting(100, "bad rows to print; 0: all; --json has up to 100,000", min=0)
    html: str | None = setting(
        None, "file for the report as a page for the browser, besides the printed one", endings=(".html", ".htm"))
    json: bool = setting(False, "print the report as one JSON object instead")


@dataclass(frozen=True)
class InspectSettings:
    """Settings of scripts/inspect_data.py; None stands for the trainer's default."""

    data: InspectedData = InspectedData()
    run: InspectedRun = InspectedRun()
    report: ReportSettings = ReportSettings()

    def trainer(self) -> TrainSettings:
        """Returns the settings of the trainer that would be given the same flags."""
        defaults = SFTSettings() if self.data.rows == "conversations" else PretrainSettings()
        given = {flag.name: flag.value for flag in flags_of(self) if flag.value is not None}
        trainer = changed(defaults, **{name: given[name] for name in as_typed(defaults) if name in given})
        # The size of a micro-batch has no influence on the report.
        return replace(trainer, runtime=replace(trainer.runtime, micro_batch_tokens=trainer.data.max_seq_len))

    def problems(self) -> list[str]:
        if self.data.rows == "conversations":
            return []
        conversations_only = {"check_prompts", *as_typed(SFTDataSettings)} - set(as_typed(DataSettings))
        defaults = as_typed(InspectSettings)
        return [f"--{name}: expected only with --rows conversations" for name, value in as_typed(self).items()
                if name in conversations_only and value != defaults[name]]


@dataclass(frozen=True)
class EstimatedModel(ModelSettings):
    """The weights to train, or the shape of a new model."""

    from_weight: str = same_setting(ModelSettings, "from_weight")
    save_dir: str = same_setting(SavingSettings, "save_dir", help="folder where --from_weight looks first")
    tokenizer_path: str | None = same_setting(
        DataSettings, "tokenizer_path", help="tokenizer of the weights, to choose among several files that "
                                             "--from_weight names")
    vocab_size: int = setting(6400, "number of tokens of a new model", min=1, max=MAX_COUNT)


@dataclass(frozen=True)
class EstimatedAdapters:
    """The adapters to train; without --lora_rank everything trains."""

    lora_rank: int | None = same_setting(
        LoraSettings, "lora_rank", default=None, help="rank of the adapters of trainer/train_lora.py (default: no "
                                                      "adapters)")
    lora_dropout: float = same_setting(LoraSettings, "lora_dropout")
    target_modules: tuple[str, ...] = same_setting(
        LoraSettings, "target_modules", help="projections that have adapters, by name or pattern (default: all of "
                                             "attention and feed-forward networks)")
    modules_to_save: tuple[str, ...] = same_setting(LoraSettings, "modules_to_save")
    quantize: str = same_setting(LoraSettings, "quantize")

    def problems(self) -> list[str]:
        if self.lora_rank is not None:
            return []
        return [f"--{flag.name}: expected --lora_rank beside it, the rank of the adapters"
                for flag, default in zip(flags_of(self), flags_of(EstimatedAdapters), strict=True)
                if flag.value != default.value]


@dataclass(frozen=True)
class EstimatedRun:
    """How the run computes."""

    max_seq_len: int = same_setting(
        DataSettings, "max_seq_len", default=768, max=MAX_COUNT, help="maximum tokens of a document; a micro-batch has "
                                                                      "room for one")
    micro_batch_tokens: int = same_setting(RuntimeSettings, "micro_batch_tokens", min=1, max=MAX_COUNT)
    micro_batches: int = setting(
        2, "micro-batches per step; 1: all rows of a step fit into one, and no gradients wait while the next ones are "
           "computed", min=1, max=MAX_COUNT)
    gradient_checkpointing: bool = same_setting(RuntimeSettings, "gradient_checkpointing")
    device: str = setting(
        "auto", "auto (CUDA if available, else the CPU), cpu or cuda, which need not be present",
        choices=("auto", "cpu", "cuda"))
    dtype: str = same_setting(RuntimeSettings, "dtype")
    ranks: int = setting(1, "processes that train together", min=1, max=MAX_COUNT)
    parallel: str = same_setting(RuntimeSettings, "parallel")
    async_save: bool = same_setting(SavingSettings, "async_save")

    def problems(self) -> list[str]:
        return room_problems(self.micro_batch_tokens, self.max_seq_len)


@dataclass(frozen=True)
class AnswerSettings:
    """Figures to print, and their form."""

    memory: float = setting(
        0.0, "GiB that each rank may take: also print the largest --micro_batch_tokens that fits; 0: do not", min=0,
        max=MAX_COUNT)
    json: bool = setting(False, "print the estimate as one JSON object, in bytes")


@dataclass(frozen=True)
class EstimateSettings:
    """Settings of scripts/estimate_memory.py."""

    model: EstimatedModel = EstimatedModel()
    adapters: EstimatedAdapters = EstimatedAdapters()
    run: EstimatedRun = EstimatedRun()
    answer: AnswerSettings = AnswerSettings()
