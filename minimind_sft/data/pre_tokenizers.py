"""The ways in which byte-level BPE tokenizers split text before they merge, by their names in GGUF files.

tokenizer.json spells the splitting out; a GGUF file has only a name (`tokenizer.ggml.pre`), which llama.cpp translates
(src/llama-vocab.cpp). The expressions are those of the tokenizer that a name comes from.
"""

from dataclasses import dataclass
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"?\p{L}+|", r"?[\p{L}\p{M}]+|").replace(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{M}\p{N}]+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

DIGITS = {"type": "Digits", "individual_digits": True}


def byte_level(use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    """Returns the step that spells bytes as characters; with `use_regex` it first splits text as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def split_at(regex: str) -> dict[str, Any]:
    """Returns a step that cuts text around each match of `regex`."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def by_regex(regex: str) -> dict[str, Any]:
    """Returns the pre-tokenizer that cuts text into the matches of `regex`."""
    return in_sequence(split_at(regex), byte_level(use_regex=False))


def in_sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """Returns the pre-tokenizer of several steps."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


@dataclass(frozen=True)
class PreTokenizer:
    """One way to split text.

    steps: `pre_tokenizer` in tokenizer.json.
    ignore_merges: whether a piece that is itself a token becomes that token, whatever the merges say; the field of this
        name in tokenizer.json's `model`.
    names: its names in GGUF files; the first is the one to write.
    adds_bos: whether texts begin with bos if the file does not say.
    """

    steps: dict[str, Any]
    names: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


# llama.cpp's fallback for files whose writer did not recognise the tokenizer; no model is trained with it.
UNRECOGNISED = PreTokenizer(in_sequence(
    *map(split_at, (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), byte_level(use_regex=False)),
    ("default",))

PRE_TOKENIZERS = (
    PreTokenizer(byte_level(use_regex=True), ("gpt-2", "phi-2")),  # MiniMind-3's as well
    PreTokenizer(in_sequence(DIGITS, byte_level(use_regex=True)), ("smollm", "starcoder")),  # the bundled one as well
    PreTokenizer(by_regex(QWEN2), ("qwen2", "deepseek-r1-qwen", "megrez")),
    PreTokenizer(by_regex(QWEN35), ("qwen35",)),
    PreTokenizer(by_regex(LLAMA3), ("llama-bpe", "llama3", "llama-v3"), ignore_merges=True, adds_bos=True),
    PreTokenizer(by_regex(LLAMA3), ("smaug-bpe", "dbrx")),
    PreTokenizer(by_regex(TEKKEN), ("tekken",), ignore_merges=True, adds_bos=True),
    UNRECOGNISED,
)

BY_NAME = {name: one for one in PRE_TOKENIZERS for name in one.names}


def pre_tokenizer_name(state: dict[str, Any]) -> str | None:
    """Returns the name in GGUF files for how the tokenizer of this tokenizer.json splits text; None if it has none."""
    model, steps = state["model"], _canonical(state.get("pre_tokenizer"))
    return next((one.names[0] for one in PRE_TOKENIZERS
                 if _canonical(one.steps) == steps and one.ignore_merges == bool(model.get("ignore_merges"))), None)


def _canonical(steps: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Lists the steps, without nested sequences and `trim_offsets`, which moves no border between tokens."""
    if steps is None:
        return []
    if steps["type"] == "Sequence":
        return [step for part in steps["pretokenizers"] for step in _canonical(part)]
    return [{name: value for name, value in steps.items() if name != "trim_offsets"}]
