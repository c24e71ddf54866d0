"""Tokenizers in GGUF files: odd entries in the lists of tokens, types, scores and merges, and odd ids."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gguf

from hostile.tokenizers import MARK, base, data, inspected
from hostile.tries import Try

KIND = "tokenizers in GGUF files"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
ODD: dict[str, list[Any]] = {
    "tokens": ["", "x", "\0", "\x1b[2J\u202e", MARK, "\U000F0000", "a" * 1000, "a" * 1_000_000, "<|im_end|>",
               " ", "<0x41>"],
    "token_type": [0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, 7, -1, 2**31 - 1],
    "scores": [0.0, -1e38, 1e38, float("nan"), float("inf")],
    "merges": ["", " ", "a", "a b", "a b c", "\0 \0", "< |", "x" * 100_000, "i n", "t h"],
}
IDS = ("bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id")
ODD_FIELDS: dict[str, list[Any]] = {
    **{name: [0, 2, 7, 291, 10**6, 2**32 - 1, "2", True, -1.0] for name in IDS},
    "pre": ["default", "qwen2", "llama-bpe", "x", "", 5, True], "model": ["gpt2", "llama", "bert", "", 5],
    "add_bos_token": [True, False, 1, "no"], "add_space_prefix": [True, False, 0, "no"],
    "tokens": [[], [5], "x"], "token_type": [[], ["1"], [1.0], 3], "scores": [[], [1], "x"],
    "merges": [[], [0.5], "a b"]}


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    data(folder)
    path = folder / "tokenizer"
    kinds = {"byte-level": byte_level_fields(), "SentencePiece": sentencepiece_fields()}
    for name, fields in kinds.items():
        write(path, fields)
        yield inspected(folder, f"{name}, as it was", "accepted")
    changes = [(name, field, value) for name in kinds for field, values in ODD_FIELDS.items() for value in values]
    random.shuffle(changes)
    for name, field, value in changes[:count // 2]:
        write(path, {**kinds[name], field: value})
        yield inspected(folder, f"{name}: {field}: {value!r:.40}", "either")
    for _ in range(count // 2):
        name, fields = random.choice(sorted(kinds.items()))
        field = random.choice([one for one in ODD if one in fields])
        at, value = random.randrange(len(fields[field])), random.choice(ODD[field])
        write(path, {**fields, field: [*fields[field][:at], value, *fields[field][at + 1:]]})
        yield inspected(folder, f"{name}: {field}[{at}]: {value!r:.40}", "either")


def byte_level_fields() -> dict[str, Any]:
    """Returns the bundled tokenizer's fields, without most of its merges."""
    state, _ = base()
    control = {entry["content"]: CONTROL if entry["special"] else USER_DEFINED for entry in state["added_tokens"]}
    tokens = list(state["model"]["vocab"])
    return {"model": "gpt2", "pre": "smollm", "tokens": tokens,
            "token_type": [control.get(token, NORMAL) for token in tokens],
            "merges": [" ".join(pair) for pair in state["model"]["merges"]], "bos_token_id": 1, "eos_token_id": 2}


def sentencepiece_fields() -> dict[str, Any]:
    control = ["<unk>", "<|im_start|>", "<|im_end|>"]
    letters = [SPACE, *map(chr, range(33, 127)), "in", "th", f"{SPACE}th"]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    return {"model": "llama", "tokens": tokens, "token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256,
                                                               *[NORMAL] * len(letters)],
            "scores": [-float(index) for index in range(len(tokens))], "bos_token_id": 1, "eos_token_id": 2,
            "unknown_token_id": 0}


def write(path: Path, fields: dict[str, Any]) -> None:
    """Writes a GGUF file without tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        kind = gguf.GGUFValueType.get_type(value) if isinstance(value, list | str | bool | float) else None
        key = f"tokenizer.ggml.{name}"
        if kind == gguf.GGUFValueType.ARRAY and not value:  # the writer leaves out empty lists
            writer.add_uint32(key, 0)
        elif kind is None:
            writer.add_uint32(key, value)
        else:
            writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
