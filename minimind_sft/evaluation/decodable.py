"""Forms of a model in training that `generate_batch` can call."""

import copy
from types import SimpleNamespace

import torch
from torch import Tensor

from minimind_sft.model.attention import Context, Documents
from minimind_sft.model.decoder import MiniMindForCausalLM


def as_saved(model: MiniMindForCausalLM, dtype: torch.dtype) -> MiniMindForCausalLM:
    """Returns a copy of the model, in evaluation mode, as a chat loads it from the weights that the run writes.

    The parameters that train are rounded to `dtype`, in which they are saved; the others are shared with the model.
    """
    shared = [*(parameter for parameter in model.parameters() if not parameter.requires_grad), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared}).eval()
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.to(dtype))
    return copied


class ShardedModel:
    """A sharded model as `generate_batch` calls it. It gathers its weights in every pass, which all ranks must make."""

    training = False

    def __init__(self, model: MiniMindForCausalLM, device: torch.device):
        self._model, self.config, self._passes = model, model.config, 0
        self.embed_tokens = SimpleNamespace(weight=torch.empty(0, device=device))  # says where and how precise to cache
        self._nothing = torch.zeros(0, dtype=torch.int64, device=device)

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, context: Context,
                      read_N: Tensor | None = None) -> Tensor:
        self._passes += 1
        return self._model.hidden_states(input_ids_T, positions_T, context, read_N)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        return self._model.logits(hidden_ND)

    @torch.inference_mode()
    def complete(self, passes: int) -> None:
        """Makes passes over nothing until there have been `passes` of them."""
        while self._passes < passes:
            documents = Documents((0,), self._nothing.device)
            self.logits(self.hidden_states(self._nothing, documents.positions_T, documents))
