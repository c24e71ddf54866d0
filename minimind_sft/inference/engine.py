"""Answers many requests at once: they join and leave at any step, and none changes the tokens of another.

A step reads a bounded part of the prompts that are still to be read, and computes the next token of all others in one
pass. How a request is computed depends on its own tokens alone:

- Prompts are read page by page, cut at multiples of the page's size. Each page is attended to by itself. Prompts and
  newest tokens may multiply in different ways (packed.py), because no token is ever computed in both.
- Tokens share a pass only where each row gets the same bits whatever rows are beside it (rows.py); else each page has
  a pass of its own, and newest tokens are filled up to a number of rows at which they do.
- Each sequence reads its own past, up to a length that depends on its own (kv_cache.py).
- The sampler treats each row by itself (sampling.py).

So a full page of a prompt holds the same bits in every request whose prompt begins with the same tokens, and only the
first one computes them; the others copy. Generated tokens are not shared, because a row in a pass of several pages is
not computed as one by one. An answer is read once when the prompt of the next turn contains it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.inference.cache import Pages, Span, page_keys
from minimind_sft.inference.lowering import LanguageModel, prompt_form
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
        chunk: tokens of prompts after which a step begins to read no other page.
        reserve: tokens of an answer that find room in the cache when the request begins; as many again whenever they
            are used up. If the cache is full then, the youngest request begins anew when there is room: it reads its
            tokens in the same way as before, so it goes on with the same bits.
        page: tokens of a page.
    """

    def __init__(self, model: LanguageModel, max_running: int = 16, cache_tokens: int = 16384, chunk: int = 128,
                 reserve: int = 256, page: int = PAGE):
        assert not model.training, "generation needs model.eval()"
        self.model, self.max_running, self.chunk, self.page = model, max_running, chunk, page
        self._prompt_model = prompt_form(model)
        self._reserve = reserve
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
            self._rows, self._prompt_rows = exact_rows(model), exact_rows(self._prompt_model)

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
        if self._pages_for(len(request.prompt) + sequence.room) > self._pages.count:
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
        self._make_room()
        self._admit()
        continued = [sequence for sequence in self._running if not sequence.is_reading]
        continued.sort(key=self._place)  # neighbours in the cache can be read together
        hidden = [self._continue(group) for group in self._rows.groups(continued)]
        read, read_hidden = self._read_prompts()
        sequences, hidden = continued + read, hidden + read_hidden
        current = [index for index, sequence in enumerate(sequences) if sequence.is_current]
        if not current:
            return {}
        hidden_ND = joined(hidden) if len(current) == len(sequences) else joined(hidden)[current]
        return self._choose([sequences[index] for index in current], self._rows.logits(hidden_ND))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_running:
            sequence = self._waiting[0]
            span = self._lend(self._wanted(sequence))
            if span is None:
                return
            sequence.span = span
            self._running.append(self._waiting.popleft())

    def _make_room(self) -> None:
        """Sees to it that the next token of each sequence finds room. The youngest sequences give way to others."""
        for sequence in list(self._running):
            while sequence.span.count and self._pages_for(sequence.length + 1) > sequence.span.count:
                if not self._grow(sequence):
                    self._start_anew(self._running[-1])

    def _grow(self, sequence: "_Sequence") -> bool:
        span, wanted = sequence.span, self._wanted(sequence)
        more = wanted - span.count
        if not self._pages.extend(span, more):
            elsewhere = self._pages.lend(wanted)
            if elsewhere is not None:
                self._clear(elsewhere, span.count)
                self._cache.copy(span.first * self.page, elsewhere.first * self.page, span.count * self.page)
                self._pages.give_back(span)
                sequence.span = elsewhere
                return True
            if more > self._pages.count - self._pages.lent:
                return False
            self._cache.reorder(self._pages.compact(last=span), self.page)
            self._pages.extend(span, more)
        self._clear(span, span.count - more)
        return True

    def _start_anew(self, sequence: "_Sequence") -> None:
        """Takes the cache from a sequence, which waits as the first until it gets room again."""
        self._running.remove(sequence)
        self._pages.give_back(sequence.span)
        sequence.span, sequence.length = Span(0, 0), 0
        if not sequence.answer:
            sequence.request.prompt_tokens_shared = 0
        self._waiting.appendleft(sequence)

    def _wanted(self, sequence: "_Sequence") -> int:
        """Returns how many pages a sequence gets, so that it can go on for a while."""
        request = sequence.request
        known = len(request.prompt) + len(sequence.answer)
        return self._pages_for(min(known + self._reserve, len(request.prompt) + sequence.room))

    def _pages_for(self, tokens: int) -> int:
        """Returns how many pages a sequence of so many tokens needs."""
        return -(-padded_length(tokens) // self.page)

    def _lend(self, pages: int) -> Span | None:
        """Returns neighbouring pages of zeros, or None if there are not so many."""
        span = self._pages.lend(pages)
        if span is None and pages <= self._pages.count - self._pages.lent:
            self._cache.reorder(self._pages.compact(), self.page)
            span = self._pages.lend(pages)
        if span is not None:
            self._clear(span)
        return span

    def _clear(self, span: Span, first: int = 0) -> None:
        """Fills a span with zeros, from its page `first` on."""
        self._cache.clear((span.first + first) * self.page, (span.count - first) * self.page)

    def _continue(self, sequences: Sequence["_Sequence"]) -> Tensor:
        """Computes the next token of several sequences that is not in the cache. Returns what the head reads (S, D)."""
        ids = [sequence.answer[sequence.length - len(sequence.request.prompt)] for sequence in sequences]
        for sequence in sequences:
            sequence.length += 1
        starts, lengths = map(self._place, sequences), [sequence.length for sequence in sequences]
        context = NewestTokens(self._cache, list(starts), lengths)
        ids_S = torch.tensor(ids, device=self._cache.device)
        return self._rows.hidden_states(ids_S, context.positions_T, context)

    def _read_prompts(self) -> tuple[list["_Sequence"], list[Tensor]]:
        """Reads prompts, up to `chunk` tokens. Returns those read to their end, and what the head reads of them."""
        passes: list[list[_Page]] = []
        most = self._prompt_rows.pages_together
        for page in self._pages_to_read():
            if not passes or sum(one.piece.new for one in passes[-1]) + page.piece.new > most:
                passes.append([])
            passes[-1].append(page)
        return ([page.sequence for pages in passes for page in pages if page.is_last],
                [hidden_ND for pages in passes if (hidden_ND := self._read(pages)) is not None])

    def _pages_to_read(self) -> Iterator["_Page"]:
        """Yields the next pages of prompts, in the order of requests; those that can be copied are."""
        budget, keys = self.chunk, set()
        for sequence in self._running:
            while sequence.is_reading and budget > 0:
                page = self._next_page(sequence)
                if page.key is not None and page.key in keys:
                    break  # another request reads the same in this step; the next one copies it
                if not self._copy(page):
                    budget -= page.piece.new
                    sequence.length += page.piece.new
                    keys.add(page.key)
                    yield page

    def _next_page(self, sequence: "_Sequence") -> "_Page":
        past, tokens = sequence.length, len(sequence.request.prompt)
        piece = Piece(self._place(sequence), past, min(self.page, tokens - past), tokens)
        return _Page(sequence, piece, sequence.page_key(past // self.page, self.page) if self._shares else None)

    def _copy(self, page: "_Page") -> bool:
        """Copies a page that was read before, if there is one. The last is always read: its end predicts a token."""
        source = None if page.key is None or page.is_last else self._pages.find(page.key)
        if source is None:
            return False
        self._cache.copy(source * self.page, page.piece.start + page.piece.past, self.page)
        page.sequence.length += self.page
        if not page.sequence.answer:
            page.sequence.request.prompt_tokens_shared += self.page
        return True

    def _read(self, pages: Sequence["_Page"]) -> Tensor | None:
        """Reads pages in one pass. Returns what the head reads of those that end a prompt (N, D)."""
        context = CachedPieces(self._cache, [page.piece for page in pages])
        ids = [token for page in pages for token in page.tokens]
        last_S = context.last_S
        ends = [index for index, page in enumerate(pages) if page.is_last]
        ids_T = torch.tensor(ids, device=self._cache.device)
        hidden_ND = self._prompt_model.hidden_states(ids_T, context.positions_T, context,
                                                     last_S[ends] if ends else last_S[-1:])
        for page in pages:
            if page.key is not None:
                self._pages.keep((page.piece.start + page.piece.past) // self.page, page.key)
        return hidden_ND if ends else None

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
    def is_reading(self) -> bool:
        """Whether a part of the prompt is not yet in the cache."""
        return self.length < len(self.request.prompt)

    @property
    def is_current(self) -> bool:
        """Whether all tokens are in the cache, so that the next one can be chosen."""
        return self.length == len(self.request.prompt) + len(self.answer)

    def page_key(self, index: int, page: int) -> bytes | None:
        """Returns the key of a page of the prompt; None if the prompt does not fill it."""
        if self._keys is None:
            self._keys = list(page_keys(self.request.prompt, page))
        return self._keys[index] if index < len(self._keys) else None


class _Page(NamedTuple):
    """A page of a prompt that is to be read. key: stands for it and all before it; None if it is not full."""

    sequence: _Sequence
    piece: Piece
    key: bytes | None

    @property
    def tokens(self) -> Sequence[int]:
        return self.sequence.request.prompt[self.piece.past:self.piece.past + self.piece.new]

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with it."""
        return self.piece.past + self.piece.new == len(self.sequence.request.prompt)


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
