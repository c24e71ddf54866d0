"""Tokenizers that depend on the place, such as Llama 2's, give the ids that transformers gives the whole text."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from chats import conversation

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.samples import PretrainEncoder
from minimind_sft.data.tokenizer import TextStream, Tokenizer
from minimind_sft.errors import UserError

SPACE = "\u2581"
TEXTS = ["Who wrote Faust? Goethe wrote it.", "[INST] hi there [/INST] you are here", "<|user|>\nWhat is it?",
         "of the man and the dog, 1 2 3\n\n  x"]
LLAMA2 = ("{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
          "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
TINYLLAMA = ("{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")
PHI3 = ("{% for m in messages %}{{ '<|u|>' if m.role == 'user' else '<|a|>' }}{{ '\n' + m.content + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|a|>\n' }}{% endif %}")
PREPEND = {"normalizer": {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
    "pre_tokenizer": None}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme,
                                                  "split": False}}


STEP = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
BYTE_LEVEL = {"normalizer": None, "pre_tokenizer": STEP, "decoder": STEP}


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    """The tokenizer.json of a small tokenizer in the manner of SentencePiece, with byte fallback."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|u|>", "<|a|>", "<|end|>"]
    learner.train_from_iterator(TEXTS * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, min_frequency=1, show_progress=False))
    state = json.loads(learner.to_str())
    control = ("<unk>", "<s>", "</s>", "<|u|>", "<|a|>", "<|end|>")
    state["added_tokens"] = [{**entry, "rstrip": entry["content"].startswith("<|")}
                             for entry in state["added_tokens"] if entry["content"] in control]
    state["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return state


def folder(path: Path, state: dict[str, Any], template: str) -> Path:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "chat_template": template}
    for name, content in (("tokenizer", state), ("tokenizer_config", config)):
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("template", [LLAMA2, TINYLLAMA, PHI3], ids=["llama2", "tinyllama", "phi3"])
@pytest.mark.parametrize("how", [PREPEND, metaspace("first"), metaspace("always"), metaspace("never"), BYTE_LEVEL],
                         ids=["prepend", "first", "always", "never", "byte_level"])
def test_the_ids_are_those_of_the_whole_text(how, template, learned, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path, {**learned, **how}, template)
    theirs = transformers.AutoTokenizer.from_pretrained(str(path))
    ours = make_template(Tokenizer.from_folder(path))
    for turns in (("Who wrote it?", "Goethe, the man."), ("hi", "you", "of the dog", "x\n  y"), ("1", "é 中")):
        messages = [{"role": "user" if index % 2 == 0 else "assistant", "content": text}
                    for index, text in enumerate(turns)]
        chat = conversation(*((message["role"], message["content"]) for message in messages))
        (sequence,) = ours.encode(chat)
        whole = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert sequence.input_ids.tolist() == whole
        prompt = theirs.apply_chat_template(messages[:-1], tokenize=True, return_dict=False,
                                            add_generation_prompt=True)
        assert ours.generation_prompt_ids(messages[:-1]) == prompt == whole[:len(prompt)]
        assert ours.prompt_mismatches(chat) == []


@pytest.mark.parametrize("how", [PREPEND, metaspace("first")], ids=["prepend", "first"])
def test_long_running_text_is_encoded_in_parts_as_if_whole(how, learned, tmp_path, monkeypatch):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, {**learned, **how}, LLAMA2))
    monkeypatch.setattr("minimind_sft.data.samples.MAX_CHARACTERS", 40)
    text = "the man and the dog\n" * 10
    encoded = PretrainEncoder(tokenizer, 10_000).encode_text(text, "a:1")
    ids = encoded.samples[0][0].input_ids.tolist()
    whole = [*tokenizer.encode(text), tokenizer.eos_id]
    assert ids == whole[:len(ids)] and len(whole) - len(ids) <= 1


def test_texts_begin_with_bos_if_the_tokenizer_adds_it(learned, tmp_path):
    processor = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
                 "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                 "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    path = folder(tmp_path, {**learned, **PREPEND, "post_processor": processor}, LLAMA2)
    encoder = PretrainEncoder(Tokenizer.from_folder(path), 64)
    assert encoder.settings["begins_with_bos"] is True
    assert encoder.encode_text("the man", "a:1").samples[0][0].input_ids[0] == 1
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}), encoding="utf-8")
    encoder = PretrainEncoder(Tokenizer.from_folder(path), 64)
    assert "begins_with_bos" not in encoder.settings
    assert encoder.encode_text("the man", "a:1").samples[0][0].input_ids[0] != 1


def test_a_stream_waits_for_all_bytes_of_a_character(learned, tmp_path):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, {**learned, **metaspace("first")}, LLAMA2))
    stream = TextStream(tokenizer)
    ids = tokenizer.encode_ordinary("é中a")
    pushed = [stream.push(token_id) for token_id in ids] + [stream.flush()]
    assert "".join(pushed) == "é中a" and not any("\ufffd" in text for text in pushed)


@pytest.mark.parametrize(("flag", "how"), [("single_word", metaspace("first")), ("normalized", PREPEND)])
def test_tokens_that_depend_on_their_neighbours_are_refused(flag, how, learned, tmp_path):
    added = [{**entry, flag: entry["content"] == "</s>"} for entry in learned["added_tokens"]]
    path = folder(tmp_path, {**learned, **how, "added_tokens": added}, LLAMA2)
    with pytest.raises(UserError, match=rf"added_tokens: '</s>' has {flag} true, .* set {flag} to false"):
        make_template(Tokenizer.from_folder(path))


def test_where_transformers_5_reads_llama_s_class_otherwise_a_notice_says_so(learned, tmp_path):
    for how, legacy, said in ((PREPEND, False, 1), (PREPEND, True, 0), (metaspace("first"), False, 0),
                              (metaspace("first"), True, 1), (metaspace("never"), False, 0)):
        path = folder(tmp_path, {**learned, **how}, LLAMA2)
        (path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": legacy}), encoding="utf-8")
        assert sum("transformers 5 does so" in notice for notice in Tokenizer.from_folder(path).notices) == said


def test_runs_of_blanks_are_found_in_data(learned, tmp_path):
    """GPT-NeoX's and Phi's tokenizers have such added tokens; they are ordinary text."""
    blanks = {"id": len(learned["model"]["vocab"]), "content": "    ", "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": False}
    state = {**learned, **metaspace("never"), "added_tokens": [*learned["added_tokens"], blanks]}
    tokenizer = Tokenizer.from_folder(folder(tmp_path, state, LLAMA2))
    assert tokenizer.encode_ordinary("x    y</s>")[1] == blanks["id"]
    assert tokenizer.encode_ordinary("x    y") == tokenizer.encode("x    y")
    assert "    " not in tokenizer.control_tokens("    ")
