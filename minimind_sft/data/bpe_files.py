"""Reads byte-level BPE from vocab.json and merges.txt, the files that tokenizers had before tokenizer.json.

They hold tokens and merges. How text is split before, and which special tokens there are if no file names them, is
part of the class that wrote them (transformers, models/gpt2 and models/qwen2).
"""

from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.data.pre_tokenizers import QWEN2, by_regex, byte_level
from minimind_sft.errors import UserError, describe, printable
from minimind_sft.files import peek_object, read_text
from minimind_sft.strict_json import parse_json

FILES = ("vocab.json", "merges.txt")
END = "<|endoftext|>"


class BPEClass(NamedTuple):
    """The part of a tokenizer that a class of transformers has in its code.

    special: its special tokens, unless a file names others.
    """

    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any]
    special: dict[str, str]


GPT2 = BPEClass(None, byte_level(use_regex=True), {"bos_token": END, "eos_token": END, "unk_token": END})
QWEN2_CLASS = BPEClass({"type": "NFC"}, by_regex(QWEN2), {"eos_token": END, "pad_token": END, "unk_token": END})
CLASSES = {"GPT2Tokenizer": GPT2, "CodeGenTokenizer": GPT2, "Qwen2Tokenizer": QWEN2_CLASS}
MODEL_TYPES = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen2_moe": "Qwen2Tokenizer",
               "qwen3": "Qwen2Tokenizer", "qwen3_moe": "Qwen2Tokenizer"}
"""The class for a model's folder in which no file names it, by config.json's model_type."""


def bpe_state(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of tokenizer.json for a folder with `FILES`, without added tokens.

    Args:
        config: tokenizer_config.json.

    Raises:
        UserError: naming the file and the field, if the class is missing or unknown here, or a file is broken.
    """
    name, place = _class_name(folder, config)
    if name is None:
        raise UserError(f"{folder}: nothing says how the tokenizer of {' and '.join(FILES)} splits text: its "
                        "tokenizer_config.json needs tokenizer_class, or its config.json model_type")
    if name not in CLASSES:
        raise UserError(f"{place}: {printable(name)} with {' and '.join(FILES)} cannot be read, only "
                        f"{', '.join(CLASSES)}; convert it once: {conversion(folder)}")
    kind = CLASSES[name]
    steps = kind.pre_tokenizer
    if config.get("add_prefix_space") and kind is GPT2:
        steps = byte_level(use_regex=True, add_prefix_space=True)
    vocab = _vocabulary(folder / "vocab.json")
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": kind.normalizer,
            "pre_tokenizer": steps, "post_processor": None, "decoder": byte_level(use_regex=True),
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": _merges(folder / "merges.txt")}}


def class_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Returns the special tokens that the class of a tokenizer brings along; {} if the class is not known here."""
    name, _ = _class_name(folder, config)
    return CLASSES[name].special if name in CLASSES else {}


def conversion(folder: Path) -> str:
    """Returns the command that writes tokenizer.json beside a tokenizer's other files."""
    return (f"python -c \"from transformers import AutoTokenizer as A; A.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r})\"")


def _class_name(folder: Path, config: dict[str, Any]) -> tuple[str | None, str]:
    """Returns the name of the class, and which file and field says it."""
    model = peek_object(folder / "config.json")
    for file, content in (("tokenizer_config.json", config), ("config.json", model)):
        name = content.get("tokenizer_class")
        if isinstance(name, str):
            return name.removesuffix("Fast"), f"{folder / file}: tokenizer_class"
    kind = str(model.get("model_type"))
    return MODEL_TYPES.get(kind), f"{folder / 'config.json'}: model_type"


def _vocabulary(path: Path) -> dict[str, int]:
    vocab = parse_json(read_text(path), str(path), "a JSON object")
    if not isinstance(vocab, dict) or not vocab:
        raise UserError(f"{path}: expected an object of tokens and ids, found {describe(vocab)}")
    for token, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise UserError(f"{path}: {printable(token)}: expected an id, found {describe(token_id)}")
    return vocab


def _merges(path: Path) -> list[list[str]]:
    lines = read_text(path).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if line.startswith("#version") or not line.strip():
            continue
        if len(pair) != 2:
            raise UserError(f"{path}:{number}: expected two tokens, found {line[:40]!r}")
        merges.append(pair)
    return merges
