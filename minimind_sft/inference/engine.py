"""Answers many requests at once: they join and leave at any step, and none changes the tokens of another.

A step reads a bounded part of the prompts that are still to be read, and computes the next token of all others in one
pass. How a request is computed depends on its own tokens alone:

- Prompts are read a page at a time, in a pass of its own for each page, cut at multiples of the page's size.
- Newest tokens of different sequences share a pass, in which each row gets the same bits whatever is beside it
  (rows.py), and each sequence is attended to by itself (kv_cache.py).
- The sampler treats each row by itself (sampling.py).

So a full page of a prompt holds the same bits in every request whose prompt begins with the same tokens, and only the
first one computes them; the others copy. Generated tokens are not shared, because a row in a pass of several pages is
not computed as one by one. An answer is read once when the prompt of the next turn contains it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.inference.cache import Pages, Span, page_keys
from minimind_sft.inference.lowering import LanguageModel
from minimind_sft.inference.request import Constraint as Constraint
from minimind_sft.inference.request import Request, Token
from minimind_sft.inference.rows import exact_rows, joined
from minimind_sft.inference.sampling import Sampler
from minimind_sft.model.kv_cache import CachedPieces, KVCache, NewestTokens, Piece, cache_dtype, padded_length

PAGE = 64
"""Tokens of a page."""


class Engine:
    """Answers requests with one model.

    Args:
        max_running: requests that are answered at the same time; others wait in the order in which they came.
        cache_tokens: tokens of prompts and answers that the KV cache holds for all requests together; rounded up.
        chunk: tokens of prompts that a step reads at most, rounded up to whole pages.
        page: tokens of a page.
    """

    def __init__(self, model: LanguageModel, max_running: int = 16, cache_tokens: int = 16384, chunk: int = 256,
                 page: int = PAGE):
        assert not model.training, "generation needs model.eval()"
        self.model, self.max_running, self.chunk, self.page = model, max_running, chunk, page
        weight = model.embed_tokens.weight
        self._pages = Pages(-(-padded_length(cache_tokens) // page))
        self.cache_tokens = self._pages.count * page
        self._cache = KVCache(model.config, self.cache_tokens, cache_dtype(weight), weight.device)
        self._shares = not model.config.rope_follows_length  # else keys depend on the whole prompt's length
        self._sampler = Sampler(model.config.vocab_size)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._sequences: dict[Request, _Sequence] = {}
        with torch.inference_mode():
            self._rows = exact_rows(model)

    @property
    def bytes(self) -> int:
        """The memory of the KV cache, which does not grow."""
        return self._cache.bytes

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot or for room in the cache."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of requests that are being answered."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue.

        Raises:
            UserError: if its prompt is empty, leaves no room in the model's context, or never fits the cache; or if
                its `logit_bias` names a token that the model does not have.
        """
        sequence = _Sequence(request, room(self.model, request))
        if self._pages_for(sequence) > self._pages.count:
            raise UserError(f"a prompt of {len(request.prompt)} tokens and an answer of up to {sequence.room} do not "
                            f"fit the KV cache of {self.cache_tokens} tokens")
        self._sampler.add(request)
        self._sequences[request] = sequence
        self._waiting.append(sequence)

    def cancel(self, request: Request) -> None:
        """Ends a request at once and frees its place. Its `finish` becomes "cancelled", unless it had ended."""
        sequence = self._sequences.get(request)
        if sequence is not None:
            self._end(sequence, "cancelled")

    @torch.inference_mode()
    def step(self) -> dict[Request, list[Token]]:
        """Computes the next tokens. Returns them for every request that got some, or that ended (`finish` is set)."""
        self._admit()
        continued = [sequence for sequence in self._running if sequence.unread == 1 and sequence.answer]
        continued.sort(key=self._place)  # neighbours in the cache can be read together
        hidden = [self._continue(group) for group in self._rows.groups(continued)]
        read = self._read_prompts()
        hidden += [hidden_1D for _, hidden_1D in read]
        sequences = continued + [sequence for sequence, _ in read]
        if not sequences:
            return {}
        return self._choose(sequences, self._rows.logits(joined(hidden)))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_running:
            sequence = self._waiting[0]
            span = self._lend(self._pages_for(sequence))
            if span is None:
                return
            sequence.span = span
            self._cache.clear(self._place(sequence), span.count * self.page)
            self._running.append(self._waiting.popleft())

    def _pages_for(self, sequence: "_Sequence") -> int:
        """Returns how many pages the whole sequence needs."""
        return -(-padded_length(len(sequence.request.prompt) + sequence.room) // self.page)

    def _lend(self, pages: int) -> Span | None:
        span = self._pages.lend(pages)
        if span is None and pages <= self._pages.count - self._pages.lent:
            self._cache.reorder(self._pages.compact(), self.page)
            span = self._pages.lend(pages)
        return span

    def _continue(self, sequences: Sequence["_Sequence"]) -> Tensor:
        """Computes the newest tokens of several sequences. Returns what the head reads (S, D)."""
        for sequence in sequences:
            sequence.length += 1
        starts, lengths = map(self._place, sequences), [sequence.length for sequence in sequences]
        context = NewestTokens(self._cache, list(starts), lengths)
        ids_S = torch.tensor([sequence.answer[-1] for sequence in sequences], device=self._cache.device)
        return self._rows.hidden_states(ids_S, context.positions_T, context)

    def _read_prompts(self) -> list[tuple["_Sequence", Tensor]]:
        """Reads prompts, up to `chunk` tokens. Returns those read to their end, with what the head reads (1, D)."""
        read, budget = [], self.chunk
        for sequence in self._running:
            while not sequence.answer and sequence.unread and budget > 0:
                hidden_1D = self._read_page(sequence)
                if hidden_1D is not None:
                    budget -= self.page
                    if not sequence.unread:
                        read.append((sequence, hidden_1D))
        return read

    def _read_page(self, sequence: "_Sequence") -> Tensor | None:
        """Reads the next page of a prompt. Returns what the head reads at its last token; None if it was copied."""
        prompt, past = sequence.request.prompt, sequence.length
        key = sequence.page_key(past // self.page, self.page) if self._shares else None
        if key is not None and past + self.page < len(prompt):
            page = self._pages.find(key)
            if page is not None:
                self._cache.copy(page * self.page, self._place(sequence) + past, self.page)
                sequence.length += self.page
                sequence.request.prompt_tokens_shared += self.page
                return None
        new = min(self.page, len(prompt) - past)
        context = CachedPieces(self._cache, [Piece(self._place(sequence), past, new, len(prompt))])
        ids_T = torch.tensor(prompt[past:past + new], device=self._cache.device)
        last_1 = torch.tensor([new - 1], device=self._cache.device)
        hidden_1D = self.model.hidden_states(ids_T, context.positions_T, context, last_1)
        sequence.length += new
        if key is not None:
            self._pages.keep(sequence.span.first + past // self.page, key)
        return hidden_1D

    def _choose(self, sequences: list["_Sequence"], logits_SV: Tensor) -> dict[Request, list[Token]]:
        """Chooses the next token of each sequence, and ends those that are complete."""
        new: dict[Request, list[Token]] = {}
        tokens = self._sampler.choose(logits_SV, [sequence.request for sequence in sequences])
        for sequence, token in zip(sequences, tokens, strict=True):
            request = sequence.request
            if token is None or token.id in request.stop_ids:
                new[request] = []
                self._end(sequence, "error" if token is None else "stop")
                continue
            new[request] = [token]
            sequence.answer.append(token.id)
            if len(sequence.answer) == sequence.room:
                self._end(sequence, "length")
        return new

    def _end(self, sequence: "_Sequence", finish: Literal["stop", "length", "cancelled", "error"]) -> None:
        request = sequence.request
        request.finish = finish
        del self._sequences[request]
        self._sampler.forget(request)
        if not sequence.span.count:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._pages.give_back(sequence.span)

    def _place(self, sequence: "_Sequence") -> int:
        """Returns the place of the sequence's first token in the cache."""
        return sequence.span.first * self.page


class _Sequence:
    """A request and how far it is.

    room: tokens that the answer may have.
    length: tokens of prompt and answer that are in the cache.
    span: its pages; none while it waits.
    """

    def __init__(self, request: Request, room: int):
        self.request, self.room = request, room
        self.answer: list[int] = []
        self.length = 0
        self.span = Span(0, 0)
        self._keys: list[bytes] | None = None

    @property
    def unread(self) -> int:
        """The number of tokens that are not yet in the cache."""
        return len(self.request.prompt) + len(self.answer) - self.length

    def page_key(self, index: int, page: int) -> bytes | None:
        """Returns the key of a page of the prompt; None if the prompt does not fill it."""
        if self._keys is None:
            self._keys = list(page_keys(self.request.prompt, page))
        return self._keys[index] if index < len(self._keys) else None


def room(model: LanguageModel, request: Request) -> int:
    """Returns how many tokens may follow the prompt.

    Raises:
        UserError: if the prompt is empty or leaves no room in the model's context.
    """
    tokens, context = len(request.prompt), model.config.context
    if tokens == 0:
        raise UserError("the prompt is empty: expected at least one token")
    if tokens >= context:
        raise UserError(f"the prompt has {tokens} tokens and leaves no room for an answer: "
                        f"the model's context is {context} (max_position_embeddings)")
    return min(request.sampling.max_new_tokens, context - tokens)
