"""Random weights with the bundled tokenizer and template, ready to be exported."""

from chats import BUNDLED, TOKENIZER
from export_models import random_weights

from minimind_sft.export.model import Export
from minimind_sft.model.config import ModelConfig


def export_of(config: ModelConfig, dtype: str = "float32") -> Export:
    return Export(random_weights(config), TOKENIZER, BUNDLED, dtype)
