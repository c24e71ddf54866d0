"""Counts the work of a chat template in steps, so that no template runs for long or fills the memory.

Templates come with foreign tokenizers. Whatever they compute is paid for before it happens: the count depends on the
template and the conversation alone, so a template that is refused is refused on every machine.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jinja2 import TemplateRuntimeError
from jinja2.runtime import LoopContext, Undefined

from minimind_sft.data.traced_text import TracedText, concat
from minimind_sft.errors import UserError

BASE_STEPS = 50_000
"""Steps for any rendering; real templates take a few hundred for a short conversation."""
STEPS_PER_CHARACTER = 4
STEPS_PER_MESSAGE, STEPS_PER_PAIR = 100, 4
MAX_STEPS = 4_000_000
"""Steps for a rendering however long the conversation is: some seconds, and 256 MiB of text."""

WRITTEN_PER_STEP = 16
"""Characters that a step may write: at most 64 bytes."""
SCANNED_PER_STEP = 4096
"""Characters that a step may compare or search."""
ITEMS_PER_STEP = 8
"""Items of lists and objects that a step may copy."""
ESCAPED = 5
"""Characters of an escaped one in HTML, as in `&amp;`."""
TRACED_PIECE_STEPS = 4
"""Steps for each piece that text of the template is cut into: pieces have origins of their own."""

NUMBER_CHARACTERS = 24
"""Characters of a float, and of anything else whose text is short."""
MAX_DEPTH = 128
"""Levels of nested lists and objects; conversations have at most 100."""
MAX_CALL_DEPTH = 100
"""Calls of macros, blocks and recursive loops inside each other."""
MAX_LAZY_DEPTH = 16
"""Filters such as `map` that wait for each other's items."""

TEXTS: tuple[Any, ...] = (str, bytes)
SCALARS: tuple[Any, ...] = (int, float, bool, type(None))
LISTS: tuple[Any, ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
SIZED: tuple[Any, ...] = (str, dict, range, bytes, *LISTS)
"""Types with a length. Lists include the views of objects."""


class TooMuchWork(UserError):
    """A chat template takes more steps than its conversation justifies."""


class Weight(NamedTuple):
    """The size of a value if everything in it is written out, shared parts as often as they occur."""

    characters: int = 0
    items: int = 0
    depth: int = 0


class Budget:
    """The steps that a rendering may still take."""

    def __init__(self) -> None:
        self._remaining = 0
        self._data: tuple[Any, Any] | None = None
        self._allowed = 0
        self.call_depth = 0
        self._tools: Any = None
        self._weights: dict[int, tuple[Weight, int] | None] = {}
        """Of the tools, which every rendering of a conversation writes out; by id."""

    def start(self, messages: Any, tools: Any) -> None:
        """Starts a rendering. Its conversation is measured only if the template takes more than `BASE_STEPS`."""
        self._remaining = self._allowed = BASE_STEPS
        self._data = messages, tools
        self.call_depth = 0
        if tools is not self._tools:
            self._tools = tools
            self._weights = dict.fromkeys(map(id, [tools, *tools])) if isinstance(tools, list) else {}

    def end(self) -> None:
        """Leaves no steps: nothing is computed while a template is compiled."""
        self._remaining, self._data = 0, None

    def spend(self, steps: int) -> None:
        """Takes steps.

        Raises:
            TooMuchWork: if there are not as many.
        """
        self._remaining -= steps
        if self._remaining < 0:
            self._extend()

    def step(self, value: Any, steps: int) -> Any:
        """Takes steps and returns the value."""
        self._remaining -= steps
        if self._remaining < 0:
            self._extend()
        return value

    def write(self, characters: int) -> None:
        """Takes the steps for writing text."""
        self._remaining -= 1 + characters // WRITTEN_PER_STEP
        if self._remaining < 0:
            self._extend()

    def scan(self, characters: int, times: int = 1) -> None:
        """Takes the steps for comparing or searching text."""
        self._remaining -= 1 + characters * times // SCANNED_PER_STEP
        if self._remaining < 0:
            self._extend()

    def copy(self, items: int) -> None:
        """Takes the steps for making a list."""
        self.spend(1 + items // ITEMS_PER_STEP)

    def cut(self, value: Any, pieces: int) -> None:
        """Takes the further steps for cutting text of the template; others are cut in no time."""
        if type(value) is TracedText:
            self.spend(TRACED_PIECE_STEPS * pieces)

    def weigh(self, value: Any) -> Weight:
        """Measures a value before something reads all of it, and takes steps for that.

        A list of two lists of two lists and so on is small, but takes ages to read.

        Raises:
            TooMuchWork: if there are not as many steps.
            TemplateRuntimeError: if the value nests deeper than `MAX_DEPTH`.
        """
        if isinstance(value, TEXTS):
            self.scan(len(value))
            return Weight(len(value))
        if type(value) in SCALARS:
            return Weight(_digits(value))
        known = self._weights.get(id(value))
        if known is None:
            before = self._remaining
            weight = self._weigh(value, 1)
            if id(value) in self._weights:
                self._weights[id(value)] = weight, before - self._remaining
            return weight
        self.spend(known[1])
        return known[0]

    def text(self, value: Any) -> str:
        """Returns a value as text.

        Raises:
            TooMuchWork: if there are not as many steps.
            TemplateRuntimeError: if the value has no text that is the same in every run, such as a generator.
        """
        if type(value) is str or type(value) is TracedText:
            return value
        if isinstance(value, Undefined) or type(value) in (float, bool, type(None)):
            return str(value)
        if not isinstance(value, str):
            weight = self.weigh(value)
            require_text(value)
            self.write(4 * weight.characters)  # quoted, a character may become "\\x00"
        return str(value)

    def joined(self, texts: list[str], separator: str = "") -> str:
        """Returns the texts as one, with their origins."""
        self.cut(separator, len(texts) if separator else 0)
        self.write((sum(map(len, texts)) + len(separator) * len(texts)) * escaping(separator))
        return separator.join(texts) if separator else concat(texts)

    def source(self, value: Any, steps: int = 1) -> Any:
        """Returns what a filter iterates over; each item takes steps."""
        if isinstance(value, SIZED):
            self.spend(len(value) * steps)
            self.cut(value, len(value))
            return value
        if isinstance(value, Undefined) or not hasattr(type(value), "__iter__"):
            return value
        return Lazy(self, value, value, steps)

    def items(self, value: Any) -> Any:
        """Returns the items of an iterator as a list, so that they can be weighed; other values as they are."""
        return list(self.source(value)) if hasattr(type(value), "__iter__") and not isinstance(value, SIZED) else value

    def _weigh(self, value: Any, depth: int) -> Weight:
        """Measures a list, an object or anything else that is no scalar."""
        if isinstance(value, range):
            self.copy(len(value))
        parts = _parts(value)
        if parts is None:
            return Weight(NUMBER_CHARACTERS)
        self.copy(len(parts))
        if depth > MAX_DEPTH:
            raise TemplateRuntimeError(f"it nests lists deeper than {MAX_DEPTH} levels")
        characters, items, deepest = 2, len(parts), depth
        for part in parts:
            kind = type(part)
            if kind is str:
                characters += len(part) + 4
            elif kind in SCALARS:
                characters += _digits(part)
            else:
                inner = Weight(len(part)) if isinstance(part, TEXTS) else self._weigh(part, depth + 1)
                characters += inner.characters + 4
                items += inner.items
                deepest = max(deepest, inner.depth)
        self.scan(characters)
        return Weight(characters, items, deepest)

    def _extend(self) -> None:
        """Adds the steps that a long conversation justifies, once.

        Raises:
            TooMuchWork: if they are not enough.
        """
        if self._data is not None:
            total = min(BASE_STEPS + _justified(*self._data), MAX_STEPS)
            self._remaining += total - self._allowed
            self._allowed, self._data = total, None
        if self._remaining < 0:
            raise TooMuchWork(f"it takes more than {self._allowed:,} steps for a conversation of this size")


def escaping(text: Any) -> int:
    """Returns how many characters one may become where a text takes in others: `Markup` escapes them."""
    return ESCAPED if hasattr(text, "__html__") else 1


class Lazy:
    """An iterator whose items take steps: the result of `map`, `select` and their kind."""

    def __init__(self, budget: Budget, iterable: Iterable[Any], origin: Any, steps: int = 1):
        self._budget, self._iterator, self._steps = budget, iter(iterable), steps
        self.depth = _lazy_depth(origin) + 1
        if self.depth > MAX_LAZY_DEPTH:
            raise TemplateRuntimeError(f"it makes more than {MAX_LAZY_DEPTH} filters wait for each other")

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._budget.spend(self._steps)
        return next(self._iterator)


def require_text(value: Any) -> None:
    """
    Raises:
        TemplateRuntimeError: if a weighed value holds one whose text is its address in memory, or none.
    """
    parts = _parts(value)
    for part in parts or ():
        require_text(part)
    if parts is None and not isinstance(value, (str, bytes, range, Undefined, *SCALARS)):
        raise TemplateRuntimeError(f"it writes a value of type {type(value).__name__}, which has no text of its own")


def _parts(value: Any) -> Any:
    """Returns the items of a list, or keys and values of an object; None for anything else."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, LISTS) else None


def _lazy_depth(value: Any) -> int:
    """Returns how many iterators wait for each other in `value`; a loop is an iterator, too."""
    if isinstance(value, LoopContext):
        return 1 + _lazy_depth(value._iterable)
    return value.depth if isinstance(value, Lazy) else 0


def _justified(messages: Any, tools: Any) -> int:
    """Returns the steps that a conversation justifies; templates may compare each message with each other one."""
    count = len(messages) if isinstance(messages, list) else 0
    characters = _count_characters(messages) + _count_characters(tools)
    return STEPS_PER_CHARACTER * characters + STEPS_PER_MESSAGE * count + STEPS_PER_PAIR * count ** 2


def _count_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_count_characters(key) + _count_characters(part) for key, part in value.items())
    return sum(map(_count_characters, value)) if isinstance(value, list) else 1


def _digits(number: Any) -> int:
    return number.bit_length() // 3 if isinstance(number, int) else NUMBER_CHARACTERS
