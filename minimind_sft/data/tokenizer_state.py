"""Checks the content of tokenizer.json before the `tokenizers` library gets it.

The library reads whatever has the right types. It then panics at some values, takes memory or time without a bound for
others, or makes other ids of the same text each time.
"""

import base64
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from minimind_sft.data.pre_tokenizers import GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, UNRECOGNISED
from minimind_sft.errors import UserError, describe, printable
from minimind_sft.regex_check import regex_problem

PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
         "decoder": "decoders"}
"""The fields that hold steps, and the field in which a sequence of them keeps its own."""
MAX_TOKENS, MAX_MERGES, MAX_ADDED = 400_000, 800_000, 10_000
"""More than the largest tokenizers have; so many take 700 MB of memory."""
MAX_STEPS, MAX_DEPTH = 100, 20
MAX_GROWTH = 32
"""How many times longer the steps of one field may make a text. Those of real tokenizers hardly change its length."""
MAX_BYTE_LEVELS = 2
MAX_WORD = 500
"""Characters; WordPiece takes quadratic time for a word."""
MAX_UNUSED_IDS = 100_000
"""Ids without a token; the embedding has a row for each."""
MARK = re.compile(b"\xf3[\xb0-\xbf]")
"""The beginning of a private-use character above U+F0000 in UTF-8."""


def check_state(state: dict[str, Any], place: str) -> None:
    """Refuses values that make a tokenizer fail later. Fields that are missing or of the wrong type are left to the
    library, except where something else reads them.

    Args:
        state: the content of tokenizer.json.
        place: its name, for errors.

    Raises:
        UserError: naming the field.
    """
    for field in PARTS:
        found = list(steps_in(state, field, place))
        for step, where in found:
            _check_step(field, step, where)
        _check_growth([step for step, _ in found], f"{place}: {field}")
    model = state.get("model")
    _check_length(state.get("added_tokens"), MAX_ADDED, f"{place}: added_tokens")
    if isinstance(model, dict):
        _check_length(model.get("vocab"), MAX_TOKENS, f"{place}: model: vocab")
        _check_length(model.get("merges"), MAX_MERGES, f"{place}: model: merges")
        _check_model(model, f"{place}: model")


def steps_in(state: dict[str, Any], field: str, place: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the steps in one of `PARTS` without their sequences, each with its place.

    Raises:
        UserError: naming a step that is none, or the field if it has too many.
    """
    waiting = [(state.get(field), f"{place}: {field}", 0)]
    count = 0
    while waiting:
        step, where, depth = waiting.pop()
        if step is None and not depth:
            return
        count += 1
        if count > MAX_STEPS or depth > MAX_DEPTH:
            raise UserError(f"{place}: {field}: more than {MAX_STEPS} steps, or nested more than {MAX_DEPTH} times")
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise UserError(f"{where}: expected an object with a type, found {describe(step)}")
        if step["type"] != "Sequence":
            yield step, where
            continue
        inner = step.get(PARTS[field])
        if not isinstance(inner, list):
            raise UserError(f"{where}: {PARTS[field]}: expected a list, found {describe(inner)}")
        waiting += [(part, f"{where}: {PARTS[field]}[{index}]", depth + 1)
                    for index, part in reversed(list(enumerate(inner)))]


def has_unknown_regex(state: dict[str, Any]) -> bool:
    """Whether a step has a regular expression that is not known to take linear time."""
    known = {GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, *map(_regex, UNRECOGNISED.steps["pretokenizers"])}
    found = {_regex(step) for field in PARTS for step, _ in steps_in(state, field, "")}
    return not found <= {*known, None}


def check_ids(vocab: dict[str, int], added: list[dict[str, Any]], place: str) -> None:
    """Compares the ids that the library gives tokens with those that the file says.

    Args:
        vocab: every token and its id, as the library has them.
        added: `added_tokens` of tokenizer.json.

    Raises:
        UserError: naming two tokens with one id, a token with two ids, or the highest id, if most ids below it have no
            token, or the vocabulary, if it is empty.
    """
    by_id = {token_id: token for token, token_id in vocab.items()}
    if len(by_id) < len(vocab):
        found = sorted((token_id, token) for token, token_id in vocab.items())
        token_id, one, other = next((its, one, other) for (its, one), (same, other) in pairwise(found) if its == same)
        raise UserError(f"{place}: {one!r} and {other!r} both have the id {token_id}")
    entries: dict[str, dict[str, Any]] = {}
    if not vocab.keys() - {entry["content"] for entry in added}:
        raise UserError(f"{place}: model: vocab: no token stands for text")
    for index, entry in enumerate(added):
        where = f"{place}: added_tokens[{index}]: {entry['content']!r}"
        if not entry["content"]:  # the library ignores it
            continue
        if entries.setdefault(entry["content"], entry) != entry:
            raise UserError(f"{where} is in the list twice, with different values")
        if vocab.get(entry["content"]) != entry["id"]:
            raise UserError(f"{where} has the id {entry['id']}, but {vocab.get(entry['content'])} is its id in the "
                            "vocabulary or the next free one")
    size = max(by_id, default=-1) + 1
    if size - len(by_id) > MAX_UNUSED_IDS:
        raise UserError(f"{place}: {by_id[size - 1]!r} has the id {size - 1}, but there are only {len(by_id):,} tokens")


def _check_length(value: Any, limit: int, where: str) -> None:
    if isinstance(value, dict | list) and len(value) > limit:
        raise UserError(f"{where}: expected at most {limit:,} entries, found {len(value):,}")


def _check_step(field: str, step: dict[str, Any], where: str) -> None:
    kind = step["type"]
    if (regex := _regex(step)) and (problem := regex_problem(regex)):
        raise UserError(f"{where}: {problem}")
    if kind == "FixedLength" and step.get("length") == 0:
        raise UserError(f"{where}: length: is 0, expected at least 1")
    if field == "decoder" and kind == "Strip" and step.get("stop") not in (0, 1):
        raise UserError(f"{where}: stop: expected 0 or 1, found {describe(step.get('stop'))}")
    if kind == "Precompiled":
        _check_charsmap(step.get("precompiled_charsmap"), f"{where}: precompiled_charsmap")


def _check_charsmap(value: Any, where: str) -> None:
    """Refuses a table of SentencePiece that is none, or that makes marks of control tokens out of text.

    The table is the size of a trie (4 bytes), the trie, and the texts that replace others.
    """
    try:
        table = base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: expected base64, found {describe(value)}") from error
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 + size or size % 4:
        raise UserError(f"{where}: its trie has {size:,} bytes, but {len(table):,} are there")
    if MARK.search(table[4 + size:]):
        raise UserError(f"{where}: writes private-use characters above U+F0000, which mark control tokens")


def _check_growth(steps: list[dict[str, Any]], where: str) -> None:
    """Refuses steps that together make long texts out of short ones."""
    growth = 1.0
    for step in steps:
        added = step.get({"Prepend": "prepend", "Replace": "content"}.get(step["type"], ""), "")
        if not isinstance(added, str):
            raise UserError(f"{where}: {step['type']}: expected text, found {describe(added)}")
        pattern = step.get("pattern")
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        if isinstance(replaced, str) and replaced:
            growth *= max(1.0, len(added) / len(replaced))
        else:  # a regular expression may match between any two characters
            growth *= 1 + len(added)
    if growth > MAX_GROWTH:
        raise UserError(f"{where}: makes a text up to {growth:,.0f} times longer, expected at most {MAX_GROWTH} times")
    if sum(step["type"] == "ByteLevel" for step in steps) > MAX_BYTE_LEVELS:
        raise UserError(f"{where}: has ByteLevel more than {MAX_BYTE_LEVELS} times, and each doubles a text's bytes")


def _check_model(model: dict[str, Any], where: str) -> None:
    if model.get("dropout"):
        raise UserError(f"{where}: dropout: is {describe(model['dropout'])}, so that a text gets other ids each time: "
                        "set it to null")
    longest = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest, int) or longest > MAX_WORD:
        raise UserError(f"{where}: max_input_chars_per_word: expected at most {MAX_WORD}, found {describe(longest)}")
    if isinstance(vocab := model.get("vocab"), list):
        _check_pairs(vocab, f"{where}: vocab")
    if isinstance(prefix := model.get("continuing_subword_prefix"), str) and prefix:
        merges = model.get("merges")
        for index, pair in enumerate(merges if isinstance(merges, list) else ()):
            parts = pair.split(" ") if isinstance(pair, str) else pair
            if not (isinstance(parts, list) and len(parts) == 2 and str(parts[1]).startswith(prefix)):
                raise UserError(f"{where}: merges[{index}]: expected two tokens, the second beginning with the "
                                f"continuing_subword_prefix {printable(prefix)}, found {describe(pair)}")


def _check_pairs(vocab: list[Any], where: str) -> None:
    """Refuses a list of tokens and scores that has a token twice or something else."""
    seen: set[str] = set()
    for index, pair in enumerate(vocab):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"{where}[{index}]: expected a token and its score, found {describe(pair)}")
        if pair[0] in seen:
            raise UserError(f"{where}[{index}]: {pair[0]!r} is in the list twice")
        seen.add(pair[0])


def _regex(step: dict[str, Any]) -> str | None:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return regex if isinstance(regex, str) else None
