"""Puts together an export: weights, and the tokenizer and chat template that belong to them."""

from dataclasses import dataclass
from functools import cached_property

import torch

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import END_OF_DOCUMENT, Tokenizer
from minimind_sft.model.loaded import EMBEDDING, Weights


@dataclass(frozen=True)
class Export:
    """A model as it is exported.

    template: None for weights that only continue text.
    dtype: the dtype to write: float32, float16, bfloat16, or q8_0 in a GGUF file.
    named_stop_ids: further tokens that end an answer, as the folder of a base model names them.
    """

    weights: Weights
    tokenizer: Tokenizer
    template: ChatTemplate | None
    dtype: str
    named_stop_ids: frozenset[int] = frozenset()

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens at which an answer ends, the end of a turn first."""
        end_of_turn = None if self.template is None else self.template.end_of_turn_id
        ids = (end_of_turn, self.tokenizer.eos_id, self.tokenizer.token_to_id(END_OF_DOCUMENT),
               *sorted(self.named_stop_ids))
        named = (one for one in ids if one is not None and 0 <= one < self.tokenizer.vocab_size)
        return list(dict.fromkeys(one for one in named if self.tokenizer.id_to_token(one) is not None))


def stored_dtype(weights: Weights) -> str:
    """Returns the dtype of the embedding as it is stored: float32 for anything that is not float16 or bfloat16."""
    dtype = weights.tensors[EMBEDDING].dtype
    return str(dtype).removeprefix("torch.") if dtype in (torch.float16, torch.bfloat16) else "float32"
