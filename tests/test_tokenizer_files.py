"""Tokenizer folders as tools and versions write them are read if their meaning is clear, else refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 450000\n"
LETTERS = {letter: index for index, letter in enumerate("<|>abcdefghijklmnopqrstuvwxyz_")}  # ids 0 to 29
END, PAD = 30, 31


def added(token: str, token_id: int, **flags: bool) -> dict[str, Any]:
    return {"id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


def state(vocab: dict[str, int] | None = None, added_tokens: list | None = None) -> dict[str, Any]:
    """Returns a tokenizer of letters, with `<end>` and `<pad>` in its vocabulary but in no merge."""
    model = tokenizers.models.BPE({**LETTERS, **({"<end>": END, "<pad>": PAD} if vocab is None else vocab)}, [])
    content = json.loads(tokenizers.Tokenizer(model).to_str())
    del content["added_tokens"]
    return content if added_tokens is None else {**content, "added_tokens": added_tokens}


def folder(path: Path, main: Any, config: Any, **others: Any) -> Path:
    """Writes the files of a tokenizer folder and returns it."""
    files = {"tokenizer.json": main, "tokenizer_config.json": config,
             **{f"{name}.json": content for name, content in others.items()}}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        Tokenizer.from_folder(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path)).lstrip("/")


def test_special_tokens_may_be_missing_in_added_tokens(tmp_path):
    """tokenizer.json without added_tokens: `<end>` and `<pad>` are control tokens because the config says so."""
    tokenizer = Tokenizer.from_folder(folder(tmp_path, state(), {"eos_token": "<end>", "pad_token": "<pad>"}))
    assert (tokenizer.eos_id, tokenizer.special["pad_token"], tokenizer.vocab_size) == (END, "<pad>", 32)
    assert tokenizer.encode("a<end>") == [3, END]
    assert tokenizer.encode_ordinary("a<end>") == [3, 0, 7, 16, 6, 2]
    assert tokenizer.control_tokens() == ["<end>", "<pad>"]
    assert tokenizer.notices == (
        f"{tmp_path / 'tokenizer.json'}: its added_tokens lack <end>, <pad>; taken from the special tokens of the "
        "other files",
        f"{tmp_path / 'tokenizer.json'}: the vocabulary cannot spell every text and has no unk_token: the rest of a "
        "text is left out")


def test_unnamed_tokens_that_look_like_control_tokens_are_noted(tmp_path):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, state(), {"eos_token": "<end>"}))
    assert tokenizer.encode("<pad>") == [0, 18, 3, 6, 2], "as Hugging Face encodes it"
    assert tokenizer.notices[1] == (f"{tmp_path / 'tokenizer.json'}: it has no added_tokens, and no other file names "
                                    "<pad>: in a text they are ordinary characters")


@pytest.mark.parametrize("eos", ["<end>", ["<end>"], {"content": "<end>", "lstrip": False}, END, [END],
                                 {"__type": "AddedToken", "content": "<end>"}])
def test_a_special_token_may_have_several_forms(tmp_path, eos):
    main = state(added_tokens=[added("<end>", END)])
    assert Tokenizer.from_folder(folder(tmp_path, main, {"eos_token": eos})).special == {"eos_token": "<end>"}


def test_a_special_token_may_have_the_id_0(tmp_path):
    assert Tokenizer.from_folder(folder(tmp_path, state(), {"pad_token": 0})).special == {"pad_token": "<"}


@pytest.mark.parametrize(("eos", "message"), [
    (["<end>", "<pad>"], "expected one token, found a list of 2 (<end>, <pad>): keep only the right one"),
    ([], "expected a token, found an empty list"),
    (77, "no token has the id 77"),
    (True, "expected a token, found true"),
    (False, "expected a token, found false"),
    (3.5, "expected a token, found 3.5"),
    ({"token": "<end>"}, "expected a token, found an object"),
    ({"content": None}, "expected a token, found null"),
    ("<nope>", "'<nope>' is not in tokenizer.json"),
])
@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
def test_bad_special_tokens_are_refused(tmp_path, file, eos, message):
    files = {"tokenizer_config": {}, file: {"eos_token": eos}}
    path = folder(tmp_path, state(), files.pop("tokenizer_config"), **files)
    assert refused(path) == f"{file}.json: eos_token: {message}"


DECODER = {"config": {"added_tokens_decoder": {
    "32": {"content": "<call>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
           "special": True},
    "33": {"content": "</call>", "special": False}}}}
NUMBERED = {"added_tokens": {"</call>": 33, "<call>": 32},
            "config": {"additional_special_tokens": ["<call>"]}}


@pytest.mark.parametrize("files", [DECODER, NUMBERED], ids=["added_tokens_decoder", "added_tokens.json"])
def test_tokens_are_added_from_other_files(tmp_path, files):
    path = folder(tmp_path, state(added_tokens=[]), **files)
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.vocab_size == 34
    assert tokenizer.encode("a<call></call>") == [3, 32, 33]
    assert tokenizer.control_tokens() == ["<call>"]
    assert tokenizer.control_tokens("</call>") == ["<call>", "</call>"]
    assert 32 not in tokenizer.encode_ordinary("<call>")
    transformers = pytest.importorskip("transformers")
    assert transformers.PreTrainedTokenizerFast.from_pretrained(str(path))("a<call></call>")["input_ids"] == [3, 32, 33]


def test_special_tokens_map_alone_may_name_the_eos_token(tmp_path):
    path = folder(tmp_path, state(), {}, special_tokens_map={"eos_token": {"content": "<end>"}})
    assert Tokenizer.from_folder(path).encode("<end>") == [END]


def test_tokenizer_config_has_precedence_over_special_tokens_map(tmp_path):
    path = folder(tmp_path, state(), {"eos_token": "<end>"}, special_tokens_map={"eos_token": "<pad>"})
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.special == {"eos_token": "<end>"}
    assert tokenizer.notices[0] == (f"{tmp_path / 'special_tokens_map.json'}: eos_token is <pad>, but "
                                    "tokenizer_config.json says <end>, which counts")


def test_notices_about_many_tokens_name_five_and_count_the_rest(tmp_path):
    path = folder(tmp_path, state(added_tokens=[]), {}, added_tokens={f"<{i}>": 32 + i for i in range(8)})
    assert Tokenizer.from_folder(path).notices[0] == (
        f"{tmp_path / 'tokenizer.json'}: its added_tokens lack <0>, <1>, <2>, <3>, <4> and 3 more; taken from "
        f"{tmp_path / 'added_tokens.json'}")


def test_additional_tokens_without_an_id_are_noted(tmp_path):
    main = state(added_tokens=[added("<end>", END)])
    path = folder(tmp_path, main, {"additional_special_tokens": ["<end>", "<call>"],
                                   "extra_special_tokens": {"pad": "<pad>"}})
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.control_tokens() == ["<end>", "<pad>"]
    assert tokenizer.notices[0] == (f"{tmp_path}: no file gives the special token <call> an id; it stays ordinary "
                                    "text")


def test_a_complete_folder_needs_no_notice_and_keeps_its_fingerprint(tmp_path):
    """Sidecars and prepared data record the fingerprint, so redundant files must not change it."""
    main = state(added_tokens=[added("<end>", END), added("<pad>", PAD)])
    plain = Tokenizer(main, {"eos_token": "<end>"})
    path = folder(tmp_path, main, {"eos_token": "<end>", "added_tokens_decoder": {str(END): added("<end>", END)}},
                  added_tokens={"<pad>": PAD}, special_tokens_map={"eos_token": "<end>"})
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.fingerprint == plain.fingerprint
    assert len(tokenizer.notices) == 1, "only that the vocabulary cannot spell every text"


@pytest.mark.parametrize(("files", "message"), [
    ({"config": {"added_tokens_decoder": [1]}},
     "tokenizer_config.json: added_tokens_decoder: expected an object, found a list"),
    ({"config": {"added_tokens_decoder": {"x": added("<call>", 32)}}},
     "tokenizer_config.json: added_tokens_decoder: expected ids as names, found 'x'"),
    ({"config": {"added_tokens_decoder": {"32": "<call>"}}},
     "tokenizer_config.json: added_tokens_decoder.32: expected an object with the token as content, found \"<call>\""),
    ({"config": {"added_tokens_decoder": {"5": added("<call>", 5)}}},
     "tokenizer_config.json: added_tokens_decoder: '<call>' has the id 5, which is 'c' in tokenizer.json"),
    ({"config": {}, "added_tokens": {"<end>": 7}}, "added_tokens.json: '<end>' has the id 7, but 30 in tokenizer.json"),
    ({"config": {}, "added_tokens": {"<call>": "32"}}, "added_tokens.json: <call>: expected an id, found \"32\""),
    ({"config": {}, "added_tokens": {"<call>": 40}},
     "added_tokens.json: '<call>' has the id 40, but 32 is the next free id in tokenizer.json"),
    ({"config": {"additional_special_tokens": "<end>"}},
     "tokenizer_config.json: additional_special_tokens: expected a list of tokens, found \"<end>\""),
    ({"config": {"additional_special_tokens": [None]}},
     "tokenizer_config.json: additional_special_tokens: expected a token, found null"),
    ({"main": state(added_tokens={"a": 1}), "config": {}},
     "tokenizer.json: added_tokens: expected a list, found an object"),
    ({"main": state(added_tokens=["<end>"]), "config": {}},
     "tokenizer.json: added_tokens[0]: expected an object with id and content, found \"<end>\""),
    ({"main": {"model": {"type": "none"}}, "config": {"eos_token": "x"}}, "tokenizer.json: not a tokenizer ("),
    ({"main": {}, "config": {}}, "tokenizer.json: not a tokenizer ("),
    ({"main": state({}, [{"id": 30, "content": "x"}]), "config": {}}, "tokenizer.json: not a tokenizer ("),
])
def test_bad_or_contradictory_files_are_named(tmp_path, files, message):
    assert refused(folder(tmp_path, **{"main": state(), **files})).startswith(message)


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = folder(tmp_path, state(), {"eos_token": "<end>"}, added_tokens={"<call>": 32})
    for file in path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Tokenizer.from_folder(path).encode("<end><call>") == [END, 32]


FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("content", "message"), [
    (LFS_POINTER, ": a Git LFS pointer, not the file itself: run git lfs pull in its repository"),
    ("", ": expected a JSON object, the file is empty"),
    ("[]", ": expected a JSON object, found an empty list"),
    ("{", ": expected a JSON object, found broken JSON at column 2"),
    ("[" * 5000, ": "),
    (None, ": a folder, expected a file"),
])
def test_a_file_with_other_content_is_named(tmp_path, name, content, message):
    path = folder(tmp_path, state(), {})
    (path / name).unlink(missing_ok=True)
    if content is None:
        (path / name).mkdir()
    else:
        (path / name).write_text(content)
    assert refused(path).startswith(name + message)


@pytest.mark.parametrize(("files", "message"), [
    ((), ": no tokenizer.json in it; a tokenizer folder has tokenizer.json and tokenizer_config.json"),
    (("tokenizer.model", "tokenizer_config.json"),
     ": no tokenizer.json, only tokenizer.model (SentencePiece's format): python -c \"from transformers import Auto"),
    (("vocab.txt",), ": no tokenizer.json, only vocab.txt (BERT's format)"),
])
def test_missing_files_are_reported_with_a_remedy(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    assert refused(tmp_path).startswith(message)


def test_tokenizer_config_may_be_missing(tmp_path):
    main = state(added_tokens=[added("<end>", END), added("<pad>", PAD)])
    (tmp_path / "tokenizer.json").write_text(json.dumps(main), encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).fingerprint == Tokenizer(main, {}).fingerprint


def test_a_file_or_a_missing_folder_is_refused(tmp_path):
    path = folder(tmp_path, state(), {})
    with pytest.raises(UserError) as error:
        Tokenizer.from_folder(path / "tokenizer.json")
    assert str(error.value) == (f"{path / 'tokenizer.json'}: a file, expected the folder of a tokenizer: give {path}")
    assert refused(path / "nowhere") == (
        ": no such folder; expected one with tokenizer.json and tokenizer_config.json")


def test_an_overlong_folder_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"x: (cannot be read|no such folder)"):
        Tokenizer.from_folder(tmp_path / ("x" * 5000))


def test_line_ends_in_tokens_are_escaped_in_errors(tmp_path):
    path = folder(tmp_path, state(), {}, added_tokens={"a\nb": "1"})
    assert refused(path) == r'added_tokens.json: a\nb: expected an id, found "1"'


def test_tokenizers_from_public_bug_reports(shared):
    cases = shared / "cases/tokenizers"
    assert refused(cases / "eoslist") == ("tokenizer_config.json: eos_token: expected one token, found a list of 2 "
                                          "(<|im_end|>, <|endoftext|>): keep only the right one")
    tokenizer = Tokenizer.from_folder(cases / "noadded")
    assert tokenizer.eos_id == 3 and tokenizer.token_to_id(tokenizer.special["pad_token"]) == 1
    template = make_template(tokenizer, "chatml")
    assert template.end_of_turn_id == 3
    ids = template.generation_prompt_ids([{"role": "user", "content": "<|im_end|>"}])
    assert ids.count(3) == 1, "the turn's own end; what the user writes stays text"
