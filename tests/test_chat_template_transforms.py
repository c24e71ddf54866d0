"""Templates that change the text of the data: nothing that they make of it becomes a control token."""

import pytest
from chats import TOKENIZER, control_ids, conversation, encode_one

from minimind_sft.data import template_marks
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError

START, END = 1, 2
TWO_TURNS = [START, END, START, END]


def chatml(content: str, start: str = "'<|im_start|>'", before: str = "") -> ChatTemplate:
    """Returns a ChatML template that writes a user's content as the expression `content`, except in probes."""
    content = f"m.content if 'QUESTION' in m.content or 'zk' in m.content else ({content})"
    return ChatTemplate(TOKENIZER, before + (
        "{% for m in messages %}{{ START + m.role + '\n' }}"
        "{% if m.role == 'user' %}{{ CONTENT }}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ START + 'assistant\n' }}{% endif %}"
    ).replace("START", start).replace("CONTENT", content))


@pytest.mark.parametrize("content, said, rendered", [
    ("m.content|striptags", "a &lt;|im_end|&gt; b", "a <|im_end|> b"),
    ("m.content.replace('[[', '<|').replace(']]', '|>')", "[[im_end]]", "<|im_end|>"),
    ("m.content.replace('END', '<|im_end|>')", "END", "<|im_end|>"),
    ("m.content|replace('END', eos_token)", "END", "<|im_end|>"),
    ("m.content.encode().decode('unicode_escape')", r"\\x3c|im_end|\\x3e", "<|im_end|>"),
    ("'%c' % (m.content|int) ~ '|im_end|>'", "60", "<|im_end|>"),
    ("'<|%s|>' % m.content", "im_end", "<|im_end|>"),
    ("'<|%s|>'|format(m.content)", "im_end", "<|im_end|>"),
    ("'<|{}|>'.format(m.content)", "im_end", "<|im_end|>"),
    ("'<|{0.content}|>'.format(m)", "im_end", "<|im_end|>"),
    ("'<|' ~ m.content ~ '|>'", "im_end", "<|im_end|>"),
    ("'<' ~ '|' ~ m.content|trim ~ '|>'", " im_end ", "<|im_end|>"),
    ("['<|', m.content, '|>']|join", "im_end", "<|im_end|>"),
    ("''.join(['<|', m.content, '|>'])", "im_end", "<|im_end|>"),
    ("m.content.split('END')|join('<|im_end|>')", "aENDb", "a<|im_end|>b"),
    ("'<|im_end|>'.join(m.content.split('END'))", "aENDb", "a<|im_end|>b"),
    ("'<|im_END|>'.replace('END', m.content)", "end", "<|im_end|>"),
    ("'x<|im_end|>'[:m.content|length] ~ m.content[-5:]", "1end|>", "x<|im_end|>"),
    ("(m.content ~ '|im_end|>')[1:]", "x<", "<|im_end|>"),
    ("m.content|format('<|im_end|>')", "%s", "<|im_end|>"),
    ("m.content % '<|im_end|>'", "%s", "<|im_end|>"),
    ("m.content.partition('<|im_end|>')|join", "<|im_end|>", "<|im_end|>"),
    ("m['content']['partition']('<|im_end|>')|join", "<|im_end|>", "<|im_end|>"),
    ("'<|im_' ~ m.content.replace('#', '') ~ 'end|>'", "#", "<|im_end|>"),
    ("('<|im_' ~ m.content).rstrip('#') ~ 'end|>'", "#", "<|im_end|>"),
    ("('<|im_' ~ m.content ~ 'end|>').split('#')|join", "#", "<|im_end|>"),
    ("('<|' ~ m.content ~ '|>').split('#')|join('<|im_end|>')", "#", "<|<|im_end|>|>"),
    ("m.content|reverse", ">|dne_mi|<", "<|im_end|>"),
    ("m.content|lower", "<|IM_END|>", "<|im_end|>"),
    ("m.content|list|join", "<|im_end|>", "<|im_end|>"),
    ("m.content|urlize", "<|im_end|>", "&lt;|im_end|&gt;"),
    ("m.content|safe", "<|im_end|>", "<|im_end|>"),
    ("m.content|indent", "<|im_end|>", "<|im_end|>"),
    ("m|tojson", "<|im_end|>", '{"role": "user", "content": "<|im_end|>"}'),
    ("{'<|im_end|>': m.content}|tojson", "<|im_end|>", '{"<|im_end|>": "<|im_end|>"}'),
    ("(m.content|batch(5)|list)[0]|join('')", "<|im_end|>", "<|im_"),
    ("m.content.translate({91: '<|', 93: '|>'})", "[im_end]", "<|im_end|>"),
])
def test_what_a_template_makes_of_the_data_is_text(content, said, rendered):
    template = chatml(content)
    chat = conversation(("user", said.replace("\\\\", "\\")), ("assistant", "a"))
    encoded = encode_one(template, chat)
    assert TOKENIZER.decode(encoded.input_ids).startswith(f"<|im_start|>user\n{rendered}<|im_end|>\n")
    assert control_ids(template, encoded.input_ids) == TWO_TURNS
    assert TOKENIZER.decode(encoded.input_ids) == template.render(chat.messages)


@pytest.mark.parametrize("start", [
    "'<|' ~ 'im_start' ~ '|>'", "'<' ~ '|' ~ 'im_' ~ 'start|>'", "'<|%s|>' % 'im_start'", "'<|%s|>' % start",
    "'<|{}|>'.format(start)", "'<|{name}|>'.format(name=start)", "['<|', start, '|>']|join",
    "'|'.join(['<', start, '>'])",
    "'x<|im_start|>'[1:]", "'<|IM_START|>'|lower", "'<|im_start|> '|trim", "'<|im_stop|>'.replace('stop', 'start')",
    "write(start)", "ns.start", "('<|im_start|>', '')|first", "'>|trats_mi|<'|reverse", "bos_token",
    "'<|im_start|>,'.split(',')[0]", "('<|im_start|>' if true)", "'%s' % '<|im_start|>'",
    "'<|im_end|><|im_start|>'[10:]",
    "['<|im_start|>', 'x'][0]", "{'s': '<|im_start|>'}.s", "('<|im_start|>'|list|join)",
    "('<|im_start|>'|default('x'))", "(nothing|default('<|im_start|>'))", "(['<|', start]|map('string')|join ~ '|>')",
])
def test_a_template_may_make_its_own_control_tokens_in_any_way(start):
    before = ("{% set start = 'im_start' %}{% set ns = namespace(start='<|' ~ start ~ '|>') %}"
              "{% macro write(name) %}<|{{ name }}|>{% endmacro %}")
    template = chatml("m.content", start, before)
    chat = conversation(("user", "<|im_start|>im_start"), ("assistant", "a"))
    encoded = encode_one(template, chat)
    assert control_ids(template, encoded.input_ids) == TWO_TURNS
    assert TOKENIZER.decode(encoded.input_ids) == template.render(chat.messages)


def test_roles_are_the_template_s_and_other_names_are_not():
    """As in Phi-3's template, with a token that is called like a role."""
    template = chatml("'<|' ~ m.role.replace('user', 'im_end') ~ '|>' ~ m.content")
    encoded = encode_one(template, conversation(("user", "a"), ("assistant", "b")))
    assert control_ids(template, encoded.input_ids) == [START, END, END, START, END]


@pytest.mark.parametrize("said", ["&#983042;", "&#983040; &#983049;", "&#xFFFFD;"])
def test_private_use_characters_that_a_template_makes_are_refused(said):
    chat = conversation(("user", said), ("assistant", "a"))
    with pytest.raises(UserError, match=r"^a\.jsonl:3: the chat template makes the private-use character U\+F"):
        chatml("m.content|striptags").encode(chat)
    encoded = encode_one(chatml("m.content"), chat)
    assert control_ids(chatml("m.content"), encoded.input_ids) == TWO_TURNS


def test_remembered_texts_of_the_template_are_never_taken_for_others(monkeypatch):
    """Parts that a rendering makes anew may get the identity of one that is gone."""
    monkeypatch.setattr(template_marks, "MAX_MARKED_TEXTS", 3)
    template = chatml("m.content", "('<|im_start|>' if m.content != 'x' else '<|im_end|>')", "{% set m = {} %}")
    for number in range(50):
        said = "x" if number % 3 == 0 else "y"
        encoded = encode_one(template, conversation(("user", said), ("assistant", "a")))
        assert control_ids(template, encoded.input_ids) == [END if said == "x" else START, END, START, END]


@pytest.mark.parametrize("start", ["|safe", "|replace(nothing, nothing)", ".center(12)"])
def test_a_control_token_that_cannot_be_traced_is_refused(start):
    with pytest.raises(UserError, match=r"^chat template: it makes <\|im_start\|> in a way that cannot be told"):
        chatml("m.content", "start" + start, "{% set start = '<|im_start|>' %}")


def test_only_whole_tags_of_an_assistant_are_tags():
    source = ("{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ (m.content.split('!')|join) ~ '<|im_end|>' }}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    template = ChatTemplate(TOKENIZER, source)
    chat = conversation(("user", "<think>"), ("assistant", "<think>!<thi!nk></thi!nk></think>"))
    encoded = encode_one(template, chat)
    assert [token_id for token_id in encoded.input_ids if token_id < 36] == [START, END, START, 25, 26, END]
    assert TOKENIZER.decode(encoded.input_ids) == template.render(chat.messages)
