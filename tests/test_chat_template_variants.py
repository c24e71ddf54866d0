"""Templates without a generation prompt, tokenizers with several templates, and a byte order mark."""

import json

import pytest
from chats import BUNDLED, CALL, TOKENIZER, TOOLS, check_invariants, conversation, encode_one, supervised_texts

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

MESSAGE = "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}"
NO_PROMPT = "{% for m in messages %}" + MESSAGE + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
WITH_TOOLS = ("{% if tools %}{{ 'TOOLS:' + (tools|tojson) + '\n' }}{% endif %}" + NO_PROMPT.replace(
    "(m.content or '')", "(m.content or '') + ((m.tool_calls|tojson) if m.tool_calls else '')") + PROMPT)
CHAT = conversation(("system", "s"), ("user", "<|im_end|>"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


# Without a generation prompt


def test_the_header_before_answers_is_the_generation_prompt():
    template, twin = ChatTemplate(TOKENIZER, NO_PROMPT), ChatTemplate(TOKENIZER, NO_PROMPT + PROMPT)
    assert encode_one(template, CHAT) == encode_one(twin, CHAT)
    assert supervised_texts(template, CHAT) == ["b<|im_end|>", "d<|im_end|>"]
    for count in (2, 4):
        history = CHAT.messages[:count]
        assert template.generation_prompt_ids(history) == twin.generation_prompt_ids(history)
        assert template.render(history, add_generation_prompt=True) == twin.render(history, add_generation_prompt=True)
    check_invariants(template, CHAT)


def test_a_missing_generation_prompt_is_noted():
    (note,) = ChatTemplate(TOKENIZER, NO_PROMPT).notes
    assert note.startswith(r"it has no generation prompt; answers are asked for with '<|im_start|>assistant\n', ")
    assert BUNDLED.notes == []


def test_the_header_is_part_of_the_fingerprint():
    """Weights trained before headers were determined have learned to write them."""
    import hashlib
    assert ChatTemplate(TOKENIZER, NO_PROMPT).fingerprint != hashlib.sha256(NO_PROMPT.encode()).hexdigest()
    prompted = NO_PROMPT + PROMPT
    assert ChatTemplate(TOKENIZER, prompted).fingerprint == hashlib.sha256(prompted.encode()).hexdigest()


@pytest.mark.parametrize("changed", ["m.role + ' ' + (loop.index|string)", "m.role + ' ' + (m.content|length|string)"])
def test_a_variable_header_is_refused(changed):
    with pytest.raises(UserError, match=r"^chat template: it has no generation prompt, and what it writes before an "
                                        r"answer is not constant: '<\|im_start\|>assistant \d\\n' and "):
        ChatTemplate(TOKENIZER, NO_PROMPT.replace("m.role", changed))


def test_a_template_that_writes_nothing_before_an_answer_needs_no_header():
    template = ChatTemplate(TOKENIZER, "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}")
    assert template.notes == [] and supervised_texts(template, CHAT) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_blank_before_an_answer_belongs_to_the_answer():
    """As with Llama 2 and Mistral: a prompt that ends with a blank would change the first token of the answer."""
    source = ("{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else "
              "' ' + m.content + '<|im_end|>' }}{% endfor %}")
    template, chat = ChatTemplate(TOKENIZER, source), conversation(("user", "a"), ("assistant", "b"))
    assert template.notes == [] and supervised_texts(template, chat) == [" b<|im_end|>"]
    assert TOKENIZER.decode(template.generation_prompt_ids(chat.messages[:1])) == "[INST] a [/INST]"


def test_an_answer_with_another_header_is_refused_naming_its_row():
    source = NO_PROMPT.replace("m.role + '\n'", "m.role + ('!' if m.content == 'loud' else '') + '\n'")
    with pytest.raises(UserError, match=r"^a\.jsonl:3: conversations\[1\]: the chat template prompts for this answer"):
        ChatTemplate(TOKENIZER, source).encode(conversation(("user", "a"), ("assistant", "loud")))
    row = {"instruction": "a", "output": "loud", "history": [["c", "d"]]}
    with pytest.raises(UserError, match=r"^a\.jsonl:4: output: the chat template prompts for this answer"):
        ChatTemplate(TOKENIZER, source).encode(parse_conversation(row, "a.jsonl:4"))


# Several templates


@pytest.fixture
def named(tmp_path) -> Tokenizer:
    """The bundled tokenizer with a default template and one for tools."""
    state, config = TOKENIZER.__reduce__()[1][0], {"eos_token": "<|im_end|>", "chat_template": [
        {"name": "default", "template": NO_PROMPT + PROMPT}, {"name": "tool_use", "template": WITH_TOOLS}]}
    for name, content in (("tokenizer.json", state), ("tokenizer_config.json", config)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_folder(tmp_path)


def test_conversations_with_tools_use_the_template_for_tools(named):
    template = ChatTemplate(named)
    turns = [("user", "time?"), ("assistant", "", {"tool_calls": CALL}), ("tool", "12"), ("assistant", "noon")]
    with_tools, plain = conversation(*turns, tools=TOOLS), conversation(("user", "a"), ("assistant", "b"))
    for chat, source in ((with_tools, WITH_TOOLS), (plain, NO_PROMPT + PROMPT)):
        alone = ChatTemplate(TOKENIZER, source)
        assert encode_one(template, chat) == encode_one(alone, chat)
        assert template.render(chat.messages, chat.tools) == alone.render(chat.messages, chat.tools)
        assert template.prompt_mismatches(chat) == []
    assert template.render(with_tools.messages, with_tools.tools).startswith("TOOLS:[")
    with pytest.raises(UserError, match=r"conversations\[1\]\.tool_calls: the chat template does not render"):
        template.encode(conversation(*turns))
    assert template.notes == ["conversations with tools use the tokenizer's tool_use template"]


def test_the_fingerprint_covers_both_templates(named):
    fingerprints = {ChatTemplate(named).fingerprint, ChatTemplate(named, NO_PROMPT + PROMPT).fingerprint,
                    ChatTemplate(named, WITH_TOOLS).fingerprint}
    assert len(fingerprints) == 3


def test_a_template_is_chosen_by_name(named):
    assert make_template(named, "tool_use").source == WITH_TOOLS
    assert make_template(named, "tool_use").tool_source is None
    assert make_template(named, "chatml").source == BUNDLED.source


def test_templates_that_end_answers_differently_are_refused(named):
    named.named_templates["tool_use"] = WITH_TOOLS.replace("<|im_end|>", "<|endoftext|>")
    with pytest.raises(UserError, match=r"default and tool_use do not end an answer with the same token"):
        ChatTemplate(named)


# A byte order mark


def test_a_byte_order_mark_is_not_part_of_a_template(tmp_path):
    file = tmp_path / "bom.jinja"
    file.write_text("\ufeff" + NO_PROMPT + PROMPT, encoding="utf-8")
    for template in (make_template(TOKENIZER, str(file)), ChatTemplate(TOKENIZER, "\ufeff" + NO_PROMPT + PROMPT)):
        assert template.render(CHAT.messages[1:2]) == "<|im_start|>user\n<|im_end|><|im_end|>\n"
        assert template.fingerprint == ChatTemplate(TOKENIZER, NO_PROMPT + PROMPT).fingerprint
