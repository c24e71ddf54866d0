"""Modelfiles for Ollama: the template is Go's, and says what the chat template says."""

from dataclasses import replace

import pytest
from chats import BUNDLED, TOKENIZER
from export_models import QWEN3
from exports import export_of

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.export.gguf_tokens import tokenizer_metadata
from minimind_sft.export.modelfile import frames_of, modelfile
from minimind_sft.settings.chat import SamplingSettings

SAMPLING = SamplingSettings(temperature=0.85, top_p=0.9)
CHATML = """\
{% for message in messages %}{% if loop.first and messages[0].role != 'system' %}<|im_start|>system
Be brief.<|im_end|>
{% endif %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def template(source: str) -> ChatTemplate:
    return ChatTemplate(TOKENIZER, source)


def test_the_modelfile_of_the_bundled_template():
    assert modelfile(export_of(QWEN3), "answers.gguf", SAMPLING) == """\
FROM ./answers.gguf
TEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
{{ .Content }}<|im_end|>
{{ else if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
<think>

</think>

{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
<think>

</think>

\"\"\"
PARAMETER stop "<|im_end|>"
PARAMETER stop "<|endoftext|>"
PARAMETER num_ctx 512
PARAMETER temperature 0.85
PARAMETER top_p 0.9
PARAMETER top_k 0
PARAMETER repeat_penalty 1
"""


def test_a_default_system_message_is_one_in_the_modelfile():
    text = modelfile(replace(export_of(QWEN3), template=template(CHATML)), "m.gguf", SAMPLING)
    assert 'SYSTEM """Be brief."""\n' in text
    frames = frames_of(template(CHATML))
    assert frames is not None and frames.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    messages = [{"role": "user", "content": "Hi"}]
    assert frames.render(messages) == template(CHATML).render(messages, add_generation_prompt=True)


def test_text_before_the_first_message_comes_once():
    frames = frames_of(template("<|endoftext|>" + CHATML.replace("Be brief.", "{{ '' }}")
                                .replace("{% if loop.first", "{% if false and loop.first")))
    assert frames is not None and frames.start == "<|endoftext|>"


@pytest.mark.parametrize("default", ["", "Be brief."])
def test_llama_cpp_writes_bos_for_a_tokenizer_that_adds_it(default):
    """Once: a template that begins with it is then written without. A template without it does not get it."""
    adding = Tokenizer(TOKENIZER.state, {**TOKENIZER.special, "bos_token": "<|endoftext|>"}, adds_bos=True)
    chatml = CHATML if default else CHATML.replace("{% if loop.first", "{% if false and loop.first")
    for source, expected in ((chatml, False), ("{{ bos_token }}" + chatml, True)):
        export = replace(export_of(QWEN3), tokenizer=adding, template=ChatTemplate(adding, source))
        assert tokenizer_metadata(export)["tokenizer.ggml.add_bos_token"] is expected
        text = modelfile(export, "m.gguf", SAMPLING)
        assert "<|endoftext|>" not in text.replace('stop "<|endoftext|>"', "")
        assert text.count("SYSTEM") == bool(default)
    assert tokenizer_metadata(replace(export, template=None))["tokenizer.ggml.add_bos_token"] is True


def test_alpaca_is_a_template_too():
    frames = frames_of(make_template(TOKENIZER, "alpaca"))
    assert frames is not None and frames.around["system"] == ("", "\n\n")


@pytest.mark.parametrize("source", [
    CHATML.replace("{{ message.content }}", "{{ message.content | upper }}"),
    CHATML.replace("<|im_end|>", "{{ '' if message.role == 'assistant' else loop.index }}<|im_end|>"),
    CHATML.replace("Be brief.", '"""'),
], ids=["changes the text", "counts messages", "quotes"])
def test_a_template_that_does_more_is_left_out(source):
    assert frames_of(template(source)) is None
    text = modelfile(replace(export_of(QWEN3), template=template(source)), "m.gguf", SAMPLING)
    assert "TEMPLATE " not in text.replace("Without TEMPLATE,", "") and "# The chat template does more than" in text


def test_weights_without_a_template_continue_text():
    export = replace(export_of(QWEN3), template=None)
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in modelfile(export, "m.gguf", SAMPLING)
    assert BUNDLED.source not in modelfile(export, "m.gguf", SAMPLING)
