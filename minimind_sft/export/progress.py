"""Shows how far a pass over many tensors is, once it takes longer than a moment."""

from collections.abc import Collection, Iterator
from typing import TypeVar

from minimind_sft.terminal import progress_bar

Item = TypeVar("Item")
SECONDS_BEFORE_A_BAR = 2.0


def with_bar(items: Collection[Item], label: str) -> Iterator[Item]:
    """Yields the items; in a terminal, a bar shows how many are done."""
    yield from progress_bar(items, label=label, unit=" tensors", delay=SECONDS_BEFORE_A_BAR)
