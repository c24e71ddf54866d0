"""Which pages of the KV cache belong to whom, and which hold a beginning that other prompts may share.

A page has room for a fixed number of tokens. Those of one sequence are neighbours, so that attention reads them as they
are. When a sequence ends, the pages of its prompt keep what they hold until their room is needed: the least recently
used go first.
"""

import hashlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Span:
    """Neighbouring pages of one sequence."""

    first: int
    count: int


class Pages:
    """Lends out `count` pages.

    A page is lent, or kept for the beginning of a prompt that it holds, or free.
    """

    def __init__(self, count: int):
        self.count = count
        self._spans: list[Span] = []
        self._lent = bytearray(count)
        self._keys: list[bytes | None] = [None] * count
        self._last_use = [0] * count
        self._page_of: dict[bytes, int] = {}
        self._clock = 0

    @property
    def lent(self) -> int:
        """The number of pages that sequences use."""
        return sum(span.count for span in self._spans)

    def lend(self, count: int) -> Span | None:
        """Returns neighbouring pages, or None if there are not so many. Forgets what they held."""
        first = self._best_gap(count)
        if first is None:
            return None
        span = Span(first, count)
        self._spans.append(span)
        self._take(range(first, first + count))
        return span

    def extend(self, span: Span, count: int) -> bool:
        """Adds the `count` pages that follow a span. Returns whether they were not lent."""
        end = span.first + span.count
        if end + count > self.count or any(self._lent[end:end + count]):
            return False
        span.count += count
        self._take(range(end, end + count))
        return True

    def give_back(self, span: Span) -> None:
        """Ends the use of a span; its pages keep what they hold until they are lent again."""
        self._spans.remove(span)
        self._lent[span.first:span.first + span.count] = bytes(span.count)

    def find(self, key: bytes) -> int | None:
        """Returns the page that holds what `key` stands for, which has been used now."""
        page = self._page_of.get(key)
        if page is not None:
            self._last_use[page] = self._now()
        return page

    def keep(self, page: int, key: bytes) -> None:
        """Takes note of what a lent page holds. If another one holds the same, that one stays."""
        if key not in self._page_of:
            self._keys[page], self._page_of[key] = key, page
            self._last_use[page] = self._now()

    def compact(self, last: Span | None = None) -> list[int]:
        """Puts lent pages first, then kept ones, so that those that can be lent are neighbours, and follow `last`.

        Returns for each page which one it was. Spans are moved; the caller moves the contents.
        """
        self._spans.sort(key=lambda span: (span is last, span.first))
        order = [page for span in self._spans for page in range(span.first, span.first + span.count)]
        others = [page for page in range(self.count) if not self._lent[page]]
        order += sorted(others, key=lambda page: -self._last_use[page] if self._keys[page] else 1)
        first = 0
        for span in self._spans:
            span.first, first = first, first + span.count
        self._lent[:] = bytes([1] * first + [0] * (self.count - first))
        self._keys = [self._keys[page] for page in order]
        self._last_use = [self._last_use[page] for page in order]
        self._page_of = {key: page for page, key in enumerate(self._keys) if key is not None}
        return order

    def _best_gap(self, count: int) -> int | None:
        """Returns the first of `count` pages that are not lent, of several such stretches the longest unused one."""
        best, best_use = None, self._clock + 1
        window: deque[tuple[int, int]] = deque()  # (page, last use), uses falling: the first is the latest of the gap
        start = 0
        for page in range(self.count):
            if self._lent[page]:
                window.clear()
                start = page + 1
                continue
            use = self._last_use[page] if self._keys[page] else 0
            while window and window[-1][1] <= use:
                window.pop()
            window.append((page, use))
            if window[0][0] <= page - count:
                window.popleft()
            if page - start + 1 >= count and window[0][1] < best_use:
                best, best_use = page - count + 1, window[0][1]
                if best_use == 0:
                    break
        return best

    def _take(self, pages: range) -> None:
        for page in pages:
            self._lent[page] = 1
            key = self._keys[page]
            if key is not None:
                del self._page_of[key]
                self._keys[page] = None

    def _now(self) -> int:
        self._clock += 1
        return self._clock


def page_keys(tokens: Sequence[int], page: int) -> Iterator[bytes]:
    """Yields a key for each full page of a prompt. It stands for the page's tokens and all before them."""
    key = b""
    for start in range(0, len(tokens) - page + 1, page):
        key = hashlib.sha256(key + array("q", tokens[start:start + page]).tobytes()).digest()
        yield key
