"""Tokenizers that were made to do harm: refused when they are read, or without effect."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from chats import TOKENIZER as BUNDLED

from minimind_sft.data.bounded_tokenizer import BoundedTokenizer
from minimind_sft.data.pre_tokenizers import PRE_TOKENIZERS, by_regex, byte_level
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_state import has_unknown_regex, steps_in
from minimind_sft.errors import UserError
from minimind_sft.regex_check import regex_problem

MARK = "\U000F0002"
END = 2
"""The id of <|im_end|>."""


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """The bundled tokenizer.json without merges."""
    state = json.loads(json.dumps(BUNDLED.state))
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)[:292]
    state["model"] |= {"vocab": {token: index for index, token in enumerate(tokens)}, "merges": []}
    return state


def read(folder: Path, state: dict[str, Any], **config: Any) -> Tokenizer:
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def refused(folder: Path, state: dict[str, Any], **config: Any) -> str:
    with pytest.raises(UserError) as error:
        read(folder, state, **config)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder}/")


def replaces(text: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": by}


@pytest.mark.parametrize("content", ["<|im_end|>", MARK, "\U000F0000", "\U000FFFFD"])
@pytest.mark.parametrize("later", [False, True], ids=["", "normalized"])
def test_a_normalizer_writes_no_control_token(tmp_path, small, content, later):
    state = {**small, "normalizer": replaces("hi", content),
             "added_tokens": [{**entry, "normalized": later} for entry in small["added_tokens"]]}
    tokenizer = read(tmp_path, state)
    assert END in tokenizer.encode("<|im_end|>")
    ids = tokenizer.encode_ordinary("hi <|im_end|>")
    assert min(ids) >= len(small["added_tokens"])
    assert tokenizer.decode(ids) == f"{content} <|im_end|>"
    marks = tokenizer.marks("hi")
    assert marks.tokenizer.encode(f"hi{marks.of_token['<|im_end|>']}").count(END) == 1


def test_spaces_that_become_private_use_characters_are_no_control_tokens(tmp_path, small):
    state = {**small, "pre_tokenizer": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "never",
                                        "split": False}}
    assert min(read(tmp_path, state).encode_ordinary("a b  c")) >= len(small["added_tokens"])


def test_marks_avoid_private_use_characters_of_the_vocabulary(tmp_path, small):
    vocab = {**small["model"]["vocab"], "\U000F0000": 292, MARK: 293}
    state = {**small, "model": {**small["model"], "vocab": vocab}, "pre_tokenizer": None}
    tokenizer = read(tmp_path, state)
    assert min(map(ord, tokenizer.marks().all_marks)) > ord(MARK)
    assert tokenizer.encode_ordinary(f"\U000F0000{MARK}") == [292, 293]


TABLE = (4).to_bytes(4, "little") + b"\0\0\0\0"


@pytest.mark.parametrize(("value", "message"), [
    ("?", 'expected base64, found "?"'), (5, "expected base64, found 5"),
    ("AAABAA==", "its trie has 65,536 bytes, but 4 are there"),
    (base64.b64encode(TABLE + MARK.encode()).decode(), "writes private-use characters above U+F0000, which mark"),
])
def test_a_table_of_replacements_that_is_broken_or_writes_marks_is_refused(tmp_path, small, value, message):
    state = {**small, "normalizer": {"type": "Precompiled", "precompiled_charsmap": value}}
    assert refused(tmp_path, state).startswith(f"tokenizer.json: normalizer: precompiled_charsmap: {message}")


def test_dropout_is_refused(tmp_path, small):
    state = {**small, "model": {**small["model"], "dropout": 0.5}}
    assert refused(tmp_path, state) == ("tokenizer.json: model: dropout: is 0.5, so that a text gets other ids each "
                                        "time: set it to null")
    assert read(tmp_path, {**small, "model": {**small["model"], "dropout": 0.0}})


def unigram(small: dict[str, Any], unk_id: Any) -> dict[str, Any]:
    vocab = [*([token, -1.0] for token in small["model"]["vocab"]), ["<unk>", -1.0]]
    return {**small, "pre_tokenizer": None, "decoder": None,
            "model": {"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": False}}


@pytest.mark.parametrize(("unk_id", "message"), [
    (0, "text that the vocabulary cannot spell becomes '<|endoftext|>', which is a control token (pad_token)"),
    (END, "text that the vocabulary cannot spell becomes '<|im_end|>', which is a control token (eos_token)"),
    (None, "missing, and the vocabulary cannot spell every text")])
def test_unknown_text_becomes_no_control_token(tmp_path, small, unk_id, message):
    assert refused(tmp_path, unigram(small, unk_id)) == f"tokenizer.json: model: unk_id: {message}"


def test_unknown_text_becomes_no_token_that_the_template_writes(tmp_path, small):
    tokenizer = read(tmp_path, unigram(small, 3))
    assert tokenizer.encode_ordinary("中") == [3] and "<|object_ref_start|>" in tokenizer.control_tokens()
    with pytest.raises(UserError, match=r"cannot spell becomes .*, which the chat template writes"):
        tokenizer.control_tokens("{{ '<|object_ref_start|>' }}")
    assert read(tmp_path, unigram(small, 292)).encode_ordinary("中") == [292]


def test_with_all_bytes_no_text_is_unknown(tmp_path, small):
    state = {**small, "model": {**small["model"], "unk_token": "<|endoftext|>"}}
    assert 0 not in read(tmp_path, state).encode_ordinary("中\U0001F600\0")


@pytest.mark.parametrize(("changes", "message"), [
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}},
     "normalizer, pre_tokenizer: letters or digits get lost or changed: 'The quick brown fox' becomes ''"),
    ({"normalizer": replaces("q", "")}, "normalizer, pre_tokenizer: letters or digits get lost or changed"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Removed", "invert": False}},
     "normalizer, pre_tokenizer: letters or digits get lost or changed"),
    ({"decoder": replaces("q", "")}, "decoder: 'quick' becomes 'uick'"),
    ({"normalizer": replaces("a", "b" * 33)}, "normalizer: makes a text up to 33 times longer, expected at most 32"),
    ({"normalizer": {"type": "Sequence", "normalizers": [replaces("a", "aa")] * 6}},
     "normalizer: makes a text up to 64 times longer, expected at most 32 times"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level(use_regex=False)] * 3}},
     "pre_tokenizer: has ByteLevel more than 2 times, and each doubles a text's bytes"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 101}},
     "pre_tokenizer: more than 100 steps, or nested more than 20 times"),
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "pre_tokenizer: length: is 0, expected at least 1"),
    ({"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}},
     "decoder: stop: expected 0 or 1, found 9"),
    ({"pre_tokenizer": by_regex("(A+)+$")},
     "pre_tokenizer: pretokenizers[0]: the regular expression '(A+)+$' repeats what can itself vary in length"),
    ({"normalizer": "NFC"}, 'normalizer: expected an object with a type, found "NFC"'),
    ({"normalizer": {"type": "Sequence"}}, "normalizer: normalizers: expected a list, found null"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, 5]}},
     "normalizer: normalizers[1]: expected an object with a type, found 5"),
])
def test_harmful_steps_are_named(tmp_path, small, changes, message):
    assert refused(tmp_path, {**small, **changes}).startswith(f"tokenizer.json: {message}")


@pytest.mark.parametrize(("vocab", "message"), [
    ({}, "model: vocab: no token stands for text"),
    ({"a": 37}, "'\"' and 'a' both have the id 37"),
    ({"a": 10**9}, "'a' has the id 1000000000, but there are only 292 tokens"),
])
def test_impossible_vocabularies_are_named(tmp_path, small, vocab, message):
    control = {entry["content"]: entry["id"] for entry in small["added_tokens"]}
    if vocab:
        vocab = {**small["model"]["vocab"], **vocab}
    state = {**small, "model": {**small["model"], "vocab": {**control, **vocab}}}
    assert refused(tmp_path, state) == f"tokenizer.json: {message}"


@pytest.mark.parametrize(("entry", "message"), [
    ({"content": "<think>", "id": 25}, "added_tokens[36]: '<think>' is in the list twice, with different values"),
    ({"content": "<new>", "id": 5}, "added_tokens[36]: '<new>' has the id 5, but 292 is its id in the vocabulary or"),
    ({"content": "<new>", "id": 10**9}, "added_tokens[36]: '<new>' has the id 1000000000, but 292 is its id in"),
    ({"content": "<new>", "id": 292, "single_word": True}, "the tokenizer unnamed: added_tokens: '<new>' has single_w"),
])
def test_impossible_added_tokens_are_named(tmp_path, small, entry, message):
    added = [*small["added_tokens"], {**small["added_tokens"][0], **entry}]
    message = message.replace("unnamed", str(tmp_path))
    assert refused(tmp_path, {**small, "added_tokens": added}).startswith(f"tokenizer.json: {message}")


@pytest.mark.parametrize(("config", "message"), [
    ({"add_bos_token": "no"}, 'add_bos_token: expected true or false, found "no"'),
    ({"legacy": 1}, "legacy: expected true or false, found 1"),
    ({"tokenizer_class": ["x"]}, "tokenizer_class: expected a string, found a list"),
    ({"additional_special_tokens": ""}, 'additional_special_tokens: expected a list of tokens, found ""'),
    ({"added_tokens_decoder": 0}, "added_tokens_decoder: expected an object, found 0"),
    ({"added_tokens_decoder": {"300": {"content": "<x>", "special": "yes"}}},
     'added_tokens_decoder.300: special: expected true or false, found "yes"'),
])
def test_fields_of_other_types_are_named(tmp_path, small, config, message):
    assert refused(tmp_path, small, **config) == f"tokenizer_config.json: {message}"


def test_what_a_tokenizer_holds_is_limited(tmp_path, small, monkeypatch):
    state = {**small, "model": {**small["model"], "merges": [["a", "b"]] * 3}}
    for limit, field in (("MAX_TOKENS", "model: vocab"), ("MAX_MERGES", "model: merges"),
                         ("MAX_ADDED", "added_tokens")):
        with monkeypatch.context() as patch:
            patch.setattr(f"minimind_sft.data.tokenizer_state.{limit}", 2)
            assert refused(tmp_path, state).startswith(f"tokenizer.json: {field}: expected at most 2 entries, found ")


def test_text_that_is_left_out_is_noted(tmp_path, small):
    assert read(tmp_path, small).notices == ()
    vocab = {"\0" if token == "q" else token: index for token, index in small["model"]["vocab"].items()}
    (notice,) = read(tmp_path, {**small, "model": {**small["model"], "vocab": vocab}}).notices
    assert notice.endswith("cannot spell every text and has no unk_token: the rest of a text is left out")


def test_expressions_of_real_tokenizers_are_accepted():
    steps = [step for one in PRE_TOKENIZERS for step, _ in steps_in({"pre_tokenizer": one.steps}, "pre_tokenizer", "")]
    expressions = [step["pattern"]["Regex"] for step in steps if "pattern" in step]
    assert len(expressions) > 5 and not any(map(regex_problem, expressions))
    assert not any(has_unknown_regex({"pre_tokenizer": one.steps}) for one in PRE_TOKENIZERS)
    for expression in (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}|\s+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s+(?!\S)""",
            r"[\p{Han}]+|[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+", r"(?=(\d{3})+(?!\d))", r"\d{1,3}(?=(?:\d{3})*\b)",
            r" ?[^(\s|[.,!?…])]+", " {2,}", "[]a]+", "[^]a]+", "[[:alpha:]]+", r"\x{AC00}+", "(?i)a+(?#a comment)"):
        assert regex_problem(expression) is None, expression


@pytest.mark.parametrize("expression", [
    "(A+)+$", "(a|b)*", "(a?)*", "((a*)b)*", "(a{1,3})+", "(a+){2,}", "(a+){30}", "a**", "(?<n>a+)+", "(a+)+?",
    r"(?:\w+\s*)*", r"(a)\1", r"\k<x>", "(?~a)", "(?x)a", "(*FAIL)", "a" * 20_000, "(" * 100])
def test_expressions_that_can_take_exponential_time_are_refused(expression):
    assert regex_problem(expression)


def test_a_slow_expression_is_given_up(monkeypatch, small):
    slow = BoundedTokenizer({**small, "pre_tokenizer": by_regex("A*A*A*[^A!]")}, is_timed=True)
    assert len(slow.encode("AB")) == 2 and slow.decode([40, 41])
    monkeypatch.setattr("minimind_sft.data.bounded_tokenizer.SECONDS", 0.2)
    for _ in range(2):
        with pytest.raises(UserError, match=r"tokenizer.json: its regular expressions took more than \d s for a text"):
            slow.encode("A" * 1500 + "!")


def test_panics_of_the_library_are_errors(small):
    broken = BoundedTokenizer({**small, "pre_tokenizer": {"type": "FixedLength", "length": 0}})
    with pytest.raises(UserError, match=r"tokenizer.json: fails at a text \(chunk size must be non-zero\)"):
        broken.encode("a")


def test_errors_of_the_library_are_errors(small):
    model = json.loads(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "nowhere")).to_str())["model"]
    broken = BoundedTokenizer({**small, "model": model, "added_tokens": [], "pre_tokenizer": None})
    with pytest.raises(UserError, match=r"tokenizer.json: fails at a text \(.*Missing \[UNK\] token"):
        broken.encode_batch(["b"])
