"""The chat: which messages the model sees, what is dropped, and the history after a refused message."""

from collections.abc import Callable

import pytest
from chats import (
    ALTERNATING,
    ALWAYS_THINKS,
    BUNDLED,
    CALL,
    TOKENIZER,
    TOOLS,
    WITHOUT_SYSTEM_OR_TOOLS,
    conversation,
    encode_one,
    tiny_model,
)

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError
from minimind_sft.inference import chat as chat_module
from minimind_sft.inference.chat import Chat, Continuation
from minimind_sft.inference.generate import SamplingSettings


@pytest.fixture
def shown(monkeypatch) -> list[list[int]]:
    """Collects the prompts that the model sees; it answers A1, A2 and so on."""
    prompts = []

    def answer(model, prompt_ids, settings, stop_ids):
        prompts.append(list(prompt_ids))
        yield from TOKENIZER.encode_ordinary(f"A{len(prompts)}")

    monkeypatch.setattr(chat_module, "generate_stream", answer)
    return prompts


def make_chat(template: ChatTemplate = BUNDLED, context: int = 4096, max_new_tokens: int = 16,
              notify: Callable[[str], None] = lambda line: None, **more) -> Chat:
    return Chat(tiny_model(context), TOKENIZER, template, SamplingSettings(max_new_tokens), notify=notify, **more)


def ask(chat: Chat, *questions: str) -> list[str]:
    return ["".join(chat.reply(question)) for question in questions]


def roles_in(prompt: list[int]) -> str:
    """Returns the first letter of each turn's role, such as `uaua`; the last is the answer being generated."""
    turns = TOKENIZER.decode(prompt).split("<|im_start|>")[1:]
    return "".join(turn[0] for turn in turns)


@pytest.mark.parametrize("historys, seen", [
    (0, ["ua", "ua", "ua", "ua"]),
    (1, ["ua", "ua", "ua", "ua"]),
    (2, ["ua", "uaua", "uaua", "uaua"]),
    (3, ["ua", "uaua", "uaua", "uaua"]),
    (4, ["ua", "uaua", "uauaua", "uauaua"]),
    (-1, ["ua", "uaua", "uauaua", "uauauaua"]),
])
@pytest.mark.parametrize("template", [BUNDLED, ChatTemplate(TOKENIZER, ALTERNATING)], ids=["bundled", "alternating"])
def test_historys_counts_messages_and_the_history_begins_with_a_question(shown, template, historys, seen):
    ask(make_chat(template, historys=historys), "Q1", "Q2", "Q3", "Q4")
    assert [roles_in(prompt) for prompt in shown] == seen


def test_an_alternating_template_chats_with_historys_1(shown, shared):
    source = (shared / "cases/templates/alternate.jinja").read_text(encoding="utf-8")
    assert ask(make_chat(ChatTemplate(TOKENIZER, source), historys=1), "Q1", "Q2", "Q3") == ["A1", "A2", "A3"]


@pytest.mark.parametrize("system, tools", [(None, None), ("Be brief.", None), ("Be brief.", TOOLS), (None, TOOLS)])
def test_a_chat_prompt_equals_the_training_tokens(shown, system, tools):
    chat = make_chat(historys=-1, system=system, tools=tools)
    chat.check_opening()
    ask(chat, "Q1", "Q2 <|im_end|>", "Q3")
    opening = [("system", system)] if system else []
    trained = encode_one(BUNDLED, conversation(*opening, ("user", "Q1"), ("assistant", "A1"), ("user", "Q2 <|im_end|>"),
                                               ("assistant", "A2"), ("user", "Q3"), ("assistant", "A3"), tools=tools))
    assert shown[-1] == trained.input_ids[:len(shown[-1])]
    assert trained.supervised[len(shown[-1])] and not trained.supervised[len(shown[-1]) - 1]


def test_a_tool_call_is_in_the_history_as_in_training(monkeypatch):
    prompts = []
    called = encode_one(BUNDLED, conversation(("user", "Q1"), ("assistant", "", {"tool_calls": CALL}), tools=TOOLS))
    answer_ids = [token for token, learned in zip(called.input_ids, called.supervised, strict=True) if learned][:-1]

    def answer(model, prompt_ids, settings, stop_ids):
        prompts.append(list(prompt_ids))
        yield from answer_ids

    monkeypatch.setattr(chat_module, "generate_stream", answer)
    ask(make_chat(historys=-1, tools=TOOLS), "Q1", "Q2")
    trained = encode_one(BUNDLED, conversation(("user", "Q1"), ("assistant", "", {"tool_calls": CALL}), ("user", "Q2"),
                                               ("assistant", "A"), tools=TOOLS))
    assert prompts[1] == trained.input_ids[:len(prompts[1])]


def test_the_oldest_messages_are_dropped_with_a_notice_when_the_context_is_full(shown):
    said = []
    ask(make_chat(historys=-1), "Q1", "Q2", "Q3")
    # Room for two questions beside an answer of 16 tokens, but not for three.
    chat = make_chat(historys=-1, context=len(shown[2]) - 1 + 16, notify=said.append)
    shown.clear()
    ask(chat, "Q1", "Q2", "Q3", "Q4")
    assert [roles_in(prompt) for prompt in shown] == ["ua", "uaua", "uaua", "uaua"]
    assert ["Q3" in TOKENIZER.decode(prompt) for prompt in shown] == [False, False, True, True]
    context = chat.model.config.max_position_embeddings
    assert said == [f"[the model's context of {context} tokens is full: dropped the 2 oldest messages]"] * 2
    assert len(chat.messages) == 8 and chat.out_of_view == 4


def test_a_conversation_longer_than_those_in_training_is_told_once(shown):
    said = []
    ask(make_chat(historys=-1), "Q1", "Q2")
    chat = make_chat(historys=-1, trained_length=len(shown[1]) - 1, notify=said.append)
    ask(chat, "Q1")
    assert said == []
    ask(chat, "Q2", "Q3")
    assert said == [f"[the conversation has {len(shown[1])} tokens, more than these weights ever saw in training "
                    f"({len(shown[1]) - 1}): /reset starts over]"]
    chat.clear()
    ask(chat, "Q1", "Q2")
    assert len(said) == 2


def test_at_most_half_the_context_is_kept_free_for_the_answer(shown):
    chat = make_chat(historys=-1, context=200, max_new_tokens=100_000)
    ask(chat, "Q1", "Q2")
    assert roles_in(shown[1]) == "uaua"


def test_a_message_that_is_too_long_leaves_the_history_as_it_was(shown, monkeypatch):
    said = []
    chat = make_chat(historys=-1, context=100, notify=said.append)
    ask(chat, "Q1")
    monkeypatch.undo()
    before = list(chat.messages)
    with pytest.raises(UserError, match=r"tokens and leaves no room for an answer: the model's context is 100"):
        ask(chat, "long " * 200)
    assert chat.messages == before and said == []


def test_a_message_that_the_template_refuses_leaves_the_history_as_it_was(shown):
    template = ChatTemplate(TOKENIZER, "{% for message in messages %}{% if 'forbidden' in message['content'] %}"
                            "{{ raise_exception('a forbidden word') }}{% endif %}{% endfor %}" + ALTERNATING)
    chat = make_chat(template, historys=-1)
    ask(chat, "Q1")
    with pytest.raises(UserError, match="a forbidden word"):
        ask(chat, "forbidden")
    ask(chat, "Q2")
    assert roles_in(shown[-1]) == "uaua" and "forbidden" not in TOKENIZER.decode(shown[-1])


def test_pretrained_weights_of_minimind_see_a_text_between_bos_and_eos(monkeypatch):
    seen = []

    def answer(model, prompt_ids, settings, stop_ids):
        seen.append((list(prompt_ids), set(stop_ids)))
        return iter(())

    monkeypatch.setattr(chat_module, "generate_stream", answer)
    ids = TOKENIZER.encode_ordinary("Once")
    for from_minimind in (False, True):
        list(Continuation(tiny_model(), TOKENIZER, SamplingSettings(4), from_minimind).reply("Once"))
    assert seen == [(ids, {0}), ([1, *ids], {0, 2})]  # <|im_start|> before the text, ended by <|im_end|> as well


@pytest.mark.parametrize("text, message", [
    ("ab\udce4c", "expected text, found byte 0xe4 at character 3, which is not a character in the terminal's encoding"),
    ("\ud83d", r"expected text, found \\ud83d, half a character"),
    ("x" * 2_000_001, r"expected at most 2,000,000 characters, found 2,000,001"),
])
def test_messages_that_are_not_valid_text_are_refused(shown, text, message):
    chat = make_chat(historys=-1)
    with pytest.raises(UserError, match=message):
        ask(chat, text)
    with pytest.raises(UserError, match=message):
        list(Continuation(chat.model, TOKENIZER, chat.settings).reply(text))
    assert chat.messages == [] and shown == []


def test_an_interrupted_answer_is_not_kept(shown):
    chat = make_chat(historys=-1)
    ask(chat, "Q1")
    pieces = chat.reply("Q2")
    next(pieces)
    pieces.close()
    ask(chat, "Q3")
    assert "Q2" not in TOKENIZER.decode(shown[-1]) and roles_in(shown[-1]) == "uaua"


def test_clear_forgets_the_conversation_but_not_the_system_turn(shown):
    chat = make_chat(historys=-1, system="Be brief.")
    ask(chat, "Q1", "Q2")
    chat.clear()
    ask(chat, "Q3")
    assert roles_in(shown[-1]) == "sua"


@pytest.mark.parametrize("given, message", [({"system": "Be brief."}, "--system: .*chat template does not render"),
                                            ({"tools": TOOLS}, "--tools: .*chat template")])
def test_a_template_that_cannot_render_system_or_tools_is_refused_at_the_start(given, message):
    template = ChatTemplate(TOKENIZER, WITHOUT_SYSTEM_OR_TOOLS)
    with pytest.raises(UserError, match=message):
        make_chat(template, **given).check_opening()


def test_a_template_that_refuses_the_system_turn_is_refused_at_the_start():
    with pytest.raises(UserError, match=r"--system: .*roles must alternate"):
        make_chat(ChatTemplate(TOKENIZER, ALTERNATING), system="Be brief.").check_opening()


def test_open_thinking_needs_a_template_that_renders_reasoning():
    with pytest.raises(UserError, match=r"--open_thinking: .*chat template"):
        make_chat(ChatTemplate(TOKENIZER, ALTERNATING), thinking=True).check_opening()
    make_chat(thinking=True, system="Be brief.", tools=TOOLS).check_opening()


def test_the_history_stores_reasoning_apart_from_the_answer(monkeypatch):
    ids = [*TOKENIZER.encode_ordinary("\n12 is even."), TOKENIZER.token_to_id("</think>"),
           *TOKENIZER.encode_ordinary("\n\nYes.")]
    monkeypatch.setattr(chat_module, "generate_stream", lambda *arguments: iter(ids))
    chat = make_chat(historys=-1, thinking=True)
    ask(chat, "Is 12 even?")
    assert chat.messages[-1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "12 is even."}


def test_a_template_that_always_thinks_gets_the_reasoning_back_as_such(monkeypatch):
    ids = [*TOKENIZER.encode_ordinary("12 is even."), TOKENIZER.token_to_id("</think>"),
           *TOKENIZER.encode_ordinary("Yes.")]
    seen = []
    monkeypatch.setattr(chat_module, "generate_stream", lambda model, prompt, *_: seen.append(prompt) or iter(ids))
    chat = make_chat(ChatTemplate(TOKENIZER, ALWAYS_THINKS), historys=-1)
    ask(chat, "Is 12 even?")
    assert chat.messages[-1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "12 is even."}
    ask(chat, "Why?")
    assert "assistant\n<think>\n12 is even.</think>Yes.<|im_end|>" in TOKENIZER.decode(seen[1])
