"""Finds the tokens that end an answer or a document, and how a document begins."""

from collections.abc import Collection
from pathlib import Path

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import brings_tokenizer
from minimind_sft.errors import UserError, describe
from minimind_sft.files import read_object
from minimind_sft.set_aside import is_there

CONFIGS = ("generation_config.json", "config.json")
"""Files of a Hugging Face folder that may name ends of a text; the first that does counts, as in transformers."""


def chat_stop_ids(template: ChatTemplate, named: Collection[int] = ()) -> set[int]:
    """Returns the tokens that end an answer in a chat.

    They are the template's end of turn, the end of a document if the tokenizer has one, and those of `named`.
    """
    return {template.end_of_turn_id, *document_end_ids(template.tokenizer), *named}


def document_end_ids(tokenizer: Tokenizer, framed: bool = False) -> set[int]:
    """Returns the tokens that end a document, as far as the tokenizer has them.

    Args:
        framed: whether documents are between bos and eos.
    """
    ends = {tokenizer.eos_id} if framed and tokenizer.eos_id is not None else set()
    try:
        return {tokenizer.end_of_document_id, *ends}
    except UserError:
        return ends


def document_ids(tokenizer: Tokenizer, text: str, framed: bool) -> list[int]:
    """Returns the ids of the beginning of a document, as pretraining shows it.

    Args:
        framed: whether documents are between bos and eos.
    """
    ids = tokenizer.encode_ordinary(text)
    return [tokenizer.bos_id, *ids] if framed and tokenizer.bos_id is not None else ids


def named_stop_ids(weights: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the tokens that a base model says end a text: those in its folder's configuration, or else eos.

    Our own weights say nothing about it: in training, the chat template decides how an answer ends.

    Raises:
        UserError: if a file says something other than ids; names the file and the field.
    """
    if not brings_tokenizer(weights):
        return frozenset()
    for name in CONFIGS:
        if is_there(weights / name) and (ids := _named_in(weights / name)):
            return ids
    return frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})


def _named_in(path: Path) -> frozenset[int]:
    found = read_object(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(each) is int for each in ids):
        raise UserError(f"{path}: eos_token_id: expected a token's id or a list of ids, found {describe(found)}")
    return frozenset(ids)
