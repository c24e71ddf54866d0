"""The tokenizer of a GGUF file; llama.cpp and transformers are the judges."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_files import NEEDS_SMOLLM2, read_once, smollm2
from llama_cpp_judge import INSTALL, ask, node_modules
from tokenizers import pre_tokenizers

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

gguf = pytest.importorskip("gguf")

PROJECT = Path(__file__).resolve().parent.parent
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
TOKENS = ["<end>", "<|user|>", "<think>", *"abcdeĠĊ1", "ab", "Ġab", "[PAD13]"]
FIELDS: dict[str, Any] = {
    "model": "gpt2", "pre": "gpt-2", "tokens": TOKENS, "merges": ["a b", "Ġ ab"], "bos_token_id": 1, "eos_token_id": 0,
    "token_type": [CONTROL, CONTROL, USER_DEFINED, *[NORMAL] * 10, UNUSED]}
SENTENCEPIECE = {"model": "llama", "scores": [0.0] * 14, "token_type": [CONTROL, CONTROL, USER_DEFINED, *[NORMAL] * 11]}
TEMPLATE = ("{% for m in messages %}<|user|>{{ m.content }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<|user|>{% endif %}")


def gguf_file(path: Path, templates: dict[str, Any] | None = None, architecture: str = "llama",
              **changed: Any) -> Path:
    """Writes a GGUF file without tensors; a field that is None is left out."""
    writer = gguf.GGUFWriter(path, architecture)
    fields = {**FIELDS, **changed}
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()} | (templates or {})
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif value is not None:
            writer.add_string(name, value)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file,
                  writer.close):
        write()
    return path


def refused(path: Path, **changed: Any) -> str:
    with pytest.raises(UserError) as error:
        Tokenizer.from_gguf(gguf_file(path / "x.gguf", **changed))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path / 'x.gguf'}: ")


def test_a_small_one(tmp_path):
    tokenizer = Tokenizer.from_gguf(gguf_file(tmp_path / "x.gguf", {"tokenizer.chat_template": TEMPLATE}))
    assert tokenizer.encode("ab ab\n1<end><think>") == [11, 12, 9, 10, 0, 2]
    assert tokenizer.decode([11, 12, 9, 10, 0, 2]) == "ab ab\n1<end><think>"
    assert 0 not in tokenizer.encode_ordinary("ab<end>")
    assert tokenizer.special == {"bos_token": "<|user|>", "eos_token": "<end>"}
    assert tokenizer.vocab_size == 13, "unused tokens fill the embedding up"
    assert tokenizer.control_tokens() == ["<end>", "<|user|>"] and "no unk_token" in tokenizer.notices[0]
    template = ChatTemplate(tokenizer)
    assert template.end_of_turn == "<end>"
    assert template.generation_prompt_ids([{"role": "user", "content": "ab"}]) == [1, 11, 0, 1]


def test_templates_may_have_names(tmp_path):
    named = {"tokenizer.chat_template": TEMPLATE, "tokenizer.chat_templates": ["tool_use"],
             "tokenizer.chat_template.tool_use": f"tools {TEMPLATE}"}
    tokenizer = Tokenizer.from_gguf(gguf_file(tmp_path / "x.gguf", named))
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.named_templates == {"default": TEMPLATE, "tool_use": f"tools {TEMPLATE}"}


@pytest.mark.parametrize("pre", ["default", None])
def test_an_unrecognised_pre_tokenizer_is_noted(tmp_path, pre):
    notice, _ = Tokenizer.from_gguf(gguf_file(tmp_path / "x.gguf", pre=pre)).notices
    assert f"tokenizer.ggml.pre: {pre or 'missing'}: the program that wrote the file did not" in notice
    assert "--tokenizer_path FOLDER" in notice


@pytest.mark.parametrize(("changed", "message"), [
    ({"model": "bert"}, "tokenizer.ggml.model: the tokenizer is WordPiece (bert), and only byte-level BPE (gpt2) and "
                        "SentencePiece's BPE (llama) can be read from a GGUF file; --tokenizer_path FOLDER can name "),
    ({"model": "llama"}, "tokenizer.ggml.scores: expected a list, found no such field; --tokenizer_path FOLDER"),
    ({"model": "llama", "architecture": "phi3"}, "tokenizer.ggml.model: SentencePiece (llama) can be read for the "
                                                 "architecture llama, found phi3; --tokenizer_path FOLDER"),
    ({"model": "new"}, "tokenizer.ggml.model: the tokenizer is of an unknown kind (new), and only "),
    ({"model": None}, "tokenizer.ggml.model: expected a string, found no such field; --tokenizer_path FOLDER"),
    ({"model": "a\nb"}, "tokenizer.ggml.model: the tokenizer is of an unknown kind (a\\nb), and only "),
    ({"pre": ["gpt-2"]}, "tokenizer.ggml.pre: expected a string, found a list"),
    ({"pre": "falcon"}, "tokenizer.ggml.pre: the unknown pre-tokenizer falcon, expected one of gpt-2, phi-2, smollm,"),
    ({"tokens": None}, "tokenizer.ggml.tokens: expected a list, found no such field"),
    ({"tokens": [1, 2]}, "tokenizer.ggml.tokens: expected a list of strings"),
    ({"tokens": [*TOKENS[:-2], "ab", "x"]}, "tokenizer.ggml.tokens: 'ab' is in the list twice"),
    ({"token_type": ["1"] * 14}, "tokenizer.ggml.token_type: expected a list of whole numbers"),
    ({"token_type": [*[1] * 13, 99]}, "tokenizer.ggml.token_type: 99 is no type of token, expected 0 to 6"),
    ({"token_type": [1, 1]}, "tokenizer.ggml.token_type: 2 values for 14 tokens"),
    ({"merges": None}, "tokenizer.ggml.merges: expected a list, found no such field"),
    ({"merges": ["a b", "ab"]}, "tokenizer.ggml.merges: number 1: expected two tokens, found 'ab'"),
    ({"merges": ["a c"]}, "not a tokenizer ("),
    ({"eos_token_id": 99}, "tokenizer.ggml.eos_token_id: expected the id of a token, found 99"),
    ({"eos_token_id": 13}, "tokenizer.ggml.eos_token_id: expected the id of a token, found 13"),
    ({"tokens": ["<end>"] * 400_001}, "tokenizer.ggml.tokens: expected at most 400,000 entries, found 400,001"),
    ({**SENTENCEPIECE, "tokens": [*TOKENS[:-1], "a" * 20_000]}, "tokenizer.ggml.tokens: the tokens are so long that"),
    ({**SENTENCEPIECE, "scores": [*[0.0] * 13, float("nan")]}, "tokenizer.ggml.scores: expected finite numbers"),
    ({**SENTENCEPIECE, "add_space_prefix": "no"}, "tokenizer.ggml.add_space_prefix: expected true or false, found"),
    ({"templates": {"tokenizer.chat_template": 3}}, "tokenizer.chat_template: expected a string, found 3"),
    ({"add_bos_token": "no"}, 'tokenizer.ggml.add_bos_token: expected true or false, found "no"'),
    ({"templates": {"tokenizer.chat_templates": "x"}}, 'tokenizer.chat_templates: expected a list of names, found "x"'),
    ({"templates": {"tokenizer.chat_templates": ["x"]}}, "tokenizer.chat_template: x: expected a string, found null"),
])
def test_bad_metadata_are_named(tmp_path, changed, message):
    assert refused(tmp_path, **changed).startswith(message)


def test_a_small_one_in_sentencepiece_s_manner(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "\u2581", "a", "b", "\u2581a", "ab", "\u2581ab"]
    types = [2, CONTROL, CONTROL, 6, 6, 6, *[NORMAL] * 6]
    scores = [0.0] * 6 + [-float(index) for index in range(6)]
    fields = {"model": "llama", "pre": None, "merges": None, "tokens": tokens, "token_type": types, "scores": scores}
    tokenizer = Tokenizer.from_gguf(gguf_file(tmp_path / "x.gguf", **fields, eos_token_id=2))
    assert tokenizer.encode("ab a\né") == [11, 9, 3, 4, 5], "\u2581a has a better score than ab"
    assert tokenizer.encode("a</s>b") == [9, 2, 6, 8]
    assert tokenizer.decode([11, 9, 3, 4, 5]) == "ab a\né"
    assert tokenizer.adds_bos and tokenizer.bos_id == 1


def test_an_empty_control_token_means_nothing(tmp_path):
    tokens = ["", *TOKENS[1:]]
    path = gguf_file(tmp_path / "x.gguf", {"tokenizer.chat_template": TEMPLATE.replace("<end>", "<|user|>")},
                     tokens=tokens, eos_token_id=1)
    tokenizer = Tokenizer.from_gguf(path)
    assert "" not in tokenizer.added_tokens
    assert ChatTemplate(tokenizer).end_of_turn == "<|user|>"


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory) -> Path:
    """The vocabularies of real models in llama.cpp's repository, with texts and the ids that transformers gives them.

    node-llama-cpp comes with the repository as a git bundle.
    """
    modules = Path(os.environ.get("MINIMIND_NODE_MODULES", PROJECT / "proofs/llama_cpp/node_modules"))
    bundle = modules / "node-llama-cpp/llama/gitRelease.bundle"
    if not bundle.exists() or shutil.which("git") is None:
        pytest.skip("needs git, and node-llama-cpp in proofs/llama_cpp/node_modules or $MINIMIND_NODE_MODULES")
    folder = tmp_path_factory.mktemp("llama.cpp")
    git = ("git", "-C", str(folder))
    heads = subprocess.run(["git", "bundle", "list-heads", str(bundle)], capture_output=True, text=True, check=True)
    commit = heads.stdout.split()[0]
    for command in ((*git, "init", "-q"), (*git, "fetch", "-q", str(bundle), commit),
                    (*git, "checkout", "-q", commit, "--", "models")):
        subprocess.run(command, check=True, capture_output=True)
    return folder / "models"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "qwen2"])
def test_real_vocabularies_give_the_ids_of_transformers(name, vocabularies):
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(path)
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = Path(f"{path}.out").read_text(encoding="utf-8").splitlines()
    assert len(expected) > 40
    for text, ids in zip(texts, expected, strict=False):  # the file of texts ends with a separator
        assert tokenizer.encode(text) == [int(one) for one in ids.split()], text


@pytest.mark.slow
@pytest.mark.skipif(node_modules() is None, reason=INSTALL)
@pytest.mark.skipif(smollm2() is None, reason=NEEDS_SMOLLM2)
def test_smollm2_encodes_real_text_as_its_peers(shared, monkeypatch):
    """10,000 lines: an encyclopedia, web pages, instructions in English and Chinese, tool calls, code."""
    path, transformers = smollm2(), pytest.importorskip("transformers")
    texts = (shared / "data/wiki_demo.txt").read_text(encoding="utf-8").splitlines()[:1000]
    texts += (shared / "data/c4_demo.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    for name in ("alpaca_en_demo", "alpaca_zh_demo", "glaive_toolcall_en_demo", "glaive_toolcall_zh_demo"):
        texts += list(strings(json.loads((shared / f"data/{name}.json").read_text(encoding="utf-8"))))[:2000]
    texts += [line for file in sorted(Path(__file__).parent.glob("*.py"))
              for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(texts) >= 10_000
    texts = texts[:10_000]

    read_once(monkeypatch)
    ours = Tokenizer.from_gguf(path)
    encoded = [ours.encode(text) for text in texts]
    (answer,) = ask([{"model": path, "tokenize": texts, "parseSpecial": True}])
    assert encoded == answer["tokenize"]
    theirs = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # transformers does not know the name "smollm"; these two steps are those of SmolLM2's published tokenizer.json.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert encoded == theirs(texts, add_special_tokens=False)["input_ids"]
