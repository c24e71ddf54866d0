"""Makes a tokenizer from the metadata of a GGUF file, which hold vocabulary, merges and chat templates.

The fields are those of ggml's docs/gguf.md; llama.cpp's src/llama-vocab.cpp says what they mean. A file does not say
whether the tokenizer that its model was trained with normalises text first (Qwen's composes accents, NFC); like
llama.cpp, this one does not.
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.data.pre_tokenizers import BY_NAME, UNRECOGNISED, byte_level
from minimind_sft.data.tokenizer_files import TokenizerFiles
from minimind_sft.data.tokenizer_state import MAX_ADDED, MAX_MERGES, MAX_TOKENS
from minimind_sft.errors import UserError, describe, printable
from minimind_sft.gguf_file import GGUFFile
from minimind_sft.terminal import counted

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Types of tokens. Unused ones fill the embedding up to its size; no text becomes one."""
TYPES = set(range(7))
"""Of the others, 0 means nothing and 6 is a byte."""

SPECIAL_FIELDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id",
                  "unk_token": "unknown_token_id"}
OTHER_MODELS = {"gemma4": "Gemma's", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV"}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
       "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
MAX_SQUARES = 200_000_000
"""The sum of the squared lengths of SentencePiece's tokens; that of the largest vocabularies is a tenth of it."""
SPACE = "\u2581"
"""How SentencePiece writes a space."""
FROM_FOLDER = "--tokenizer_path FOLDER can name the folder of the same model's tokenizer from Hugging Face"


def read_gguf_tokenizer(path: Path) -> TokenizerFiles:
    """Reads what a tokenizer folder would hold from a GGUF file; chat templates are in its `config`.

    Raises:
        UserError: naming the file, the field and what to do, if the metadata are incomplete or contradict themselves,
            or if the tokenizer is of another kind.
    """
    fields = _Fields(path, GGUFFile(path).metadata)
    model = fields.value("model", str)
    if model not in ("gpt2", "llama"):
        known = OTHER_MODELS.get(model, "of an unknown kind")
        raise fields.error("model", f"the tokenizer is {known} ({printable(model)}), and only byte-level BPE (gpt2) "
                                    f"and SentencePiece's BPE (llama) can be read from a GGUF file; {FROM_FOLDER}")
    tokens = fields.strings("tokens", MAX_TOKENS)
    types = fields.numbers("token_type", len(tokens), int)
    if unknown := set(types) - TYPES:
        raise fields.error("token_type", f"{min(unknown)} is no type of token, expected 0 to {max(TYPES)}")
    vocab = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}
    if len(vocab) < len(tokens) - types.count(UNUSED):
        twice = next(token for index, token in enumerate(tokens) if types[index] != UNUSED and vocab[token] != index)
        raise fields.error("tokens", f"{twice!r} is in the list twice")
    added = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": types[index] != USER_DEFINED}
             for token, index in vocab.items() if types[index] in (UNKNOWN, CONTROL, USER_DEFINED)]
    if len(added) > MAX_ADDED:
        raise fields.error("token_type", f"expected at most {MAX_ADDED:,} control tokens, found {len(added):,}")
    special = {name: token for name, field in SPECIAL_FIELDS.items()
               if (token := _token_named(fields, field, tokens, types)) is not None}
    how, notices = _sentencepiece(fields, vocab, types) if model == "llama" else _byte_level(fields, vocab)
    state = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None,
             **how.steps}
    adds_bos = fields.optional("add_bos_token", bool, "true or false")
    return TokenizerFiles(state, special, {"chat_template": _templates(fields)}, {}, notices,
                          bool(how.adds_bos if adds_bos is None else adds_bos))


class _Fields:
    """The fields `tokenizer.ggml.*` of a file, with checks of their types."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]):
        self.path, self.metadata = path, metadata

    def error(self, name: str, message: str) -> UserError:
        return UserError(f"{self.path}: tokenizer.ggml.{name}: {message}")

    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def value(self, name: str, kind: type) -> Any:
        """Returns the value of a field that must be there.

        Raises:
            UserError: naming the field, if it is missing or of another kind.
        """
        found = self.get(name)
        if not isinstance(found, kind):
            what = "no such field" if found is None else describe(found)
            raise self.error(name, f"expected {'a list' if kind is list else 'a string'}, found {what}; {FROM_FOLDER}")
        return found

    def optional(self, name: str, kind: type, expected: str) -> Any:
        """Returns the value of a field, or None without it.

        Raises:
            UserError: naming the field, if it is of another kind.
        """
        found = self.get(name)
        if not isinstance(found, kind | None):
            raise self.error(name, f"expected {expected}, found {describe(found)}")
        return found

    def strings(self, name: str, limit: int) -> list[str]:
        """Returns a list of at most `limit` strings.

        Raises:
            UserError: naming the field, if it is anything else.
        """
        found = self.value(name, list)
        if len(found) > limit:
            raise self.error(name, f"expected at most {limit:,} entries, found {len(found):,}")
        if not all(isinstance(one, str) for one in found):
            raise self.error(name, "expected a list of strings")
        return found

    def numbers(self, name: str, count: int, kind: type) -> list[Any]:
        """Returns a list of `count` numbers of a kind, int or float.

        Raises:
            UserError: naming the field, if it is anything else.
        """
        found = self.value(name, list)
        if not all(type(one) is kind for one in found):
            raise self.error(name, f"expected a list of {'whole ' * (kind is int)}numbers")
        if len(found) != count:
            raise self.error(name, f"{counted(len(found), 'value')} for {counted(count, 'token')}")
        return found


class _Kind(NamedTuple):
    """Normalizer, pre-tokenizer, model and decoder of tokenizer.json; whether texts begin with bos by default."""

    steps: dict[str, Any]
    adds_bos: bool


def _byte_level(fields: _Fields, vocab: dict[str, int]) -> tuple[_Kind, list[str]]:
    """Returns byte-level BPE, and notices about it."""
    name, notices = fields.optional("pre", str, "a string"), []
    if name is None or BY_NAME.get(name) is UNRECOGNISED:
        name = "missing" if name is None else name
        notices.append(f"{fields.path}: tokenizer.ggml.pre: {name}: the program that wrote the file did not recognise "
                       "how its tokenizer splits text; a default is used, as in llama.cpp, but the model was trained "
                       f"with another way; {FROM_FOLDER}")
    elif name not in BY_NAME:
        raise fields.error("pre", f"the unknown pre-tokenizer {printable(name)}, expected one of "
                                  f"{', '.join(BY_NAME)}; {FROM_FOLDER}")
    how = BY_NAME.get(name, UNRECOGNISED)
    model = {**BPE, "vocab": vocab, "merges": _merges(fields), "ignore_merges": how.ignore_merges}
    return _Kind({"normalizer": None, "pre_tokenizer": how.steps, "model": model,
                  "decoder": byte_level(use_regex=True)}, how.adds_bos), notices


def _sentencepiece(fields: _Fields, vocab: dict[str, int], types: list[int]) -> tuple[_Kind, list[str]]:
    """Returns SentencePiece's BPE with byte fallback, which merges the pair that makes the token of the best score.

    llama.cpp puts a space before the text and after every control token, unless `add_space_prefix` is off.
    """
    family = fields.metadata.get("general.architecture")
    if family != "llama":  # Phi-3's control tokens take the blanks after them, Gemma's scores are no order of merges
        raise fields.error("model", f"SentencePiece (llama) can be read for the architecture llama, found "
                                    f"{printable(str(family))}; {FROM_FOLDER}")
    scores = fields.numbers("scores", len(types), float)
    if not all(map(isfinite, scores)):
        raise fields.error("scores", "expected finite numbers")
    best_first = sorted((token for token, index in vocab.items() if types[index] == NORMAL),
                        key=lambda token: -scores[vocab[token]])
    if sum(len(token)**2 for token in best_first) > MAX_SQUARES:
        raise fields.error("tokens", "the tokens are so long that finding their merges takes too much time")
    merges = merges_in_order(best_first, vocab)
    unknown = next((token for token, index in vocab.items() if types[index] == UNKNOWN), None)
    prepends = fields.optional("add_space_prefix", bool, "true or false") is not False
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prepends else []
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return _Kind({
        "normalizer": {"type": "Sequence", "normalizers": [
            *prepend, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": None,
        "model": {**BPE, "vocab": vocab, "merges": merges, "unk_token": unknown, "fuse_unk": True,
                  "byte_fallback": True},
        "decoder": {"type": "Sequence", "decoders": decoders if prepend else decoders[:-1]}}, True), []


def merges_in_order(tokens: list[str], vocab: Mapping[str, int]) -> list[list[str]]:
    """Returns every pair of tokens that makes one of `tokens`, in their order: SentencePiece's merges, best first."""
    return [[token[:at], token[at:]] for token in tokens
            for at in sorted((at for at in range(1, len(token)) if token[:at] in vocab and token[at:] in vocab),
                             key=lambda at: (vocab[token[:at]], vocab[token[at:]]))]


def _token_named(fields: _Fields, name: str, tokens: list[str], types: list[int]) -> str | None:
    """Returns the token whose id a field holds; None without the field."""
    token_id = fields.get(name)
    if token_id is None:
        return None
    if type(token_id) is not int or not 0 <= token_id < len(tokens) or types[token_id] == UNUSED:
        raise fields.error(name, f"expected the id of a token, found {describe(token_id)}")
    return tokens[token_id]


def _merges(fields: _Fields) -> list[list[str]]:
    """Returns the merges as pairs; a space separates the two, and the first may begin with one."""
    pairs = []
    for number, merge in enumerate(fields.strings("merges", MAX_MERGES)):
        at = merge.find(" ", 1)
        if at < 0:
            raise fields.error("merges", f"number {number}: expected two tokens, found {merge!r}")
        pairs.append([merge[:at], merge[at + 1:]])
    return pairs


def _templates(fields: _Fields) -> str | dict[str, Any] | None:
    """Returns the chat template, or all templates by name if some have names."""
    default = fields.metadata.get("tokenizer.chat_template")
    names = fields.metadata.get("tokenizer.chat_templates") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{fields.path}: tokenizer.chat_templates: expected a list of names, found {describe(names)}")
    named = {name: fields.metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    return {**({"default": default} if default is not None else {}), **named} if named else default
