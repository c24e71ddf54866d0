import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from chats import MODEL
from chats import TOKENIZER as BUNDLED
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import TextStream, Tokenizer
from minimind_sft.errors import UserError

SPECIMENS = [
    "计算 123 + 45 = 168。\r\n\n  two  spaces\t😀 é ① ｆ \u200b\x00",
    "<|im_start|>user\n<think>?<|buffer1|></tool_call><|im_end|>\n<|endoftext|>",
    "def f(x):\n    return {'a': [1, 2.5]}\n",
    "",
]


def copy_of_model(folder: Path, config: dict | None = None, state: dict | None = None) -> Path:
    """Copies the bundled folder with some entries of its two files replaced."""
    for name, changes in (("tokenizer.json", state), ("tokenizer_config.json", config)):
        content = json.loads((MODEL / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **(changes or {})}), encoding="utf-8")
    return folder


def test_size_and_special_tokens_of_the_bundled_tokenizer():
    assert BUNDLED.vocab_size == 6400
    assert BUNDLED.special == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                               "unk_token": "<|endoftext|>"}
    assert (BUNDLED.bos_id, BUNDLED.eos_id, BUNDLED.end_of_document_id) == (1, 2, 0)
    assert BUNDLED.token_to_id("</think>") == 26
    assert BUNDLED.id_to_token(25) == "<think>"
    assert BUNDLED.token_to_id("no such token") is None


def test_control_tokens_equal_minimind_3_s(shared):
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
                    for folder in (MODEL, shared / "reference/minimind"))
    assert len(theirs) == 36
    assert ours == theirs


def test_ids_written_out():
    """Control tokens and bytes have the same ids however the merges were trained, and digits never merge."""
    assert BUNDLED.encode("1+1") == BUNDLED.encode_ordinary("1+1") == [52, 46, 52]
    assert BUNDLED.encode("<|im_end|>\n") == [2, 234]
    assert BUNDLED.decode([1, 52, 2, 25]) == "<|im_start|>1<|im_end|><think>"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_unicode_string_is_decoded_exactly_without_control_tokens(text):
    ids = BUNDLED.encode_ordinary(text)
    assert BUNDLED.decode(ids) == text
    assert all(token_id >= 36 for token_id in ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "assistant\n", "<think>", "<|", "|>", "\U000f0000",
                                 "\U000f0001", "中"])).map("".join))
def test_text_that_spells_control_tokens_stays_text(text):
    ids = BUNDLED.encode_ordinary(text)
    assert BUNDLED.decode(ids) == text
    assert all(token_id >= 36 for token_id in ids)


def test_text_with_every_private_use_character_is_refused():
    with pytest.raises(UserError, match=r"uses up the private-use characters"):
        BUNDLED.encode_ordinary("".join(map(chr, range(0xF0000, 0xFFFFE))))


def test_ids_equal_those_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(MODEL))
    assert len(theirs) == 6400
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    for text in SPECIMENS:
        ids = BUNDLED.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == BUNDLED.decode(ids) == text


def chinese_texts(shared) -> dict[str, list[str]]:
    texts = {}
    for name in ("alpaca_zh_10k", "alpaca_zh_demo", "glaive_toolcall_zh_demo"):
        rows = json.loads((shared / f"data/{name}.json").read_text(encoding="utf-8"))
        if "conversations" in rows[0]:
            texts[name] = [turn["value"] for row in rows for turn in row["conversations"]]
        else:
            texts[name] = [row[key] for row in rows for key in ("instruction", "input", "output")]
    return texts


def test_chinese_needs_at_most_a_fifth_more_tokens_than_with_minimind(shared):
    theirs = tokenizers.Tokenizer.from_file(str(shared / "reference/minimind/tokenizer.json"))
    ours = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for name, texts in chinese_texts(shared).items():
        count_ours, count_theirs = (sum(len(e.ids) for e in t.encode_batch_fast(texts)) for t in (ours, theirs))
        assert count_ours <= 1.2 * count_theirs, name


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6399)))
def test_a_stream_gives_the_same_text_as_decoding_at_once(ids):
    stream = TextStream(BUNDLED)
    assert "".join(stream.push(token_id) for token_id in ids) + stream.flush() == BUNDLED.decode(ids)


def test_a_stream_gives_only_whole_characters():
    def pushes(*characters: str) -> list[str]:
        stream = TextStream(BUNDLED)
        return [stream.push(i) for text in characters for i in BUNDLED.encode_ordinary(text)] + [stream.flush()]

    for character in "龘😀":
        count = len(BUNDLED.encode_ordinary(character))
        assert count > 1
        assert pushes("a", character, "b") == ["a", *[""] * (count - 1), character, "b", ""]
    # a real U+FFFD looks like an unfinished character until the next token comes
    assert pushes("\ufffd", "a") == [*[""] * len(BUNDLED.encode_ordinary("\ufffd")), "\ufffda", ""]


def test_a_stream_can_be_flushed_inside_a_character_and_used_again():
    stream = TextStream(BUNDLED)
    first, *rest = BUNDLED.encode_ordinary("😀")
    assert (stream.push(first), stream.flush(), stream.flush()) == ("", "\ufffd", "")
    assert [stream.push(token_id) for token_id in [first, *rest]] == [""] * len(rest) + ["😀"]


def test_a_stream_keeps_leading_spaces_that_a_decoder_strips():
    """Llama-like tokenizers write a space as part of the next word, and their decoder drops the first."""
    model = tokenizers.models.WordLevel({"▁a": 0, "▁b": 1, "?": 2}, unk_token="?")
    words = tokenizers.Tokenizer(model)
    words.decoder = tokenizers.decoders.Metaspace()
    stream = TextStream(Tokenizer(json.loads(words.to_str()), {}))
    assert [stream.push(0), stream.push(1), stream.push(0)] == ["a", " b", " a"]


def test_control_tokens_include_special_tokens_and_those_in_the_template():
    special = BUNDLED.control_tokens("")
    assert len(special) == 21
    assert "<tts_pad>" in special and "<think>" not in special
    assert set(BUNDLED.control_tokens("{{ '<think>' }}")) - set(special) == {"<think>"}


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r": no tokenizer\.json in it; a tokenizer folder has"):
        Tokenizer.from_folder(tmp_path)
    copy_of_model(tmp_path, config={"eos_token": "<|nope|>"})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: eos_token: '<\|nope\|>' is not in tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    copy_of_model(tmp_path, config={"chat_template": {"default": ["x"]}})
    with pytest.raises(UserError, match=r"chat_template: default: expected a string, found a list"):
        Tokenizer.from_folder(tmp_path)
    copy_of_model(tmp_path, config={"chat_template": ["x"]})
    with pytest.raises(UserError, match=r'chat_template: expected a list of objects {"name", "template"}'):
        Tokenizer.from_folder(tmp_path)
    copy_of_model(tmp_path, config={"chat_template": 5})
    with pytest.raises(UserError, match=r"chat_template: expected a string, found 5"):
        Tokenizer.from_folder(tmp_path)
    copy_of_model(tmp_path, state={"model": {"type": "none"}})
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: expected a JSON object, found broken JSON at column 2"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"tokenizer\.json: not valid UTF-8"):
        Tokenizer.from_folder(tmp_path)


def test_chat_template_jinja_has_precedence_over_the_config(tmp_path):
    copy_of_model(tmp_path, config={"chat_template": [{"name": "tool", "template": "t"},
                                                      {"name": "default", "template": "d"}]})
    assert Tokenizer.from_folder(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert Tokenizer.from_folder(tmp_path).chat_template == "j"
    copy_of_model(tmp_path, config={"chat_template": None})
    (tmp_path / "chat_template.jinja").unlink()
    assert Tokenizer.from_folder(tmp_path).chat_template is None


def test_named_templates_come_from_the_config_and_files(tmp_path):
    copy_of_model(tmp_path, config={"chat_template": {"tool_use": "t", "rag": "r"}})
    assert Tokenizer.from_folder(tmp_path).named_templates == {"tool_use": "t", "rag": "r"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("\ufefffile", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.chat_template, tokenizer.named_templates) == (None, {"tool_use": "file", "rag": "r"})
    assert pickle.loads(pickle.dumps(tokenizer)).named_templates == tokenizer.named_templates
    with pytest.raises(UserError, match=r"no chat template .* name default; --chat_template takes tool_use, rag,"):
        ChatTemplate(tokenizer)


def test_other_forms_of_tokenizer_config_are_read(tmp_path):
    """Hugging Face writes special tokens as objects too, may leave some out, and may ask for truncation."""
    copy_of_model(tmp_path, config={"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": None},
                  state={"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                                        "stride": 0}})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_id == 2 and "pad_token" not in tokenizer.special
    assert len(tokenizer.encode("1234567")) == 7


def test_the_fingerprint_covers_what_changes_the_ids(tmp_path):
    same = Tokenizer.from_folder(copy_of_model(tmp_path, config={"model_max_length": 1}))
    assert same.fingerprint == BUNDLED.fingerprint
    other = Tokenizer.from_folder(copy_of_model(tmp_path, config={"eos_token": "<|endoftext|>"}))
    assert other.fingerprint != BUNDLED.fingerprint
    other = Tokenizer.from_folder(copy_of_model(tmp_path, state={"pre_tokenizer": {"type": "ByteLevel",
                                  "add_prefix_space": False, "trim_offsets": True, "use_regex": True}}))
    assert other.fingerprint != BUNDLED.fingerprint


def added(token: str, token_id: int) -> dict:
    return {"id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}


def test_the_end_of_document_of_other_tokenizers_is_their_eos_token():
    model = tokenizers.models.WordLevel({"<end>": 0, "a": 1}, unk_token="a")
    state = json.loads(tokenizers.Tokenizer(model).to_str())
    state["added_tokens"] = [added("<end>", 0)]
    assert Tokenizer(state, {"eos_token": "<end>"}).end_of_document_id == 0
    with pytest.raises(UserError, match=r"neither <\|endoftext\|> nor an eos_token"):
        _ = Tokenizer(state, {}).end_of_document_id


def test_control_tokens_in_a_unigram_vocabulary_are_not_used_for_text():
    """A unigram model would encode `<s>` in the text as the control token."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("<", -5.0), ("s", -5.0), (">", -5.0)]
    state = json.loads(tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0)).to_str())
    state["added_tokens"] = [added("<unk>", 0), added("<s>", 1)]
    tokenizer = Tokenizer(state, {"bos_token": "<s>"})
    assert tokenizer.encode("<s>") == [1]
    assert tokenizer.encode_ordinary("<s>") == [2, 3, 4]


def test_merges_that_build_a_control_token_are_refused():
    model = tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    state = json.loads(tokenizers.Tokenizer(model).to_str())
    state["added_tokens"] = [added("ab", 2)]
    with pytest.raises(UserError, match=r"builds a control token out of text"):
        Tokenizer(state, {}).encode_ordinary("ab")


def test_a_tokenizer_can_be_pickled():
    copy = pickle.loads(pickle.dumps(BUNDLED))
    assert copy.encode_ordinary("<|im_end|>中") == BUNDLED.encode_ordinary("<|im_end|>中")
    assert (copy.fingerprint, copy.chat_template) == (BUNDLED.fingerprint, BUNDLED.chat_template)
