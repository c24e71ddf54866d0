"""Requests that OpenAI's client makes of a server of ours. Each function prints what came.

They run against the bundled model, fine-tuned as the README says: it has 4 million parameters and answers accordingly.
"""

import asyncio
import json
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

QUESTION = {"role": "user", "content": "What is the capital of France?"}


def models(client: OpenAI) -> None:
    """The models that the server offers"""
    for model in client.models.list():
        print(model.id, model.owned_by)


def chat(client: OpenAI) -> None:
    """A question and its answer"""
    answer = client.chat.completions.create(model="full_sft", messages=[QUESTION], temperature=0)
    print(answer.choices[0].message.content)
    print(answer.choices[0].finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens)


def conversation(client: OpenAI) -> None:
    """An answer is sent back with the next question, and the beginning of the prompt is not read again"""
    messages = [{"role": "system", "content": "You are Mini. " * 20}, QUESTION]
    for question in ("And of Italy?", "你是谁？"):
        answer = client.chat.completions.create(model="full_sft", messages=messages, temperature=0)
        cached = answer.usage.prompt_tokens_details.cached_tokens
        print(f"{answer.choices[0].message.content} ({cached} of {answer.usage.prompt_tokens} tokens were shared)")
        messages += [answer.choices[0].message, {"role": "user", "content": question}]


def stream(client: OpenAI) -> None:
    """A stream, which tells at its end what it took"""
    pieces = client.chat.completions.create(model="full_sft", messages=[QUESTION], temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    for piece in pieces:
        if piece.choices and piece.choices[0].delta.content:
            print(piece.choices[0].delta.content, end="|")
    print(f"\n{piece.usage.completion_tokens} tokens")


def reasoning(client: OpenAI) -> None:
    """Reasoning, which is apart from the answer"""
    answer = client.chat.completions.create(model="full_sft", temperature=0, extra_body={"open_thinking": True},
                                            messages=[{"role": "user", "content": "17 - 6 等于多少？"}])
    print("reasoning:", answer.choices[0].message.reasoning_content)
    print("answer:   ", answer.choices[0].message.content)
    print(answer.usage.completion_tokens_details.reasoning_tokens, "of", answer.usage.completion_tokens,
          "tokens are reasoning")


def several(client: OpenAI) -> None:
    """Several answers; the same seed gives the same ones"""
    first, again = (client.chat.completions.create(model="full_sft", n=4, seed=1, temperature=1.2, messages=[
        {"role": "user", "content": "What do you like?"}]) for _ in range(2))
    for choice in first.choices:
        print(choice.index, choice.message.content)
    print([one.message.content for one in first.choices] == [one.message.content for one in again.choices])


def ends(client: OpenAI) -> None:
    """Where an answer ends"""
    for limits in ({}, {"max_completion_tokens": 3}, {"stop": [" Par", "!"]}):
        answer = client.chat.completions.create(model="full_sft", messages=[QUESTION], temperature=0, **limits)
        print(limits, repr(answer.choices[0].message.content), answer.choices[0].finish_reason)


def logprobs(client: OpenAI) -> None:
    """How sure the model was of each token"""
    answer = client.chat.completions.create(model="full_sft", messages=[QUESTION], temperature=0, max_tokens=3,
                                            logprobs=True, top_logprobs=2)
    for token in answer.choices[0].logprobs.content:
        others = [(one.token, round(one.logprob, 2)) for one in token.top_logprobs]
        print(f"{token.token!r} {token.logprob:.2f}", others)


class City(BaseModel):
    """A city, as the answer's JSON describes it."""

    name: Literal["London", "Paris", "Rome"]
    is_capital: bool


def structured(client: OpenAI) -> None:
    """JSON that follows a schema, from a model that was never taught JSON"""
    answer = client.chat.completions.parse(model="full_sft", messages=[QUESTION], temperature=0, response_format=City)
    print(repr(answer.choices[0].message.parsed))


WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Tells the weather of a city", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "unit": {"enum": ["°C", "°F"]}},
        "required": ["city", "unit"], "additionalProperties": False}}}


def tools(client: OpenAI) -> None:
    """A call that the request demands, its result, and the answer after it; the model was never taught tools either"""
    messages = [{"role": "user", "content": "What is the weather in Rome?"}]
    answer = client.chat.completions.create(
        model="full_sft", messages=messages, temperature=0, tools=[WEATHER], parallel_tool_calls=False,
        tool_choice={"type": "function", "function": {"name": "weather"}})
    (call,) = answer.choices[0].message.tool_calls
    print(answer.choices[0].finish_reason, call.function.name, json.loads(call.function.arguments))
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 °C"}]
    answer = client.chat.completions.create(model="full_sft", messages=messages, temperature=0, tools=[WEATHER])
    print(answer.choices[0].message.content)


def completions(client: OpenAI) -> None:
    """Text that goes on, two prompts at once"""
    answer = client.completions.create(model="full_sft", prompt=["The capital of France", "天空是"], temperature=0,
                                       max_tokens=12)
    for choice in answer.choices:
        print(choice.index, repr(choice.text), choice.finish_reason)


def many_at_once(client: OpenAI) -> None:
    """Eight requests at once get what each gets alone"""
    def asked(number: int) -> dict:
        return {"model": "full_sft", "temperature": 1, "seed": number,
                "messages": [{"role": "user", "content": f"{number} + {2 * number} = ?"}]}

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=client.base_url, api_key=client.api_key) as others:
            answers = await asyncio.gather(*(others.chat.completions.create(**asked(n)) for n in range(1, 9)))
        return [answer.choices[0].message.content for answer in answers]

    alone = [client.chat.completions.create(**asked(n)).choices[0].message.content for n in range(1, 9)]
    print(alone)
    print(asyncio.run(together()) == alone)


def refusals(client: OpenAI) -> None:
    """The server refuses by name what it does not support"""
    for wrong in ({"temperature": 3}, {"web_search_options": {}}, {"extra_body": {"min_p": 0.1}},
                  {"model": "gpt"}, {"messages": [QUESTION, {"role": "system", "content": "Be brief."}]},
                  {"messages": [{"role": "user", "content": "word " * 40_000}]}):
        try:
            client.chat.completions.create(**{"model": "full_sft", "messages": [QUESTION], **wrong})
        except openai.APIStatusError as error:
            print(error.status_code, error.code, error.param, "|", error.body["message"])


EXAMPLES = (models, chat, conversation, stream, reasoning, several, ends, logprobs, structured, tools, completions,
            many_at_once, refusals)
