"""OpenAI's own client understands the server: whole answers and streams, calls, reasoning, refusals."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")
pytest.importorskip("llguidance", reason="the extra [serve] is not installed")
pytest.importorskip("openai", reason="the openai client is not installed")

import openai
from chats import TOOLS
from programs import PATIENCE
from pydantic import BaseModel
from served import TOKENIZER, HeldEngine, ScriptedEngine, served, server_of, wait_until

from minimind_sft.settings.serve import ListeningSettings

USER = {"role": "user", "content": "What is the weather in Rome?"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def client(engine):
    with server_of(served("m", engine)) as server, openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def ask(engine, client):
    """Returns a function that is told the next answers and returns the part of the client that asks for them."""
    engine.asked.clear()

    def scripted(*script):
        engine.script[:] = script
        return client.chat.completions
    return scripted


def test_a_whole_answer(ask):
    answer = ask("It is sunny.").create(model="m", messages=[USER], max_completion_tokens=50)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "It is sunny.", "stop")
    assert choice.message.tool_calls is None and choice.logprobs is None
    assert answer.usage.completion_tokens == len(TOKENIZER.encode("It is sunny."))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    (choice,) = ask("It is sunny.").create(model="m", messages=[USER], max_tokens=2).choices
    assert (choice.message.content, choice.finish_reason) == ("It is", "length")
    (choice,) = ask("It is sunny.").create(model="m", messages=[USER], stop=" sun").choices
    assert (choice.message.content, choice.finish_reason) == ("It is", "stop")


def test_a_stream_is_the_whole_answer(ask):
    with ask("It is sunny. 你好").stream(model="m", messages=[USER], max_tokens=50,
                                       stream_options={"include_usage": True}) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion()
    assert len(pieces) > 3 and "".join(pieces) == answer.choices[0].message.content == "It is sunny. 你好"
    assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("stop", "assistant")
    assert answer.usage.completion_tokens == len(TOKENIZER.encode("It is sunny. 你好"))


def test_calls_and_their_results(ask, engine):
    completions = ask(f"I look.\n{CALL}\n{CALL}", "Sunny.")
    first = completions.create(model="m", messages=[USER], tools=TOOLS, max_tokens=90).choices[0]
    assert (first.finish_reason, first.message.content) == ("tool_calls", "I look.")
    assert [(call.type, call.function.name, call.function.arguments) for call in first.message.tool_calls] == [
        ("function", "weather", '{"city": "Rome"}')] * 2
    results = [{"role": "tool", "tool_call_id": call.id, "content": f"{21 + number} °C"}
               for number, call in enumerate(first.message.tool_calls)]
    second = completions.create(model="m", messages=[USER, first.message, *results], tools=TOOLS)
    assert second.choices[0].message.content == "Sunny."
    template = served().loaded.template
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}] * 2
    messages = [USER, {"role": "assistant", "content": "I look.", "tool_calls": calls}, *results]
    assert engine.asked[1] == TOKENIZER.decode(template.generation_prompt_ids(messages, TOOLS))


def test_calls_in_a_stream(ask):
    with ask(CALL).stream(model="m", messages=[USER], tools=TOOLS, max_tokens=90) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        choice = stream.get_final_completion().choices[0]
    assert len(pieces) > 3 and "".join(pieces) == choice.message.tool_calls[0].function.arguments == '{"city": "Rome"}'
    assert choice.finish_reason == "tool_calls" and not choice.message.content


def test_one_call_at_a_time_or_none(ask, engine):
    asked = {"model": "m", "messages": [USER], "tools": TOOLS, "max_tokens": 90}
    (choice,) = ask(CALL + CALL).create(**asked, parallel_tool_calls=False).choices
    assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "tool_calls")
    (choice,) = ask(CALL).create(**asked, tool_choice="none").choices
    assert (choice.message.tool_calls, choice.message.content, choice.finish_reason) == (None, CALL, "stop")
    assert "weather" not in engine.asked[1].replace(USER["content"], "")


class City(BaseModel):
    name: str
    is_capital: bool


def test_answers_that_are_parsed(ask):
    completions = ask('{"name": "Rome", "is_capital": true}')
    (choice,) = completions.parse(model="m", messages=[USER], response_format=City, max_tokens=50).choices
    assert choice.message.parsed == City(name="Rome", is_capital=True)


def test_a_call_that_the_request_demands_follows_a_strict_schema(ask):
    tool = openai.pydantic_function_tool(City)
    assert tool["function"]["strict"]
    completions = ask('<tool_call>\n{"name": "City", "arguments": {"name": "Rome", "is_capital": true}}\n</tool_call>')
    (choice,) = completions.parse(model="m", messages=[USER], tools=[tool], tool_choice="required",
                                  max_tokens=90).choices
    assert choice.message.tool_calls[0].function.parsed_arguments == City(name="Rome", is_capital=True)


def test_reasoning(ask):
    answer = ask("hm\n</think>\n\nSunny.").create(model="m", messages=[USER], max_tokens=20,
                                                   extra_body={"open_thinking": True})
    assert answer.choices[0].message.reasoning_content == "hm"
    assert answer.choices[0].message.content == "Sunny."
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    chunks = list(ask("hm\n</think>\n\nSunny.").create(
        model="m", messages=[USER], max_tokens=20, stream=True,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}}))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm"
    assert "".join(delta.content or "" for delta in deltas) == "Sunny."
    assert chunks[-1].usage is None and "usage" not in chunks[-1].model_fields_set


def test_logprobs(ask):
    (choice,) = ask("It is").create(model="m", messages=[USER], logprobs=True, top_logprobs=2).choices
    assert [token.token for token in choice.logprobs.content] == ["It", " is"]
    assert bytes(choice.logprobs.content[1].bytes) == b" is" and choice.logprobs.content[1].logprob == -0.25
    assert [one.logprob for one in choice.logprobs.content[1].top_logprobs] == [-0.25, -2.0]


def test_texts_that_go_on(ask, client):
    ask("one", "two", "three", "four")
    answer = client.completions.create(model="m", prompt=["a", "b"], n=2, logprobs=1)
    assert {choice.index: (choice.text, choice.finish_reason) for choice in answer.choices} == {
        0: ("one", "stop"), 1: ("two", "stop"), 2: ("three", "stop"), 3: ("four", "stop")}
    assert answer.choices[0].logprobs.tokens and answer.usage.prompt_tokens == 2
    ask("go on.")
    stream = client.completions.create(model="m", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "go on."


def test_models(client):
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "minimind-sft"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(("fields", "param", "code"), [
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"extra_body": {"min_p": 0.1}}, "min_p", "unsupported_parameter"),
    ({"messages": [{**USER, "name": "Ada"}]}, "messages[0].name", "unsupported_parameter")])
def test_refusals_name_the_field(ask, fields, param, code):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask().create(**{"model": "m", "messages": [USER], **fields}, stream=stream)
        assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
        assert caught.value.body["message"].startswith(f"{param}: ")


def test_a_wrong_key_and_a_full_queue_have_errors_of_their_own():
    engine = HeldEngine()
    with server_of(served("m", engine), listening=ListeningSettings(port=0, api_key="secret"),
                   max_waiting=0) as server:
        async def ask(key):
            async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0,
                                          timeout=PATIENCE) as client:
                return await client.chat.completions.create(model="m", messages=[USER], max_tokens=2)

        with pytest.raises(openai.AuthenticationError):
            asyncio.run(ask("guess"))

        async def two():
            first = asyncio.create_task(ask("secret"))
            await asyncio.to_thread(wait_until, lambda: engine.requests)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask("secret")
            engine.held = False
            return caught.value, await first
        refused, answer = asyncio.run(two())
        assert int(refused.response.headers["retry-after"]) > 0 and refused.code == "queue_full"
        assert answer.choices[0].message.content == "xx"


def test_a_stream_that_is_closed_frees_its_place():
    engine = HeldEngine()
    with server_of(served("m", engine)) as server, openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        stream = client.chat.completions.create(model="m", messages=[USER], stream=True)
        next(iter(stream))
        wait_until(lambda: engine.requests)
        stream.close()
        wait_until(lambda: not engine.requests)
        assert engine.counts == {}  # it was held
