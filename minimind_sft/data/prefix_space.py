"""Tokenizers that put a space before text, such as Llama 2's: where they do so, and how they work without it.

SentencePiece writes a space as U+2581 and puts one before a text, so that a word is the same token at the start as
after a space. In tokenizer.json that is a normalizer (Prepend) or a pre-tokenizer (Metaspace, or ByteLevel with
`add_prefix_space`). Both work on the stretches between control tokens: all of them, or only a stretch at the very start
of the text (`prepend_scheme` first, which transformers calls `legacy` false).
"""

from typing import Any, Literal

Scheme = Literal["none", "first", "always"]


def prefix_scheme(state: dict[str, Any]) -> Scheme:
    """Returns before which stretches of text the tokenizer of this tokenizer.json puts a space."""
    if normalizer_prepends(state):
        return "always"
    # A step after one that splits puts its space before every part, wherever the text is cut.
    first = next(iter(steps_of(state.get("pre_tokenizer"), "pretokenizers")), None)
    return "none" if first is None else _scheme_of(first)


def normalizer_prepends(state: dict[str, Any]) -> bool:
    """Whether the space is put before text by its normalizer."""
    return any(step["type"] == "Prepend" for step in steps_of(state.get("normalizer"), "normalizers"))


def without_prefix(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer.json of the same tokenizer that puts no space before text."""
    normalizers = [step for step in steps_of(state.get("normalizer"), "normalizers") if step["type"] != "Prepend"]
    splitters = steps_of(state.get("pre_tokenizer"), "pretokenizers")
    splitters[:1] = map(_silenced, splitters[:1])
    return {**state, "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters} if splitters else None}


def steps_of(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or pre-tokenizer, whose sequences keep them in the field `name`."""
    if step is None:
        return []
    return [one for part in step[name] for one in steps_of(part, name)] if step["type"] == "Sequence" else [step]


def _scheme_of(step: dict[str, Any]) -> Scheme:
    if step["type"] == "Metaspace":
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        return "none" if scheme == "never" else scheme
    return "always" if step["type"] == "ByteLevel" and step.get("add_prefix_space") else "none"


def _silenced(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "Metaspace":
        kept = {name: value for name, value in step.items() if name != "add_prefix_space"}
        return {**kept, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if step["type"] == "ByteLevel" else step
