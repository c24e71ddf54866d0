"""Settings of the data: which rows, as which tokens, in which order."""

import re
from dataclasses import dataclass
from pathlib import Path

from minimind_sft.files import path_exists
from minimind_sft.paths import in_repository
from minimind_sft.settings.spec import MAX_SEED, same_setting, setting

TRUNCATIONS = ("tail", "turns", "drop")

DATA_HELP = ("training data: JSON, JSONL, CSV, TSV, Parquet, Arrow or text files, compressed or not, folders of "
             "datasets.save_to_disk, or globs; give each a share to mix them, as in a.jsonl:0.7 b.jsonl:0.3")


@dataclass(frozen=True)
class DataSettings:
    """Which rows are read, and how they become samples."""

    data_path: tuple[str, ...] = setting(
        (in_repository("dataset/pretrain_demo.jsonl"),),
        DATA_HELP + '; rows are {"text": ...}, or the lines of a .txt', kind="path", decides="samples",
        recorded_as="data")
    eval_data_path: tuple[str, ...] = setting(
        (), "evaluation data; without it, --eval_share of the training rows is held out", kind="path",
        decides="samples", recorded_as="eval_data")
    eval_share: float = setting(
        0.02, "share of the training rows to hold out for evaluation, at most 2,000 rows, if there is no "
              "--eval_data_path; 0 trains on all rows", kind="share", decides="samples")
    bad_rows: str = setting(
        "error", "unusable rows: error names the first ones and stops before training, skip leaves them out and counts "
                 "them", choices=("error", "skip"), decides="samples")
    prepared_dir: str | None = setting(
        None, "folder for prepared data, which later runs use again (default: <save_dir>/prepared)", kind="path")
    tokenizer_path: str | None = setting(
        None, "tokenizer: a folder from Hugging Face or MiniMind, a GGUF file, or bundled for the repository's model/ "
              "(default: that of the weights, where they bring or name one, else bundled; MiniMind's .pth files need "
              "an explicit choice)", kind="path", decides="tokens")
    max_seq_len: int = setting(512, "maximum tokens of a document", min=2, decides="samples")
    seed: int = setting(
        42, "seed of the data order, the held-out rows, new weights and dropout", min=0, max=MAX_SEED,
        decides="samples")

    def problems(self) -> list[str]:
        return [] if self.data_path else ["--data_path: expected one or more files"]


@dataclass(frozen=True)
class SFTDataSettings(DataSettings):
    """Which conversations are read, and what is learned from each."""

    data_path: tuple[str, ...] = same_setting(
        DataSettings, "data_path", default=(in_repository("dataset/sft_demo.jsonl"),),
        help=DATA_HELP + "; docs/data.md shows the formats of rows")
    max_seq_len: int = same_setting(
        DataSettings, "max_seq_len", default=768, help="maximum tokens of a conversation; --truncation handles longer "
                                                       "ones")
    truncation: str = setting(
        "tail", "conversations longer than --max_seq_len: tail cuts off the end, turns keeps the longest run of whole "
                "turns that fits, drop leaves them out", choices=TRUNCATIONS, decides="samples")
    train_turns: str = setting(
        "all", "which of the assistant's turns to learn", choices=("all", "last"), decides="samples",
        recorded_as="supervised_turns")
    train_on_prompt: bool = setting(
        False, "learn all other turns as well, not only the assistant's", decides="samples",
        recorded_as="supervised_prompt")
    chat_template: str | None = setting(
        None, "Jinja file, chatml or alpaca, to use instead of the tokenizer's own template", kind="path",
        decides="tokens")
    end_of_turn: str | None = setting(
        None, "control token that ends an answer, for a template that writes none", decides="tokens")


def split_share(text: str) -> tuple[str, str]:
    """Splits `a.jsonl:0.7` into ("a.jsonl", "0.7"); without a share, or if a file has the whole name: (text, "")."""
    match = re.fullmatch(r"(.+):([0-9]{0,9}\.?[0-9]{1,9})", text, re.DOTALL)
    return (match[1], match[2]) if match and not path_exists(Path(text)) else (text, "")
