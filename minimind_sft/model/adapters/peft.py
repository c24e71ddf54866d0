"""PEFT's adapters: a folder with adapter_config.json."""

from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.config import ModelConfig

CONFIG = "adapter_config.json"


def read_peft(folder: Path, config: ModelConfig) -> Adapter:
    """Reads the folder.

    Raises:
        UserError: always.
    """
    raise UserError(f"{folder}: an adapter of PEFT, which cannot be read yet")
