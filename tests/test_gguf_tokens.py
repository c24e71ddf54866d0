"""Tokenizers as metadata of GGUF files: llama.cpp gives a text the same ids. And what has no place there is refused."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from chats import BUNDLED, TOKENIZER
from export_models import QWEN3, random_weights
from exports import export_of
from gguf_files import smollm2
from llama_cpp_judge import INSTALL, ask, node_modules

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.gguf_tokenizer import merges_in_order
from minimind_sft.data.pre_tokenizers import LLAMA3, QWEN2, by_regex, byte_level
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.export.choice import choose_family
from minimind_sft.export.gguf import write_gguf
from minimind_sft.export.gguf_tokens import tokenizer_metadata
from minimind_sft.export.model import Export
from minimind_sft.model.families.gguf_registry import GGUF_FAMILIES

TEXTS = (
    "I'm here, you'LL see: don't 2023 1234567 a1b2  5   x\n\n  y\r\n z",
    "中国的首都是北京。请用一句话介绍长城，并说明！",
    "def f(x: int) -> int:\n    return x ** 2  # ½²\n\n\n", "é ñ ǅenan ١٢٣ ไทย 한국어 🙂👍🏽 naïve",
    "   ", " a", "b ", "", "\t\tif (x==3) {\n    return y;\n}\n", "https://example.org/a_b?c=1&d=%20e#f",
)
CHAT = ("<|im_start|>user\nHi <think>there</think><|im_end|>\n<|im_start|>assistant\n<tool_call>{}</tool_call>"
        "<|endoftext|>")


def trained(**changes) -> Tokenizer:
    """A small tokenizer whose merges cross every border between pieces, so that a wrong border shows in the ids."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), min_frequency=1,
        max_token_length=6, show_progress=False)
    learner.train_from_iterator([text[at:at + 7] for text in TEXTS for at in range(len(text))] * 3, trainer)
    learner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    learner.add_tokens(["<think>", "</think>"])
    state = json.loads(learner.to_str())
    state["model"] |= {name: changes.pop(name) for name in ("ignore_merges", "dropout") if name in changes}
    return Tokenizer({**state, **changes}, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})


def sentencepiece(space_prefix: bool = True, **changes) -> Tokenizer:
    """A small tokenizer in the manner of Llama 2's: characters, parts of words, and bytes for everything else."""
    words = [word for text in TEXTS for word in text.replace(" ", " \u2581").split()]
    parts = [word[at:at + size] for size in (2, 3, 4) for word in words for at in range(len(word) - size + 1)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
              *dict.fromkeys((*"".join(words), *parts))]
    vocab = {token: index for index, token in enumerate(tokens)}
    prepend = [{"type": "Prepend", "prepend": "\u2581"}] if space_prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    model = {"type": "BPE", "vocab": vocab, "merges": merges_in_order(tokens[259:], vocab), "unk_token": "<unk>",
             "fuse_unk": True, "byte_fallback": True}
    added = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for index, token in enumerate(tokens[:3])]
    return Tokenizer({"model": {**model, **changes}, "added_tokens": added, "pre_tokenizer": None, "decoder": None,
                      "post_processor": None, "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]}},
                     {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


KINDS = {
    "gpt-2": {"pre_tokenizer": byte_level(use_regex=True)},
    "qwen2": {"pre_tokenizer": by_regex(QWEN2), "normalizer": {"type": "NFC"}},
    "llama-bpe": {"pre_tokenizer": by_regex(LLAMA3), "ignore_merges": True},
}


def metadata_of(tokenizer: Tokenizer, **config) -> dict:
    weights = random_weights(replace(QWEN3, hidden_size=8, vocab_size=config.pop("vocab_size", tokenizer.vocab_size)))
    return tokenizer_metadata(Export(weights, tokenizer, None, "float32"))


def written(path: Path, tokenizer: Tokenizer) -> Path:
    weights = random_weights(replace(QWEN3, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                 vocab_size=tokenizer.vocab_size))
    write_gguf(path, Export(weights, tokenizer, None, "float32"), choose_family(weights.config, GGUF_FAMILIES, None))
    return path


@pytest.fixture(scope="module")
def candidates(shared) -> dict[str, Tokenizer]:
    """Tokenizers by name: those of models, where they are at hand, and one with each way of splitting text."""
    found = {"bundled": TOKENIZER, "SentencePiece": sentencepiece(),
             "SentencePiece without a first space": sentencepiece(space_prefix=False)}
    found |= {name: trained(**changes) for name, changes in KINDS.items()}
    if shared is not None:
        found["MiniMind-3"] = Tokenizer.from_folder(shared / "reference/minimind")
    path = smollm2()
    return found | {"SmolLM2": Tokenizer.from_gguf(path)} if path else found


@pytest.mark.skipif(node_modules() is None, reason=INSTALL)
def test_llama_cpp_gives_the_same_ids(candidates, tmp_path):
    paths = {name: written(tmp_path / f"{name}.gguf", one) for name, one in candidates.items()}
    plain, chat = [ask([{"model": path, "tokenize": texts, "parseSpecial": special} for path in paths.values()])
                   for texts, special in ((TEXTS, False), ((*TEXTS, CHAT), True))]
    for (name, tokenizer), ordinary, with_control in zip(candidates.items(), plain, chat, strict=True):
        for text, ids in zip(TEXTS, ordinary["tokenize"], strict=True):
            assert ids == tokenizer.encode_ordinary(text), (name, text)
        for text, ids in zip((*TEXTS, CHAT), with_control["tokenize"], strict=True):
            assert ids == tokenizer.encode(text), (name, text)


@pytest.mark.skipif(node_modules() is None, reason=INSTALL)
def test_llama_cpp_stops_where_we_stop(tmp_path):
    export = export_of(QWEN3)
    write_gguf(tmp_path / "m.gguf", export, GGUF_FAMILIES["qwen3"])
    (answer,) = ask([{"model": tmp_path / "m.gguf", "ends": [0, 1, 2, 3, 400]}])
    assert export.stop_ids == [2, 0]
    assert answer["ends"] == [True, False, True, False, False]


def test_metadata_of_the_bundled_tokenizer():
    metadata = tokenizer_metadata(export_of(replace(QWEN3, vocab_size=6403)))
    assert len(metadata["tokenizer.ggml.tokens"]) == len(metadata["tokenizer.ggml.token_type"]) == 6403
    assert metadata["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert metadata["tokenizer.ggml.tokens"][-2:] == ["[PAD6401]", "[PAD6402]"]
    think, end = (TOKENIZER.token_to_id(token) for token in ("<think>", "<|im_end|>"))
    types = metadata["tokenizer.ggml.token_type"]
    assert (types[end], types[think], types[1000], types[-1]) == (3, 4, 1, 5)
    expected = {"model": "gpt2", "pre": "smollm", "eos_token_id": 2, "eot_token_id": 2, "padding_token_id": 0,
                "add_bos_token": False, "add_eos_token": False, "add_space_prefix": False}
    assert {name: metadata.get(f"tokenizer.ggml.{name}") for name in expected} == expected
    assert metadata["tokenizer.chat_template"] == BUNDLED.source


def test_a_template_for_tools_has_a_name():
    source = TOKENIZER.chat_template
    assert source is not None
    named = {"default": source, "tool_use": source + "{# tools #}"}
    both = Tokenizer(TOKENIZER.state, TOKENIZER.special, source, named)
    export = replace(export_of(QWEN3), tokenizer=both, template=make_template(both))
    metadata = tokenizer_metadata(export)
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"].endswith("{# tools #}")


@pytest.mark.parametrize(("changes", "message"), [
    ({"pre_tokenizer": {"type": "Whitespace"}}, "tokenizer.json: pre_tokenizer: splits text in a way that has no name"),
    ({"pre_tokenizer": byte_level(use_regex=True, add_prefix_space=True)}, "tokenizer.json: pre_tokenizer: splits "),
    ({"normalizer": {"type": "Lowercase"}}, 'tokenizer.json: normalizer: is "Lowercase", which a GGUF file cannot say'),
    ({"normalizer": {"type": "NFC"}}, 'tokenizer.json: normalizer: is "NFC", which a GGUF file cannot say'),
    ({"dropout": 0.1}, "tokenizer.json: model.dropout: is 0.1, which a GGUF file cannot say"),
    ({"ignore_merges": True}, "tokenizer.json: pre_tokenizer: splits text in a way that has no name "),
])
def test_what_llama_cpp_cannot_do_is_refused(changes, message):
    with pytest.raises(UserError) as error:
        metadata_of(trained(**{"pre_tokenizer": byte_level(use_regex=True), **changes}))
    assert str(error.value).startswith(message)


def test_merges_that_no_scores_give_are_refused():
    merges = sentencepiece().state["model"]["merges"]
    with pytest.raises(UserError, match=r"^tokenizer.json: model.merges: are in no order of the tokens"):
        metadata_of(sentencepiece(merges=merges[1:]))


def test_a_vocabulary_without_its_characters_is_refused():
    state = copy.deepcopy(sentencepiece().state)
    del state["model"]["vocab"]["首"]
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "首" not in pair]
    with pytest.raises(UserError, match=r"^tokenizer.json: model.vocab: lacks characters of its longer tokens"):
        metadata_of(Tokenizer(state, sentencepiece().special))


def test_tokens_that_take_spaces_along_are_refused():
    state = copy.deepcopy(TOKENIZER.state)
    state["added_tokens"][3]["lstrip"] = True
    with pytest.raises(UserError, match=r"^tokenizer.json: added_tokens: '.*' has lstrip, which a GGUF file cannot"):
        metadata_of(Tokenizer(state, TOKENIZER.special))


def test_a_model_with_fewer_rows_than_tokens_is_refused():
    with pytest.raises(UserError, match=r"^tokenizer.json: 6,400 tokens, but the model's embedding has 6,000 rows$"):
        metadata_of(TOKENIZER, vocab_size=6000)
