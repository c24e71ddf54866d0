"""Calls the `tokenizers` library so that its failures are errors of one line and its regular expressions end.

The library raises bare `Exception` for most faults of a tokenizer and panics at others. Regular expressions that pass
`regex_check` can still take polynomial time.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import tokenizers

from minimind_sft.errors import UserError, one_line, rust_failures

T = TypeVar("T")

SECONDS, CHARACTERS_A_SECOND = 10.0, 20_000
"""Even a slow and busy machine encodes many times faster than this."""


class BoundedTokenizer:
    """A tokenizer of the `tokenizers` library.

    Attributes:
        is_timed: whether calls run in a thread of their own that is given up after some time.
    """

    def __init__(self, state: dict[str, Any], is_timed: bool = False):
        """
        Raises:
            UserError: if `state` is not the content of a tokenizer.json that the library can read.
        """
        self.is_timed = is_timed
        self._is_stuck = False
        with _failures("not a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids of a text.

        Raises:
            UserError: as `encode_batch`.
        """
        return next(self.encode_batch([text], add_special_tokens))

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> Iterator[list[int]]:
        """Returns the ids of each text.

        Raises:
            UserError: if the library fails or takes too long.
        """
        with _failures("tokenizer.json: fails at a text"):  # without offsets (`fast`): half the memory
            encodings = self._timed(lambda: self._tokenizer.encode_batch_fast(
                texts, add_special_tokens=add_special_tokens), texts)
        return (encoding.ids for encoding in encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, with control tokens spelled out.

        Raises:
            UserError: if the library fails or takes too long.
        """
        with _failures("tokenizer.json: fails to decode ids"):
            if not self.is_timed:
                return self._tokenizer.decode(ids, skip_special_tokens=False)
            return self._timed(lambda: self._tokenizer.decode_batch([list(ids)], skip_special_tokens=False), ())[0]

    def vocabulary(self) -> dict[str, int]:
        """Returns every token and its id, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token; None if there is no such token."""
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id; None if there is no such id."""
        return self._tokenizer.id_to_token(token_id)

    def split(self, text: str) -> str:
        """Returns what the model gets to see of a text: normalized, and without what is removed between words."""
        with _failures("tokenizer.json: fails at a text"):
            if self._tokenizer.normalizer is not None:
                text = self._tokenizer.normalizer.normalize_str(text)
            if self._tokenizer.pre_tokenizer is not None:
                text = "".join(part for part, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text))
        return text

    def _timed(self, work: Callable[[], T], texts: Sequence[str]) -> T:
        """Returns the result of `work`, which is given up if it takes too long for `texts`.

        Raises:
            UserError: if it takes too long, now or in an earlier call.
        """
        if not self.is_timed:
            return work()
        seconds = SECONDS + sum(map(len, texts)) / CHARACTERS_A_SECOND
        outcome: list[tuple[T | None, BaseException | None]] = []
        thread = threading.Thread(target=lambda: outcome.append(_outcome(work)), daemon=True)
        if not self._is_stuck:
            thread.start()
            thread.join(seconds)
        if not outcome:
            self._is_stuck = True
            raise UserError(f"tokenizer.json: its regular expressions took more than {seconds:.0f} s for a text")
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except rust_failures() as error:
        return None, error


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turns whatever the library raises into a `UserError` that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except rust_failures() as error:  # the library raises bare Exception
        raise UserError(f"{what} ({one_line(error)})") from error
