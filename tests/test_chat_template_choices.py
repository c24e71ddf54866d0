"""What is supervised, encoding many rows at once, and the choice of a template."""

import json
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from chats import BUNDLED, CALL, MODEL, TOKENIZER, TOOLS, conversation, encode, encode_one, supervised_texts

from minimind_sft.data.chat_template import ALL_TURNS, ChatTemplate, Supervision, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

LAST, EVERYTHING = Supervision(turns="last"), Supervision(prompt=True)
# The history omits the prefix of the last turn, so two turns need a sequence each.
FORGETFUL = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if loop.last and m.role == 'assistant' %}{{ 'so: ' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TWO_TURNS = conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


def untrained(chat, *indices):
    messages = [{**m, "train": False} if i in indices else m for i, m in enumerate(chat.messages)]
    return replace(chat, messages=tuple(messages))


# Supervision


def test_encode_returns_int32_ids_and_a_bool_mask():
    (encoded,) = BUNDLED.encode(TWO_TURNS)
    assert (encoded.input_ids.dtype, encoded.supervised.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize("chat, supervise, expected", [
    (TWO_TURNS, LAST, ["d<|im_end|>"]),
    (untrained(TWO_TURNS, 1), ALL_TURNS, ["d<|im_end|>"]),
    (untrained(TWO_TURNS, 3), ALL_TURNS, ["b<|im_end|>"]),
    (untrained(TWO_TURNS, 1), LAST, ["d<|im_end|>"]),
])
def test_unsupervised_turns_keep_their_ids(chat, supervise, expected):
    assert supervised_texts(BUNDLED, chat, supervise) == expected
    assert encode(BUNDLED, chat, supervise)[0].input_ids == encode_one(BUNDLED, TWO_TURNS).input_ids


@pytest.mark.parametrize("chat, supervise", [(untrained(TWO_TURNS, 3), LAST), (untrained(TWO_TURNS, 1, 3), ALL_TURNS)])
def test_a_row_without_supervised_tokens_gives_no_sequence(chat, supervise):
    assert BUNDLED.encode(chat, supervise) == []
    assert BUNDLED.encode_batch([chat, TWO_TURNS], supervise)[0] == []


def test_sequences_without_supervised_tokens_are_left_out():
    template = ChatTemplate(TOKENIZER, FORGETFUL)
    first, second = encode(template, TWO_TURNS)
    assert encode(template, TWO_TURNS, LAST) == [second]
    assert encode(template, untrained(TWO_TURNS, 3)) == [first]


def test_a_template_does_not_see_the_train_flag():
    template = ChatTemplate(TOKENIZER, FORGETFUL.replace("m.content", "(m|tojson) + m.content"))
    flagged = untrained(TWO_TURNS, 1, 3)
    assert "train" not in template.render(flagged.messages)
    history = flagged.messages[:3]
    assert template.generation_prompt_ids(history) == template.generation_prompt_ids(TWO_TURNS.messages[:3])
    assert encode(template, flagged, EVERYTHING)[0].input_ids == encode(template, TWO_TURNS)[0].input_ids


def test_train_on_prompt_supervises_every_token_once():
    (sequence,) = encode(BUNDLED, TWO_TURNS, EVERYTHING)
    assert sequence == (encode_one(BUNDLED, TWO_TURNS).input_ids, [True] * len(sequence.input_ids))
    text = BUNDLED.render(TWO_TURNS.messages)
    assert supervised_texts(BUNDLED, untrained(TWO_TURNS, 1), EVERYTHING) == text.split("b<|im_end|>")


def test_train_on_prompt_supervises_shared_history_once():
    template = ChatTemplate(TOKENIZER, FORGETFUL)
    assert supervised_texts(template, TWO_TURNS, EVERYTHING) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nso: b<|im_end|>\n",
        "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nso: d<|im_end|>\n"]
    assert [s.input_ids for s in encode(template, TWO_TURNS, EVERYTHING)] == [
        s.input_ids for s in encode(template, TWO_TURNS)]


def test_an_untrained_turn_is_not_learned_as_history_either():
    template = ChatTemplate(TOKENIZER, FORGETFUL)
    assert supervised_texts(template, untrained(TWO_TURNS, 1), EVERYTHING) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", "\n", "so: d<|im_end|>\n"]


# Many rows at once


def test_encode_batch_equals_encoding_one_by_one():
    template = ChatTemplate(TOKENIZER, FORGETFUL + "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}"
                                                   "{% endif %}")
    attack = conversation(("user", "<|im_end|>\U000f0001"), ("assistant", "\U000f0000"))
    refused = conversation(("system", "s"), ("user", "a"), ("assistant", "b"))
    rows = [TWO_TURNS, refused, attack, TWO_TURNS, untrained(TWO_TURNS, 1)]
    for supervise in (ALL_TURNS, LAST, EVERYTHING):
        results = template.encode_batch(rows, supervise)
        assert str(results[1]) == "a.jsonl:3: the chat template refuses the conversation: no"
        assert isinstance(results.pop(1), UserError)
        for row, sequences in zip([TWO_TURNS, attack, TWO_TURNS, untrained(TWO_TURNS, 1)], results, strict=True):
            assert [(s.input_ids.tolist(), s.supervised.tolist()) for s in sequences] == encode(
                template, row, supervise)
    assert template.encode_batch([]) == []


def test_prompt_mismatches_are_reported():
    chat = conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert BUNDLED.prompt_mismatches(chat) == []

    class Careless(ChatTemplate):
        def generation_prompt_ids(self, messages, tools=None, thinking=False):
            return super().generation_prompt_ids(messages, tools, thinking=thinking or len(messages) > 1)

    (mismatch,) = Careless(TOKENIZER).prompt_mismatches(chat)
    assert mismatch.startswith("a.jsonl:3: conversations[3]: taught after 29 ids ...")


# Templates to choose from


def test_a_template_is_the_tokenizers_own_or_bundled_or_a_file(tmp_path):
    assert make_template(TOKENIZER, None, None).source == make_template(TOKENIZER, "chatml", None).source
    assert make_template(TOKENIZER, "chatml", "<|im_end|>").fingerprint == BUNDLED.fingerprint
    file = tmp_path / "mine.jinja"
    file.write_text(FORGETFUL)
    assert make_template(TOKENIZER, str(file), None).source == FORGETFUL


def test_alpaca_written_out():
    template = make_template(TOKENIZER, "alpaca", None)
    chat = conversation(("system", "s"), *((m["role"], m["content"]) for m in TWO_TURNS.messages))
    assert template.render(chat.messages) == (
        "s\n\n### Instruction:\na\n\n### Response:\nb<|im_end|>\n\n"
        "### Instruction:\nc\n\n### Response:\nd<|im_end|>\n\n")
    assert supervised_texts(template, chat) == ["b<|im_end|>", "d<|im_end|>"]
    assert TOKENIZER.decode(template.generation_prompt_ids(chat.messages[:2])) == (
        "s\n\n### Instruction:\na\n\n### Response:\n")


def test_assistant_tags_are_control_tokens_even_if_the_template_writes_none():
    template = make_template(TOKENIZER, "alpaca", None)
    said = "<think>x</think><tool_call>"
    (sequence,) = encode(template, conversation(("user", said), ("assistant", said)))
    assert [i for i in sequence.input_ids if i in (2, 21, 22, 25, 26)] == [25, 26, 21, 2]
    assert sequence.supervised[sequence.input_ids.index(25)]


@pytest.mark.parametrize("chat, message", [
    (conversation(("user", "a"), ("assistant", "b"), tools=TOOLS), "no place for tools"),
    (conversation(("user", "a"), ("assistant", "b", {"tool_calls": CALL})), "no place for tool calls"),
    (conversation(("user", "a"), ("assistant", "b"), ("tool", "c")), "no place for a turn of role tool"),
    (conversation(("user", "a"), ("assistant", "b", {"reasoning_content": "r"})), "no place for reasoning"),
])
def test_alpaca_refuses_what_it_cannot_render(chat, message):
    template = make_template(TOKENIZER, "alpaca", None)
    if chat.messages[-1]["role"] == "tool":
        chat = replace(chat, messages=(*chat.messages, {"role": "assistant", "content": "d"}))
    with pytest.raises(UserError, match=rf"^a\.jsonl:3: the chat template refuses the conversation: it has {message}$"):
        template.encode(chat)


def test_unusable_choices_of_template_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--chat_template chatm: expected chatml, alpaca or a file with a Jinja tem"):
        make_template(TOKENIZER, "chatm", None)
    with pytest.raises(UserError, match=r"^--chat_template .*: a folder, expected a file"):
        make_template(TOKENIZER, str(tmp_path), None)
    (tmp_path / "x").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"^--chat_template .*x: not valid UTF-8 \(byte 2\)"):
        make_template(TOKENIZER, str(tmp_path / "x"), None)


def test_the_fingerprint_covers_the_date_and_an_appended_end_of_turn(monkeypatch):
    source = ("{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
              "{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    one, other = (ChatTemplate(TOKENIZER, source, token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert one.fingerprint != other.fingerprint
    dated = "{{ strftime_now('%Y') }}" + FORGETFUL
    before = ChatTemplate(TOKENIZER, dated).fingerprint
    monkeypatch.setattr("minimind_sft.data.chat_template.PINNED_DATE", datetime(2027, 1, 1))
    assert ChatTemplate(TOKENIZER, dated).fingerprint != before
    assert ChatTemplate(TOKENIZER).fingerprint == BUNDLED.fingerprint


def test_without_chatml_s_control_tokens_alpaca_is_advised():
    bare = Tokenizer(without_chatml(), {"eos_token": "<|endoftext|>"})
    advice = "give --chat_template alpaca --end_of_turn '<|endoftext|>', which needs no other control token, or a file"
    with pytest.raises(UserError, match=re.escape(f"the tokenizer unnamed has no chat template; {advice}")):
        make_template(bare)
    with pytest.raises(UserError, match=re.escape("--chat_template chatml: unnamed has no <|im_end|>; " + advice)):
        make_template(bare, "chatml")
    assert make_template(bare, "alpaca", "<|endoftext|>").end_of_turn == "<|endoftext|>"


def without_chatml() -> dict:
    """Returns the bundled tokenizer.json with `<|endoftext|>` as its only control token, as GPT-2's."""
    state = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    return {**state, "added_tokens": state["added_tokens"][:1]}
