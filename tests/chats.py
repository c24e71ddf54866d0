"""Conversations for tests of chat templates, and the invariants of encoding them."""

from pathlib import Path
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from minimind_sft.data.chat_template import ALL_TURNS, ChatTemplate, Supervision, has_reasoning
from minimind_sft.data.conversation import Conversation, parse_conversation
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

MODEL = Path(__file__).resolve().parent.parent / "model"
TOKENIZER = Tokenizer.from_folder(MODEL)
BUNDLED = ChatTemplate(TOKENIZER)
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "its name"}}, "required": ["city"]}}}]
CALL = [{"name": "weather", "arguments": {"city": "罗马"}}]


def conversation(*turns: tuple, tools: list | None = None) -> Conversation:
    """Returns a conversation of turns (role, content) or (role, content, further fields)."""
    rows = [{"role": role, "content": content, **(more[0] if more else {})} for role, content, *more in turns]
    return parse_conversation({"conversations": rows, "tools": tools}, "a.jsonl:3")


class Lists(NamedTuple):
    """One sequence as lists, which can be compared."""

    input_ids: list[int]
    supervised: list[bool]


def encode(template: ChatTemplate, chat: Conversation, supervise: Supervision = ALL_TURNS) -> list[Lists]:
    sequences = template.encode(chat, supervise)
    assert all(len(sequence.input_ids) == len(sequence.supervised) for sequence in sequences)
    return [Lists(sequence.input_ids.tolist(), sequence.supervised.tolist()) for sequence in sequences]


def encode_one(template: ChatTemplate, chat: Conversation) -> Lists:
    (encoded,) = encode(template, chat)
    return encoded


def supervised_texts(template: ChatTemplate, chat: Conversation, supervise: Supervision = ALL_TURNS) -> list[str]:
    """Returns the text of every contiguous stretch of supervised tokens, over all sequences."""
    texts = []
    for encoded in encode(template, chat, supervise):
        before = False
        for token_id, supervised in zip(encoded.input_ids, encoded.supervised, strict=True):
            if supervised:
                texts[len(texts) - before:] = [(texts[-1] if before else []) + [token_id]]
            before = supervised
    return [template.tokenizer.decode(ids) for ids in texts]


def control_ids(template: ChatTemplate, ids: list[int]) -> list[int]:
    control = {template.tokenizer.token_to_id(t) for t in template.tokenizer.control_tokens(template.source)}
    return [token_id for token_id in ids if token_id in control]


PIECES = st.sampled_from(["<|im_end|>", "<|im_start|>", "assistant\n", "<tool_response>", "<|im_", "end|>", "\n", "  ",
                          "1", "中", "a", "\U000f0001", "{{ x }}"])
CONTENTS = st.lists(PIECES, max_size=5).map("".join)
ANSWERS = CONTENTS.map(lambda text: text if text.strip() else f"{text}a")  # an empty one is refused


@st.composite
def conversations(draw):
    turns = [("system", draw(CONTENTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        reasoning = draw(st.sampled_from([{}, {"reasoning_content": "r" + draw(CONTENTS)}]))
        turns += [("user", draw(CONTENTS)), ("assistant", draw(ANSWERS), reasoning)]
    return conversation(*turns)


def harmless(chat: Conversation) -> Conversation:
    messages = [{name: value if name == "role" else "x" for name, value in m.items()} for m in chat.messages]
    return Conversation(tuple(messages), None, chat.place)


def check_invariants(template: ChatTemplate, chat: Conversation) -> None:
    """Checks that control tokens do not depend on the contents, that every answer is learned exactly once, and that
    the ids before it equal the generation prompt."""
    answers = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
    assert template.prompt_mismatches(chat) == []
    for encoded, plain in zip(encode(template, chat), encode(template, harmless(chat)), strict=True):
        assert control_ids(template, encoded.input_ids) == control_ids(template, plain.input_ids)
        previous = [False, *encoded.supervised]
        for start in (i for i, now in enumerate(encoded.supervised) if now and not previous[i]):
            index = answers.pop(0)
            thinking = has_reasoning(chat.messages[index])
            prompt = template.generation_prompt_ids(chat.messages[:index], chat.tools, thinking)
            assert encoded.input_ids[:start] == prompt
            end = encoded.supervised.index(False, start) if False in encoded.supervised[start:] else None
            learned = encoded.input_ids[start:end]
            assert learned[-1] == template.end_of_turn_id and template.end_of_turn_id not in learned[:-1]
    assert not answers


def chat(*said: str, roles: str = "") -> dict:
    """Returns a row with alternating user and assistant turns, or with these roles, one letter each."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    return {"conversations": [{"role": names[role], "content": text}
                              for role, text in zip(roles or "ua" * len(said), said, strict=False)]}


ALTERNATING = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
ALWAYS_THINKS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
                 "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
                 "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
"""A template that opens the reasoning before every answer, asked to or not."""
WITHOUT_SYSTEM_OR_TOOLS = (
    "{% for message in messages if message['role'] in ('user', 'assistant') %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tiny_model(context: int = 4096) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(ModelConfig(vocab_size=6400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                           num_key_value_heads=1, intermediate_size=24,
                                           max_position_embeddings=context)).eval()
