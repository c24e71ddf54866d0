"""Which tokens end an answer: what a base model's folder names, the template, and the tokenizer."""

import json
from pathlib import Path

import pytest
import tokenizers
from chats import BUNDLED, TOKENIZER, tiny_model

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.evaluation import answering
from minimind_sft.evaluation.answering import score
from minimind_sft.evaluation.questions import Question
from minimind_sft.inference import chat as chat_module
from minimind_sft.inference.chat import Chat, Continuation
from minimind_sft.inference.generate import SamplingSettings
from minimind_sft.inference.stopping import chat_stop_ids, named_stop_ids


def folder(path: Path, **files: object) -> Path:
    """Writes a model's folder: config=... becomes config.json."""
    for name, value in files.items():
        (path / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize(("files", "ids"), [
    ({"config": {"eos_token_id": 7}}, {7}),
    ({"config": {"eos_token_id": [7, 9]}, "generation_config": {}}, {7, 9}),
    ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [128001, 128009]}}, {128001, 128009}),
    ({"config": {"eos_token_id": None}}, {2}),  # the tokenizer's eos, <|im_end|>
])
def test_ids_that_a_folder_names(files: dict, ids: set[int], tmp_path: Path):
    assert named_stop_ids(folder(tmp_path, **files), TOKENIZER) == ids


def test_weights_of_our_own_name_none(tmp_path: Path):
    assert named_stop_ids(tmp_path / "full_sft_512.pth", TOKENIZER) == set()


@pytest.mark.parametrize(("found", "said"), [
    ('{"eos_token_id": "</s>"}', "eos_token_id: expected a token's id or a list of ids, found \"</s>\""),
    ('{"eos_token_id": [2, true]}', "eos_token_id: expected a token's id or a list of ids, found "),
    ('{"eos_token_id": 2', "expected a JSON object, found broken JSON at column "),
])
def test_what_are_not_ids_is_refused(found: str, said: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        named_stop_ids(folder(tmp_path, config={}, generation_config=found), TOKENIZER)
    assert str(error.value).startswith(f"{tmp_path / 'generation_config.json'}: {said}")


def test_a_chat_scoring_and_a_continued_text_stop_at_them(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(chat_module, "generate_stream", lambda *given: iter(seen.append(set(given[3])) or ()))
    monkeypatch.setattr(answering, "generate_greedily", lambda *given: seen.append(set(given[3])) or [[]])
    list(Chat(tiny_model(), TOKENIZER, BUNDLED, SamplingSettings(4), stop_ids={77}).reply("Hi"))
    question = Question("all", "a.jsonl:1", [], None, [1], "x")
    score(tiny_model(), BUNDLED, [question], SamplingSettings(4), 1, {77})
    list(Continuation(tiny_model(), TOKENIZER, SamplingSettings(4), stop_ids={77}).reply("Hi"))
    assert seen == [{0, 2, 77}, {0, 2, 77}, {0, 77}]  # <|endoftext|>, <|im_end|>


def test_a_tokenizer_without_an_end_of_document_chats():
    state = json.loads(json.dumps(TOKENIZER._state).replace("<|endoftext|>", "<|nothing|>"))
    tokenizer = Tokenizer(state, {})
    template = ChatTemplate(tokenizer, BUNDLED.source)
    assert chat_stop_ids(template) == {2}


def test_a_continued_text_keeps_the_blank_before_its_first_word(monkeypatch: pytest.MonkeyPatch):
    """Llama's tokenizers write a blank as part of the next word, and their decoder drops it at the start of a text."""
    model = tokenizers.models.WordLevel({"▁a": 0, "▁b": 1, "c": 2, "?": 3, "<s>": 4, "</s>": 5}, unk_token="?")
    words = tokenizers.Tokenizer(model)
    words.pre_tokenizer, words.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    words.add_special_tokens(["<s>", "</s>"])
    tokenizer = Tokenizer(json.loads(words.to_str()), {"bos_token": "<s>", "eos_token": "</s>"})
    seen = []
    monkeypatch.setattr(chat_module, "generate_stream", lambda *given: iter(seen.append(given[1]) or [1, 2, 0]))
    assert list(Continuation(tiny_model(), tokenizer, SamplingSettings(4), True).reply("a b")) == [" b", "c", " a"]
    assert seen == [[4, 0, 1]]
