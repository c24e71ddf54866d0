"""Tokenizers of vocab.json and merges.txt; transformers is the judge."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

TEXTS = ("I'm don'T 2023  x\n\n  y", "中文 école e\u0301 ½", "if (x==3) {\n\treturn;\n}\n",
         "a<|endoftext|>b <|im_start|>c")
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A folder with vocab.json and merges.txt, which ends with `<|endoftext|>`."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), min_frequency=1,
        show_progress=False)
    learner.train_from_iterator(TEXTS * 2, trainer)
    learner.add_tokens([END])
    folder = tmp_path_factory.mktemp("bpe")
    learner.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps({**vocab, END: len(vocab)}), encoding="utf-8")
    return folder


def folder(path: Path, learned: Path, **files: Any) -> Path:
    """Copies the two files, and writes others as JSON."""
    for name in ("vocab.json", "merges.txt"):
        (path / name).write_bytes((learned / name).read_bytes())
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content),
                                           encoding="utf-8")
    return path


def chatml(first: int) -> dict:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"added_tokens_decoder": {str(first + index): {"content": token, "special": True, **flags}
                                     for index, token in enumerate((END, "<|im_start|>", "<|im_end|>"))},
            "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(("name", "files"), [
    ("GPT2Tokenizer", {"tokenizer_config": {"model_max_length": 1024}, "config": {"model_type": "gpt2"}}),
    ("GPT2Tokenizer", {"config": {"model_type": "gpt2"}}),
    ("GPT2Tokenizer", {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}}),
    ("Qwen2Tokenizer", {"tokenizer_config": {"tokenizer_class": "Qwen2TokenizerFast"}}),
    ("Qwen2Tokenizer", {"config": {"model_type": "qwen2"}, "tokenizer_config": chatml(320)}),
    ("Qwen2Tokenizer", {"config": {"model_type": "qwen2"}, "added_tokens": {"<|im_start|>": 321, "<|im_end|>": 322},
                        "tokenizer_config": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}}),
])
def test_ids_are_those_of_transformers(name, files, learned, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path, learned, **files)
    ours, theirs = Tokenizer.from_folder(path), getattr(transformers, name).from_pretrained(str(path))
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.decode(ours.encode(TEXTS[0])).strip() == TEXTS[0]
    assert ours.notices == () and ours.end_of_document_id == 320
    assert (ours.eos_id, ours.bos_id) == (theirs.eos_token_id, theirs.bos_token_id)


@pytest.mark.parametrize(("files", "message"), [
    ({}, ": nothing says how the tokenizer of vocab.json and merges.txt splits text: its tokenizer_config.json needs "
         "tokenizer_class, or its config.json model_type"),
    ({"config": {"model_type": "llama"}}, ": nothing says how"),
    ({"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}},
     "/tokenizer_config.json: tokenizer_class: RobertaTokenizer with vocab.json and merges.txt cannot be read, only "
     "GPT2Tokenizer, CodeGenTokenizer, Qwen2Tokenizer; convert it once: python -c "),
    ({"vocab": "[]"}, "/vocab.json: expected an object of tokens and ids, found an empty list"),
    ({"vocab": {"a": "b"}}, "/vocab.json: a: expected an id, found \"b\""),
    ({"vocab": {"a": 0}}, "/tokenizer.json: not a tokenizer ("),
])
def test_what_cannot_be_read_is_named(files, message, learned, tmp_path):
    if "vocab" in files:
        files = {**files, "config": {"model_type": "gpt2"}}
    path = folder(tmp_path, learned, **files)
    with pytest.raises(UserError) as error:
        Tokenizer.from_folder(path)
    assert "\n" not in str(error.value)
    assert str(error.value).removeprefix(str(path)).startswith(message)


def test_a_broken_merge_is_named_by_its_line(learned, tmp_path):
    path = folder(tmp_path, learned, config={"model_type": "gpt2"})
    (path / "merges.txt").write_text("#version: 0.2\na b\nab\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"merges\.txt:3: expected two tokens, found 'ab'"):
        Tokenizer.from_folder(path)
