"""Lists our tensors: the names and shapes of a model's state dict."""

from functools import lru_cache

import torch

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.loaded import HEAD, Uninitialised


@lru_cache(maxsize=8)
def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's tensors by name, without a tied head. The caller must not change the result."""
    with torch.device("meta"), Uninitialised():  # without the second, PyTorch loads its compiler, for a second
        tensors = MiniMindForCausalLM(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()
            if not (name == HEAD and config.tie_word_embeddings)}
