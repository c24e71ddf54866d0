"""Trains a byte-level BPE tokenizer: text in, tokenizer.json and tokenizer_config.json out.

    python trainer/train_tokenizer.py --data_path my_text.jsonl --save_dir my_tokenizer

--overwrite replaces a tokenizer in the folder, and moves it to tokenizer.previous there.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from minimind_sft.data.reading import read_texts
from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError, run_program
from minimind_sft.set_aside import check_replaceable, is_there, set_aside
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import TokenizerSettings
from minimind_sft.terminal import progress_bar, say
from minimind_sft.writing import check_writable, create_text, write_together

# MiniMind-3's control tokens, in the order of their ids. Decoding may skip the special ones; the others belong to
# what a model says.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>",
    "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>",
)
SPOKEN_TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
    *(f"<|buffer{number}|>" for number in range(1, 10)),
)
BYTES = 256
# Longer tokens would be phrases of the training text rather than words; 11 bytes hold 3 Chinese characters.
MAX_TOKEN_BYTES = 11
MIN_FREQUENCY = 2
# Every turn opens with its role. These words are counted so often, besides the text, that each becomes one token.
ROLES = ("system", "user", "assistant")
ROLE_FREQUENCY = 10_000

# Merges within a word take time quadratic in its length, so longer runs of one kind of character are cut.
MAX_RUN = 2000
LONG_RUN = re.compile(rf"([^\W\d_]{{{MAX_RUN}}}|(?:[^\w\s]|_){{{MAX_RUN}}}|\s{{{MAX_RUN}}})")

# All files that describe a tokenizer: one left over from another tokenizer would change what the new files mean.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "chat_template.jinja")


def main() -> None:
    settings = parse_flags(TokenizerSettings, description=__doc__)
    smallest = len(SPECIAL_TOKENS) + len(SPOKEN_TOKENS) + BYTES
    if settings.vocab_size < smallest:
        raise UserError(f"--vocab_size is {settings.vocab_size}, expected at least {smallest}: the control tokens and "
                        "the 256 bytes")
    if not settings.data_path:
        raise UserError("--data_path: expected one or more files (docs/data.md lists the kinds)")
    paths = find_files(settings.data_path, "--data_path")
    folder = Path(settings.save_dir)
    check_writable(folder, "--save_dir")
    previous = folder / "tokenizer.previous"
    existing = [path for name in TOKENIZER_FILES if is_there(path := folder / name)]
    check_replaceable(existing, settings.overwrite, "choose another --save_dir", previous)

    tokenizer = train(texts_of(paths), settings.vocab_size)
    if tokenizer.get_vocab_size() < settings.vocab_size:
        found = tokenizer.get_vocab_size()
        raise UserError(f"--data_path: the text gives only {found} tokens, --vocab_size is {settings.vocab_size}; give "
                        f"more text or --vocab_size {found}")
    write_together({folder / name: partial(write_json, value)
                    for name, value in (("tokenizer_config.json", tokenizer_config()),
                                        ("tokenizer.json", json.loads(tokenizer.to_str())))},
                   before_replacing=lambda: set_aside(existing, previous) if existing else None)
    if existing:
        say(f"overwrite   {', '.join(map(str, existing))} moved to {previous}")
    say(f"{folder}: tokenizer.json, tokenizer_config.json with {tokenizer.get_vocab_size()} tokens")


def texts_of(paths: Iterable[Path]) -> Iterator[str]:
    """Yields the roles, many times, and all texts of the files."""
    for role in ROLES:
        yield from [role] * ROLE_FREQUENCY
    for path in paths:
        for text in progress_bar(read_texts(path), label=path.name, unit=" texts", leave=True):
            yield from filter(None, LONG_RUN.split(text))


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains the merges. Ids: control tokens, the 256 bytes, merges. Digits stay single, so that sums line up."""
    control = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS + SPOKEN_TOKENS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=control, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_BYTES + 1, min_frequency=MIN_FREQUENCY, show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:  # the trainer makes all of them special
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def tokenizer_config() -> dict:
    """Describes the tokenizer for Hugging Face's AutoTokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": files("minimind_sft.data").joinpath("chatml.jinja").read_text(encoding="utf-8"),
    }


def write_json(value: dict, path: Path) -> None:
    create_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
