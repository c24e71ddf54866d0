"""Grammars for small tokenizers, and answers to them that are written by chance."""

import json
import random
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.serving.grammars import Grammar, Grammars

TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
            "</think>\n\n{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
            "{% endif %}")
CONTROL = ["<|end|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "[CALLS]"]
UNUSED_ROWS = 5
"""Rows of the embedding without a token."""


def with_control(state: dict[str, Any]) -> Tokenizer:
    state["added_tokens"] = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True} for token, index in state["model"]["vocab"].items()
                             if token in [*CONTROL, "<unk>"]]
    return Tokenizer(state, {"eos_token": "<|end|>", "unk_token": "<unk>"} if "<unk>" in state["model"]["vocab"]
                     else {"eos_token": "<|end|>"})


@cache
def byte_level() -> Tokenizer:
    """A token for each byte, and for some sequences that end in the middle of JSON or of a character."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.decoder = tokenizers.decoders.ByteLevel()
    texts = ['{"name": "x"}, {"', '"]}', '"]},', '": [', "数数数", "true, false, null", "</think", '"}}', "12345"] * 9
    learner.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=CONTROL, min_frequency=1, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    return with_control(json.loads(learner.to_str()))


@cache
def sentencepiece() -> Tokenizer:
    """In the manner of Llama 2's: some words, and bytes for everything else; a text begins with a space."""
    words = ["\u2581", "{", "\u2581{", '"', '{"', "}", "a", "b", "\u2581a", ":", "\u2581[", "]", ",", "1", "2", "数"]
    tokens = ["<unk>", *CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    state = {"model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": [],
                       "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
             "normalizer": {"type": "Sequence", "normalizers": [
                 {"type": "Prepend", "prepend": "\u2581"},
                 {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
             "pre_tokenizer": None, "post_processor": None,
             "decoder": {"type": "Sequence", "decoders": [
                 {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                 {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}
    return with_control(state)


@cache
def grammars(tokenizer: Tokenizer, template: ChatTemplate | None = None) -> Grammars:
    """Returns the grammars of a model with this tokenizer, which has unused rows."""
    config = SimpleNamespace(vocab_size=tokenizer.vocab_size + UNUSED_ROWS)
    return Grammars(SimpleNamespace(  # type: ignore[arg-type]
        tokenizer=tokenizer, template=template or ChatTemplate(tokenizer, TEMPLATE), stop_ids=frozenset({2}),
        model=SimpleNamespace(config=config)))


def allows(grammar: Grammar, ids: list[int], ends: bool = True) -> bool:
    """Tells whether an answer may be these ids, and end there."""
    constraint = grammar.constraint()
    for token in ids:
        if not constraint.allowed_V()[token]:
            return False
        constraint.accept(token)
    return not ends or bool(constraint.allowed_V()[0])  # <|end|>


def by_chance(grammar: Grammar, tokenizer: Tokenizer, seed: int, limit: int = 150) -> list[int] | None:
    """Returns an answer of random tokens, which likes to close what is open; None if it would go on after `limit`."""
    ends = {2, tokenizer.token_to_id("<|end|>")}
    scores = np.random.default_rng(seed).gumbel(size=(61, tokenizer.vocab_size + UNUSED_ROWS)) + _closing(tokenizer)
    constraint, ids = grammar.constraint(), list[int]()
    for step in range(limit):
        allowed = constraint.allowed_V().numpy()
        assert allowed.shape == scores[0].shape and allowed.any(), tokenizer.decode(ids)
        token = int(np.where(allowed, scores[step % len(scores)], -np.inf).argmax())
        constraint.accept(token)
        if token in ends:
            return ids
        ids.append(token)
    return None


@cache
def _closing(tokenizer: Tokenizer) -> np.ndarray:
    """Returns by how much each token is liked."""
    liked = np.zeros(tokenizer.vocab_size + UNUSED_ROWS)
    for token in range(tokenizer.vocab_size):
        liked[token] = 4 * any(mark in (tokenizer.id_to_token(token) or "") for mark in ('"', "]", "}"))
    liked[tokenizer.token_to_id("<|end|>")] = 9
    return liked


NAMES = ["name", "age", "a b", "é", "数", "x_1", 'q"t', "a/b", "k~", "\n"]


def random_schema(choose: random.Random, depth: int = 0) -> dict[str, Any]:
    """Returns a schema of any kind."""
    kind = choose.randrange(10) if depth < 3 else 9
    if kind < 3:
        return _object(choose, depth)
    if kind < 5:
        return _array(choose, depth)
    if kind == 5:
        return {choose.choice(["anyOf", "anyOf", "oneOf"]): [random_schema(choose, depth + 1) for _ in range(2)]}
    if kind == 6:
        return {"allOf": [random_schema(choose, depth + 1), choose.choice([{}, {"title": "t"}, _scalar(choose)])]}
    if kind == 7 and depth == 0:
        inner = random_schema(choose, 2)
        node = {"type": "object", "properties": {"v": inner, "next": {"$ref": "#/$defs/n"}}, "required": ["v"]}
        return {"$defs": {"n": node}, "$ref": "#/$defs/n"}
    return _scalar(choose)


def _object(choose: random.Random, depth: int) -> dict[str, Any]:
    names = choose.sample(NAMES, choose.randrange(4))
    schema: dict[str, Any] = {
        "type": "object", "properties": {name: random_schema(choose, depth + 1) for name in names},
        "required": choose.sample(names, choose.randrange(len(names) + 1))}
    if choose.random() < 0.7:
        schema["additionalProperties"] = choose.choice([False, False, True, random_schema(choose, depth + 2)])
    if choose.random() < 0.1:
        schema["minProperties"] = 1
    if choose.random() < 0.1:
        schema["patternProperties"] = {"^p_": _scalar(choose)}
    return schema


def _array(choose: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if choose.random() < 0.8:
        schema["items"] = random_schema(choose, depth + 1)
    for name, most in (("minItems", 2), ("maxItems", 4)):
        if choose.random() < 0.4:
            schema[name] = most
    if choose.random() < 0.2:
        schema["prefixItems"] = [_scalar(choose) for _ in range(2)]
    return schema


def _scalar(choose: random.Random) -> dict[str, Any]:
    return choose.choice([
        {"type": "string"}, {"type": "boolean"}, {"type": "number"}, {"type": "null"},
        {"type": "string", "minLength": choose.randrange(3), "maxLength": choose.randrange(3, 9)},
        {"type": "string", "pattern": choose.choice(["^[a-c]{1,4}$", "ab", "^x\\d+", "[^\\n]{2}$", "^\\w+@\\w+$"])},
        {"type": "string", "format": choose.choice(["date", "uuid", "ipv4", "ipv6", "email"])},
        {"type": "integer", "minimum": choose.randrange(-50, 5), "maximum": choose.randrange(5, 90)},
        {"type": "number", "exclusiveMinimum": choose.uniform(-3, 0), "exclusiveMaximum": choose.uniform(1, 100)},
        {"type": "integer", "multipleOf": choose.choice([2, 3, 5, 7])},
        {"enum": choose.sample(["a", "b\n", 1, 2.5, None, True, [1], {"k": "v"}], 3)},
        {"const": choose.choice(["c", 'é"\\', 7, False, None, [1, {"a": []}]])},
        {"type": choose.sample(["string", "integer", "null", "boolean"], 2)}])
