"""Makes a tokenizer from the metadata of a GGUF file, which hold vocabulary, merges and chat templates.

The fields are those of ggml's docs/gguf.md; llama.cpp's src/llama-vocab.cpp says what they mean. Byte-level BPE only
("gpt2"). A file does not say whether the tokenizer that its model was trained with normalises text first (Qwen's
composes accents, NFC); like llama.cpp, this one does not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind_sft.data.pre_tokenizers import BY_NAME, UNRECOGNISED, PreTokenizer, byte_level
from minimind_sft.data.tokenizer_files import TokenizerFiles
from minimind_sft.errors import UserError, describe, printable
from minimind_sft.gguf_file import GGUFFile

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Types of tokens. Unused ones fill the embedding up to its size; no text becomes one."""

SPECIAL_FIELDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id",
                  "unk_token": "unknown_token_id"}
OTHER_MODELS = {"llama": "SentencePiece", "gemma4": "SentencePiece", "bert": "WordPiece", "t5": "Unigram",
                "rwkv": "RWKV"}
FROM_FOLDER = "--tokenizer_path FOLDER can name the folder of the same model's tokenizer from Hugging Face"


def read_gguf_tokenizer(path: Path) -> TokenizerFiles:
    """Reads what a tokenizer folder would hold from a GGUF file; chat templates are in its `config`.

    Raises:
        UserError: naming the file, the field and what to do, if the metadata are incomplete or contradict themselves,
            or if the tokenizer is of another kind.
    """
    fields = _Fields(path, GGUFFile(path).metadata)
    model = fields.value("model", str)
    if model != "gpt2":
        raise fields.error("model", f"the tokenizer is {OTHER_MODELS.get(model, 'of an unknown kind')} ({model}), and "
                                    f"only byte-level BPE (gpt2) can be read from a GGUF file; {FROM_FOLDER}")
    how, notices = _pre_tokenizer(fields)
    tokens = fields.strings("tokens")
    types = fields.numbers("token_type", len(tokens))
    vocab = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}
    if len(vocab) < len(tokens) - types.count(UNUSED):
        twice = next(token for index, token in enumerate(tokens) if types[index] != UNUSED and vocab[token] != index)
        raise fields.error("tokens", f"{twice!r} is in the list twice")
    added = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": types[index] != USER_DEFINED}
             for token, index in vocab.items() if types[index] in (UNKNOWN, CONTROL, USER_DEFINED)]
    special = {name: token for name, field in SPECIAL_FIELDS.items()
               if (token := _token_named(fields, field, tokens, types)) is not None}
    state = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
             "pre_tokenizer": how.steps, "post_processor": None, "decoder": byte_level(use_regex=True),
             "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                       "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                       "ignore_merges": how.ignore_merges, "vocab": vocab, "merges": _merges(fields)}}
    adds_bos = bool(how.adds_bos if fields.get("add_bos_token") is None else fields.get("add_bos_token"))
    return TokenizerFiles(state, special, {"chat_template": _templates(fields)}, {}, notices, adds_bos)


class _Fields:
    """The fields `tokenizer.ggml.*` of a file, with checks of their types."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]):
        self.path, self.metadata = path, metadata

    def error(self, name: str, message: str) -> UserError:
        return UserError(f"{self.path}: tokenizer.ggml.{name}: {message}")

    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def value(self, name: str, kind: type) -> Any:
        """Returns the value of a field that must be there."""
        found = self.get(name)
        if not isinstance(found, kind):
            what = "no such field" if found is None else describe(found)
            raise self.error(name, f"expected {'a list' if kind is list else 'a string'}, found {what}; {FROM_FOLDER}")
        return found

    def strings(self, name: str) -> list[str]:
        found = self.value(name, list)
        if not all(isinstance(one, str) for one in found):
            raise self.error(name, "expected a list of strings")
        return found

    def numbers(self, name: str, count: int) -> list[int]:
        found = self.value(name, list)
        if len(found) != count:
            raise self.error(name, f"{len(found):,} values for {count:,} tokens")
        return found


def _pre_tokenizer(fields: _Fields) -> tuple[PreTokenizer, list[str]]:
    """Returns how text is split before merges, and notices."""
    name = fields.get("pre")
    if name is None or BY_NAME.get(name) is UNRECOGNISED:
        return UNRECOGNISED, [f"{fields.path}: tokenizer.ggml.pre: {'missing' if name is None else name}: the program "
                              "that wrote the file did not recognise how its tokenizer splits text; a default is used, "
                              f"as in llama.cpp, but the model was trained with another way; {FROM_FOLDER}"]
    if name not in BY_NAME:
        raise fields.error("pre", f"the unknown pre-tokenizer {printable(str(name))}, expected one of "
                                  f"{', '.join(BY_NAME)}; {FROM_FOLDER}")
    return BY_NAME[name], []


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
    for number, merge in enumerate(fields.strings("merges")):
        at = merge.find(" ", 1)
        if at < 0:
            raise fields.error("merges", f"number {number}: expected two tokens, found {merge!r}")
        pairs.append([merge[:at], merge[at + 1:]])
    return pairs


def _templates(fields: _Fields) -> str | dict[str, Any] | None:
    """Returns the chat template, or all templates by name if some have names."""
    default = fields.metadata.get("tokenizer.chat_template")
    names = fields.metadata.get("tokenizer.chat_templates") or []
    named = {name: fields.metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    return {**({"default": default} if default is not None else {}), **named} if named else default
