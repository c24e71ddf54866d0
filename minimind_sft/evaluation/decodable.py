"""Answers of a model in training: of a copy of it, or of a sharded model itself."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minimind_sft.errors import UserError
from minimind_sft.inference.request import Request, Token
from minimind_sft.inference.sampling import Sampler
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kv_cache import CachedPieces, KVCache, Piece, cache_dtype


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


@torch.inference_mode()
def answer_in_step(model: MiniMindForCausalLM, requests: Sequence[Request], passes: int, device: torch.device
                   ) -> list[list[int]]:
    """Returns the answers of a sharded model, of up to `passes` tokens each.

    The model gathers its weights in every pass, which all ranks must make. So there are always `passes` of them.

    Raises:
        UserError: if no token can be chosen.
    """
    sampler = Sampler(model.config.vocab_size)
    sequences = [_Sequence(request, list(request.prompt)) for request in requests]
    for number, sequence in enumerate(sequences):
        sequence.place = sum(len(earlier.tokens) + passes for earlier in sequences[:number])
        sampler.add(sequence.request)
    places = sum(len(sequence.tokens) + passes for sequence in sequences)
    cache = KVCache(model.config, places, cache_dtype(torch.empty(0, device=device)), device)
    running = sequences
    for _ in range(passes):
        context = CachedPieces(cache, [sequence.piece for sequence in running])
        new = [token for sequence in running for token in sequence.tokens[sequence.cached:]]
        ids_T = torch.tensor(new, dtype=torch.int64, device=device)
        logits_SV = model.logits(model.hidden_states(ids_T, context.positions_T, context, context.last_S))
        tokens = sampler.choose(logits_SV, [sequence.request for sequence in running]) if running else []
        running = [sequence for sequence, token in zip(running, tokens, strict=True) if sequence.goes_on(token)]
    if problem := next((request.problem for request in requests if request.problem), None):
        raise UserError(problem)
    return [sequence.tokens[len(sequence.request.prompt):] for sequence in sequences]


@dataclass
class _Sequence:
    """A prompt and its answer so far.

    place: where the cache keeps its first token.
    cached: how many of the tokens are there.
    """

    request: Request
    tokens: list[int]
    place: int = 0
    cached: int = 0

    @property
    def piece(self) -> Piece:
        return Piece(self.place, self.cached, len(self.tokens) - self.cached, len(self.tokens))

    def goes_on(self, token: Token | None) -> bool:
        """Adds the next token, unless the answer ends before it. Returns whether there is a next one."""
        if token is None or token.id in self.request.stop_ids:
            return False
        self.cached = len(self.tokens)
        self.tokens.append(token.id)
        return True
