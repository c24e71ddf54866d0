"""A tokenizer as the metadata of a GGUF file.

llama.cpp has its own BPE, byte-level or SentencePiece's, and takes from the file what differs: vocabulary, types of
tokens, merges with a name for how text is split before, or scores. A tokenizer that does more than that is refused.
"""

import re
from typing import Any

from minimind_sft.data.gguf_tokenizer import SPACE, merges_in_order
from minimind_sft.data.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer_name
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError, describe
from minimind_sft.export.model import Export

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_TOKEN = 1, 2, 3, 4, 5, 6
"""ggml's types of tokens. Added tokens that are not special are user-defined: text always becomes them."""
COMPOSING = ("qwen2", "qwen35")
"""Pre-tokenizers of tokenizers that compose accents first (NFC). llama.cpp leaves that out, for Qwen's own files as
well, so text that is not composed gets other ids there."""

BYTE = re.compile("<0x[0-9A-F]{2}>")
PREPEND = {"type": "Prepend", "prepend": SPACE}
SPACES = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
"""SentencePiece's way of writing spaces."""


def tokenizer_metadata(export: Export) -> dict[str, Any]:
    """Returns the metadata that describe tokenizer and chat template; lists hold one value per row of the embedding.

    Raises:
        UserError: naming the field of tokenizer.json that llama.cpp cannot express.
    """
    tokenizer, template = export.tokenizer, export.template
    tokens, types = _tokens(tokenizer, export.weights.config.vocab_size)
    is_sentencepiece = tokenizer.state["model"].get("byte_fallback")
    metadata = {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        **(_sentencepiece(tokenizer.state, tokens, types) if is_sentencepiece else _byte_level(tokenizer.state)),
        "tokenizer.ggml.add_bos_token": adds_bos(export), "tokenizer.ggml.add_eos_token": False,
    }
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id,
           "unknown": tokenizer.unknown_id, "eot": None if template is None else template.end_of_turn_id}
    metadata |= {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in ids.items() if token_id is not None}
    if template is not None:
        source, *tool_source = template.complete_sources()
        metadata["tokenizer.chat_template"] = source
        for one in tool_source:
            metadata |= {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": one}
    return metadata


def adds_bos(export: Export) -> bool:
    """Tells whether llama.cpp shall put bos before every text; it does so once where the chat template writes it too.

    Not if the template does without: then no chat that the model was trained on began with it.
    """
    tokenizer, template = export.tokenizer, export.template
    if template is None or not tokenizer.adds_bos:
        return tokenizer.adds_bos
    return template.render([{"role": "user", "content": ""}]).startswith(tokenizer.special["bos_token"])


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Returns the text and the type of each row's token; rows without one are unused."""
    added = {entry["content"]: entry for entry in tokenizer.state["added_tokens"]}
    for content, entry in added.items():
        for rule in ("single_word", "lstrip", "rstrip"):
            if entry.get(rule):
                raise UserError(f"tokenizer.json: added_tokens: {content!r} has {rule}, which a GGUF file cannot say")
    tokens, types = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    if tokenizer.vocab_size > rows:
        raise UserError(f"tokenizer.json: {tokenizer.vocab_size:,} tokens, but the model's embedding has {rows:,} rows")
    for row in range(tokenizer.vocab_size):
        if (token := tokenizer.id_to_token(row)) is not None:
            tokens[row] = token
            types[row] = NORMAL if token not in added else CONTROL if added[token]["special"] else USER_DEFINED
    return tokens, types


def _byte_level(state: dict[str, Any]) -> dict[str, Any]:
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre_tokenizer(state),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(state)],
            "tokenizer.ggml.add_space_prefix": False}


def _sentencepiece(state: dict[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Returns the metadata of SentencePiece's BPE: llama.cpp merges the pair that makes the token of the best score.

    Raises:
        UserError: if the merges are not those of such scores, or the tokenizer does something else.
    """
    model, vocab = state["model"], state["model"]["vocab"]
    merges = _merges(state)
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    steps = (state.get("normalizer") or {}).get("normalizers")
    if state.get("pre_tokenizer") is not None or steps not in (SPACES, [PREPEND, *SPACES]):
        raise UserError("tokenizer.json: normalizer: does more than write spaces as \u2581, which a GGUF file cannot "
                        "say; --to huggingface can write it")
    normal = [token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL and not BYTE.fullmatch(token)]
    worst = len(merges)
    if any(character not in vocab for character in set("".join(normal))):
        raise UserError("tokenizer.json: model.vocab: lacks characters of its longer tokens, which llama.cpp merges "
                        "nevertheless; --to huggingface can write it")
    if merges_in_order(sorted(normal, key=lambda token: rank.get(token, worst)), vocab) != merges:
        raise UserError("tokenizer.json: model.merges: are in no order of the tokens, which a GGUF file cannot say; "
                        "--to huggingface can write it")
    kinds = [BYTE_TOKEN if BYTE.fullmatch(token) else UNKNOWN if token == model.get("unk_token") else kind
             for token, kind in zip(tokens, types, strict=True)]
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.scores": [float(-rank.get(token, worst)) if kind == NORMAL else 0.0
                                      for token, kind in zip(tokens, kinds, strict=True)],
            "tokenizer.ggml.add_space_prefix": PREPEND in steps}


def _merges(state: dict[str, Any]) -> list[list[str]]:
    return [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in state["model"]["merges"]]


def _pre_tokenizer(state: dict[str, Any]) -> str:
    """Returns the name of how text is split.

    Raises:
        UserError: if it has none, or if the tokenizer does something else that llama.cpp does not.
    """
    model, name = state["model"], pre_tokenizer_name(state)
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"tokenizer.json: model.type: is {describe(model['type'])}, a GGUF file is written only with "
                        "BPE")
    if name is None:
        known = ", ".join(one.names[0] for one in PRE_TOKENIZERS)
        raise UserError("tokenizer.json: pre_tokenizer: splits text in a way that has no name in GGUF files (known are "
                        f"{known}); --to huggingface can write it")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(field):
            raise UserError(f"tokenizer.json: model.{field}: is {describe(model[field])}, which a GGUF file cannot say")
    normalizer = state.get("normalizer")
    if normalizer and not (normalizer == {"type": "NFC"} and name in COMPOSING):
        raise UserError(f"tokenizer.json: normalizer: is {describe(normalizer.get('type'))}, which a GGUF file cannot "
                        "say; --to huggingface can write it")
    return name
