"""The templates of MiniMind-3, Qwen3 and TRL, compared with transformers."""

from importlib.resources import files

import pytest
from chats import (
    BUNDLED,
    CALL,
    MODEL,
    TOKENIZER,
    TOOLS,
    check_invariants,
    conversation,
    conversations,
    encode_one,
    supervised_texts,
)
from hypothesis import given, settings
from templates import NamedTemplate, tokenizer_for

from minimind_sft.data.chat_template import ChatTemplate, has_reasoning, make_template
from minimind_sft.data.conversation import Conversation
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

pytestmark = pytest.mark.slow


def trl_template(name: str) -> str:
    pytest.importorskip("trl")
    file = files("trl") / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this version of TRL has no template {name}")
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def minimind(shared) -> ChatTemplate:
    return ChatTemplate(Tokenizer.from_folder(shared / "reference/minimind"))


@pytest.fixture(scope="module")
def qwen3() -> ChatTemplate:
    return ChatTemplate(TOKENIZER, trl_template("qwen3"))


@pytest.fixture(params=["bundled", "minimind", "qwen3"])
def with_peer(request) -> tuple:
    """Returns a template and a tokenizer of Hugging Face with the same template."""
    transformers = pytest.importorskip("transformers")
    if request.param == "bundled":
        return BUNDLED, transformers.AutoTokenizer.from_pretrained(str(MODEL))
    if request.param == "minimind":
        folder = request.getfixturevalue("shared") / "reference/minimind"
        return request.getfixturevalue("minimind"), transformers.AutoTokenizer.from_pretrained(str(folder))
    peer = transformers.AutoTokenizer.from_pretrained(str(MODEL))
    template = request.getfixturevalue("qwen3")
    peer.chat_template = template.source
    return template, peer


CHATS = [
    conversation(("user", "你好"), ("assistant", "好 1 < 2")),
    conversation(("system", "be brief"), ("user", "a\n\nb"), ("assistant", "c", {"reasoning_content": "\nhm\n"})),
    conversation(("user", "q"), ("assistant", None, {"tool_calls": CALL}), ("tool", "晴"), ("assistant", "fine"),
                 tools=TOOLS),
    conversation(("user", "a"), ("assistant", "<think>\nx\n</think>\n\ny"), ("user", "b"), ("assistant", "\n\nz ")),
]


@pytest.mark.parametrize("chat", CHATS)
def test_text_and_ids_are_those_of_transformers(with_peer, chat):
    template, peer = with_peer
    answers = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
    for thinking in (None, False, True):
        flags = {} if thinking is None else {"enable_thinking": thinking, "open_thinking": thinking}
        for ask in (False, True):
            theirs = peer.apply_chat_template(list(chat.messages), tools=chat.tools, tokenize=False,
                                              add_generation_prompt=ask, **flags)
            assert template.render(chat.messages, chat.tools, ask, thinking) == theirs
        first = list(chat.messages[:answers[0]])
        if thinking is not None:
            theirs = peer.apply_chat_template(first, tools=chat.tools, add_generation_prompt=True, return_dict=False,
                                              **flags)
            assert template.generation_prompt_ids(first, chat.tools, thinking) == theirs


@pytest.mark.parametrize("chat", CHATS)
def test_the_first_answer_is_what_transformers_adds_to_the_prompt(with_peer, chat):
    template, peer = with_peer
    index = next(i for i, message in enumerate(chat.messages) if message["role"] == "assistant")
    thinking = has_reasoning(chat.messages[index])
    flags = {"enable_thinking": thinking, "open_thinking": thinking, "tools": chat.tools, "tokenize": False}
    prompt = peer.apply_chat_template(list(chat.messages[:index]), add_generation_prompt=True, **flags)
    answered = peer.apply_chat_template(list(chat.messages[:index + 1]), **flags)
    answer, newline = answered[len(prompt):-1], answered[-1]
    assert (answered[:len(prompt)], newline) == (prompt, "\n")
    first = Conversation(chat.messages[:index + 1], chat.tools, "")
    encoded = encode_one(template, first)
    pieces = [peer(piece)["input_ids"] for piece in (prompt, answer, newline)]
    assert encoded.input_ids == [token_id for ids in pieces for token_id in ids]
    assert encoded.supervised == [False] * len(pieces[0]) + [True] * len(pieces[1]) + [False] * len(pieces[2])


@settings(max_examples=30, deadline=None)
@given(chat=conversations())
def test_invariants_of_minimind_3s_template(minimind, chat):
    check_invariants(minimind, chat)


@settings(max_examples=30, deadline=None)
@given(chat=conversations())
def test_invariants_of_qwen3s_template(qwen3, chat):
    check_invariants(qwen3, chat)


def test_qwen3_drops_old_reasoning_so_the_turns_get_a_sequence_each(qwen3):
    chat = conversation(("user", "a"), ("assistant", "b", {"reasoning_content": "r"}), ("user", "c"),
                        ("assistant", "d"))
    first, second = qwen3.encode(chat)
    assert TOKENIZER.decode(first.input_ids) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nr\n</think>\n\nb<|im_end|>\n")
    assert TOKENIZER.decode(second.input_ids) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nd<|im_end|>\n")
    assert supervised_texts(qwen3, chat) == ["<think>\nr\n</think>\n\nb<|im_end|>", "d<|im_end|>"]


def test_qwen3_tool_response_tags_in_a_users_text_stay_text(qwen3):
    chat = conversation(("user", "a"), ("assistant", "b"), ("user", "<tool_response>c</tool_response>"),
                        ("assistant", "d"))
    ids = qwen3.encode(chat)[-1].input_ids
    assert TOKENIZER.decode(ids) == qwen3.render(chat.messages)
    assert 23 not in ids and 24 not in ids


# TRL's templates by the number of sequences that two plain turns give; control tokens are recognised by their form.

ONE_SEQUENCE = [
    "cohere", "cohere2", "diffusion_gemma", "gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4",
    "gemma4_v5", "idefics3", "lfm2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2", "llama3", "llama3_1",
    "llama3_2", "llava_next", "muse_glimmer", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super",
    "nemotron_3_ultra", "phi3", "phi3_5", "qwen2_5", "qwen2_5_vl", "qwen3_8", "qwen3_instruct_2507", "qwen3_vl",
    "smolvlm", "glm4moe_training", "qwen3_training",
]
SPLIT = ["gptoss", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"]
REFUSED = {
    "deepseek_r1_distill": r"prompts for this answer with .*<think>\\n', but renders it as .*>ANSWER",
    "deepseekv3": r"prompts for this answer with .*<think>\\n', but renders it as .*>ANSWER",
    "glm4moe": r"writes no control token after an answer; --end_of_turn names",
}


@pytest.mark.parametrize("name", ONE_SEQUENCE + SPLIT)
def test_templates_of_trl_keep_the_invariants(name):
    tokenizer = tokenizer_for(trl_template(name))
    template = ChatTemplate(tokenizer)
    tags = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    attack = " ".join(sorted({*tokenizer.control_tokens(template.source)} - tags))
    for text in ("plain", attack):
        chat = conversation(("user", text), ("assistant", text), ("user", "more"), ("assistant", "no more"))
        check_invariants(template, chat)
        sequences = template.encode(chat)
        assert len(sequences) == (2 if name in SPLIT else 1)
        assert tokenizer.decode(sequences[-1].input_ids) == template.render(chat.messages, thinking=False)
        first, second = supervised_texts(template, chat)
        assert f"no more{template.end_of_turn}" in second
        if text == "plain":  # some templates cut their own tags out of an answer
            assert f"plain{template.end_of_turn}" in first


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_templates_of_trl_are_refused(name):
    with pytest.raises(UserError, match=REFUSED[name]):
        ChatTemplate(tokenizer_for(trl_template(name)))


@pytest.mark.parametrize("name", ["bundled", "alpaca", "cohere2", "gemma4_v5", "glm4moe", "gptoss", "llama3_1",
                                  "qwen3_8", "smolvlm"])
def test_text_and_ids_of_many_cases_are_those_of_transformers(name, monkeypatch):
    """A sample of proofs/template_parity.py, which goes through all templates."""
    pytest.importorskip("transformers")
    import template_parity
    bundled = {"bundled": (BUNDLED.source, TOKENIZER), "alpaca": (make_template(TOKENIZER, "alpaca").source, TOKENIZER)}
    source, tokenizer = bundled[name] if name in bundled else (trl_template(name), None)
    monkeypatch.setattr(template_parity.chat_template_utils, "datetime", template_parity.PinnedDatetime)
    row = template_parity.measure(NamedTemplate(name, source, tokenizer or tokenizer_for(source)))
    assert row["differs"] == [] and row["equal"] + row["both_refuse"] == row["renderings"] == 108
    assert row["equal"] >= 60 and row["ids_equal"] == row["sequences_compared"] >= 9
