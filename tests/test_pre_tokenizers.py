"""How text is split before merges, by the names in GGUF files; llama.cpp is the judge."""

import json
from pathlib import Path

import pytest
import tokenizers
from llama_cpp_judge import INSTALL, ask, node_modules

from minimind_sft.data.pre_tokenizers import BY_NAME, PRE_TOKENIZERS, PreTokenizer, pre_tokenizer_name

TEXTS = (
    "I'm don't 2023 1234567 a1b2  5   x\n\n  y\r\n z é ñ 中文 中国人 12345！！ Hello WORLD HelloWorld a/b",
    "don'T 'LL 'S http://x.y/z ١٢٣ ½²  \t\tif (x==3) {\n    return y;\n}\n\n\n",
    "  lead", "trail  ", "a b", "ไทย 한국어 x² ǅenan",
)
# llama.cpp's expression for tekken takes only ASCII letters for upper case, and no combining mark for a letter.
NOT_FOR_TEKKEN = ("ÀB ÉCOLE école", "a\u0301bc हिन्दी")


def pieces(name: str, text: str) -> list[str]:
    """Returns the pieces of a text in which a space is an underscore."""
    state = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": BY_NAME[name].steps}
    splitter = tokenizers.Tokenizer.from_str(json.dumps(state)).pre_tokenizer
    assert splitter is not None
    text = text.replace("_", " ")
    return [text[start:end].replace(" ", "_") for _, (start, end) in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize(("name", "expected"), [
    ("gpt-2", "I|'m|_1234|__|_DON|'|T|_(|é|),|\n\n__|_x"),
    ("smollm", "I|'m|_|1|2|3|4|__|_DON|'|T|_(|é|),|\n\n__|_x"),
    ("qwen2", "I|'m|_|1|2|3|4|__|_DON|'T|_(|é|),\n\n|__|_x"),
    ("llama-bpe", "I|'m|_|123|4|__|_DON|'T|_(|é|),\n\n|__|_x"),
    ("tekken", "I|'m|_|1|2|3|4|__|_DON|'T|_(|é|),\n\n|__|_x"),
    ("default", "I|'|m|_|123|4|__|_DON|'|T|_|(|é|),|\n\n__|_x"),
])
def test_pieces(name, expected):
    assert pieces(name, expected.replace("|", "")) == expected.split("|")


def test_qwen35_keeps_combining_marks_with_their_letters():
    assert pieces("qwen2", "a\u0301b") == ["a", "\u0301b"]
    assert pieces("qwen35", "a\u0301b") == ["a\u0301b"]


@pytest.mark.parametrize("one", PRE_TOKENIZERS, ids=lambda one: one.names[0])
def test_a_tokenizer_json_is_recognised(one: PreTokenizer):
    state = {"model": {"ignore_merges": one.ignore_merges}, "pre_tokenizer": one.steps}
    assert pre_tokenizer_name(state) == one.names[0]
    nested = {"type": "Sequence", "pretokenizers": [{**one.steps}]}
    assert pre_tokenizer_name({**state, "pre_tokenizer": nested}) == one.names[0]
    assert pre_tokenizer_name({**state, "pre_tokenizer": None}) is None


def test_the_bundled_tokenizer_and_minimind_s_have_names(shared):
    model = Path(__file__).resolve().parent.parent / "model"
    for folder, name in ((model, "smollm"), (shared / "reference/minimind", "gpt-2")):
        assert pre_tokenizer_name(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))) == name


@pytest.fixture(scope="module")
def merges() -> dict:
    """A tokenizer.json whose merges cross every border between pieces, so that a wrong border shows in the ids."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), min_frequency=1,
        max_token_length=6, show_progress=False)
    learner.train_from_iterator([text[at:at + 7] for text in TEXTS + NOT_FOR_TEKKEN for at in range(len(text))] * 3,
                                trainer)
    return json.loads(learner.to_str())


def write_vocabulary(path: Path, name: str, merges: dict) -> Path:
    """Writes a GGUF file that holds only a tokenizer."""
    gguf = pytest.importorskip("gguf")
    vocab = merges["model"]["vocab"]
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in ((writer.add_context_length, 32), (writer.add_embedding_length, 8), (writer.add_block_count, 1),
                       (writer.add_feed_forward_length, 8), (writer.add_head_count, 1),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_tokenizer_model, "gpt2"),
                       (writer.add_tokenizer_pre, name), (writer.add_token_list, sorted(vocab, key=vocab.get)),
                       (writer.add_token_types, [1] * len(vocab)), (writer.add_bos_token_id, 0),
                       (writer.add_token_merges, [" ".join(pair) for pair in merges["model"]["merges"]])):
        add(value)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file,
                  writer.close):
        write()
    return path


@pytest.mark.skipif(node_modules() is None, reason=INSTALL)
def test_llama_cpp_splits_alike(merges, tmp_path):
    texts = {name: TEXTS + NOT_FOR_TEKKEN * (name != "tekken") for name in BY_NAME}
    answers = ask([{"model": write_vocabulary(tmp_path / f"{name}.gguf", name, merges), "tokenize": texts[name]}
                   for name in BY_NAME])
    for (name, one), answer in zip(BY_NAME.items(), answers, strict=True):
        model = {**merges["model"], "ignore_merges": one.ignore_merges}
        ours = tokenizers.Tokenizer.from_str(json.dumps({**merges, "pre_tokenizer": one.steps, "model": model}))
        for text, ids in zip(texts[name], answer["tokenize"], strict=True):
            assert ours.encode(text).ids == ids, (name, text)
