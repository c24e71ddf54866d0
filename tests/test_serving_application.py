"""The server's addresses: answers, streams, refusals, and whom it answers."""

import threading

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [test] is not installed")

from programs import PATIENCE
from served import HERE, QUESTION, TOKENIZER, HeldEngine, chat, events, served, wait_until
from starlette.testclient import TestClient

from minimind_sft.inference.generate import generate_stream
from minimind_sft.serving.application import make_application
from minimind_sft.serving.metrics import Metrics
from minimind_sft.serving.models import ServedModels
from minimind_sft.serving.prompts import chat_prompt
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.serve import LimitSettings, ListeningSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def client_of(*models, listening=HERE, **limits):
    app = make_application(ServedModels(models), listening, LimitSettings(**limits))
    return TestClient(app, base_url="http://127.0.0.1:8998")


@pytest.fixture(scope="module")
def mini():
    with client_of(served(), served("other")) as client:
        yield client


def error(response, status):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def expected_text(prompt, count=8):
    model = served().loaded.model
    return TOKENIZER.decode(list(generate_stream(model, prompt, SamplingSettings(max_new_tokens=count), ())))


def test_a_chat_is_answered_after_the_prompt_of_training(mini):
    template = served().loaded.template
    prompt = template.generation_prompt_ids(QUESTION, None, False)
    answer = mini.post(CHAT, json=chat()).json()
    assert answer["choices"][0]["message"]["content"] == expected_text(prompt)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == len(prompt) and answer["usage"]["completion_tokens"] == 8
    assert answer["object"] == "chat.completion" and answer["model"] == "mini"


def test_a_stream_holds_the_same_answer(mini):
    whole = mini.post(CHAT, json=chat(n=2, temperature=1, seed=3)).json()
    response = mini.post(CHAT, json=chat(n=2, temperature=1, seed=3, stream=True,
                                         stream_options={"include_usage": True}))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 16
    for index, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"]
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + ["length"]
    assert whole["choices"][0] != whole["choices"][1] | {"index": 0}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_texts_are_continued_whole_and_as_a_stream(mini):
    body = {"model": "mini", "prompt": ["The sky", "A"], "max_tokens": 4, "logprobs": 1}
    whole = mini.post(COMPLETIONS, json=body).json()
    assert [choice["text"] for choice in whole["choices"]] == [
        expected_text(TOKENIZER.encode_ordinary(text), 4) for text in ("The sky", "A")]
    *chunks, done = events(mini.post(COMPLETIONS, json=body | {"stream": True}).text)
    assert done == "[DONE]"
    for index, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_a_stop_string_ends_the_answer_and_frees_the_engine():
    engine = HeldEngine(held=False)
    with client_of(served(engine=engine)) as client:
        answer = client.post(CHAT, json=chat(stop="xxx", max_tokens=1000)).json()
        assert answer["choices"][0]["message"]["content"] == "" and answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 3
        assert engine.requests == []


def test_requests_in_the_making_take_places_in_the_queue(monkeypatch):
    made, go = threading.Event(), threading.Event()

    def slow(*args):
        made.set()
        assert go.wait(PATIENCE)
        return chat_prompt(*args)

    monkeypatch.setattr("minimind_sft.serving.service.chat_prompt", slow)
    with client_of(served(engine=HeldEngine(held=False)), max_waiting=0) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post(CHAT, json=chat())))
        first.start()
        assert made.wait(PATIENCE)
        assert error(client.post(CHAT, json=chat()), 429)["code"] == "queue_full"
        go.set()
        first.join()
        assert answers[0].status_code == client.post(CHAT, json=chat()).status_code == 200


def test_models_by_name(mini):
    assert [model["id"] for model in mini.get("/v1/models").json()["data"]] == ["mini", "other"]
    assert mini.get("/v1/models/other").json()["object"] == "model"
    assert error(mini.get("/v1/models/x/y"), 404)["code"] == "model_not_found"
    assert error(mini.post(CHAT, json=chat(model="gpt")), 404) == {
        "message": 'model: expected one of mini, other, found "gpt"; --served_name and --models name them',
        "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert mini.post(CHAT, json=chat(model="other", max_tokens=1)).json()["model"] == "other"


def test_times_of_answers():
    found = Metrics(ServedModels([served(engine=HeldEngine())]))
    found.time_answer("mini", 0.5, 2.0, tokens=4)
    found.time_answer("mini", 1.0, 1.0, tokens=1)
    lines = found.page().decode().splitlines()
    for name, total, count in (("first_token", 1.5, 2), ("between_tokens", 0.5, 1), ("answer", 3.0, 2)):
        assert f'minimind_{name}_seconds_sum{{model="mini"}} {total}' in lines
        assert f'minimind_{name}_seconds_count{{model="mini"}} {count:.1f}' in lines


def test_health_metrics_and_page(mini):
    assert mini.get("/health").json() == {"status": "ok"}
    mini.post(CHAT, json=chat(max_tokens=3))
    mini.get("/a/secret/address")
    page = mini.get("/metrics").text
    assert 'minimind_answers_total{model="mini",reason="length"}' in page
    assert 'minimind_requests_total{path="other",status="404"}' in page and "secret" not in page
    response = mini.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(("response", "status", "code"), [
    (lambda client: client.get("/nope"), 404, "not_found"),
    (lambda client: client.get(CHAT), 405, "method_not_allowed"),
    (lambda client: client.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"}), 415,
     "unsupported_media_type"),
    (lambda client: client.post(CHAT, json=chat(), headers={"Content-Encoding": "gzip"}), 415,
     "unsupported_media_type"),
    (lambda client: client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"}), 400,
     "invalid_json"),
    (lambda client: client.post(CHAT, json=chat(logit_boost=1)), 400, "unsupported_parameter"),
    (lambda client: client.post(CHAT, json=chat(user="x" * 2**20)), 413, "request_too_large"),
    (lambda client: client.post(CHAT, content=iter([b" " * 2**19] * 3), headers={"Content-Type": "application/json"}),
     413, "request_too_large"),
    (lambda client: client.post(COMPLETIONS, json={"model": "mini", "prompt": "x " * 5000}), 400,
     "context_length_exceeded"),
])
def test_refusals_have_openai_s_form(mini, response, status, code):
    assert error(response(mini), status)["code"] == code


def test_only_this_machine_s_names_and_pages_are_answered(mini):
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "localhost:80:80"):
        assert error(mini.get("/health", headers={"Host": host}), 421)["code"] == "misdirected_request"
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8998", "[::1]:8998"):
        assert mini.get("/health", headers={"Host": host}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8999", "http://[", "http://127.0.0.1:8998.evil"):
        assert error(mini.get("/v1/models", headers={"Origin": origin}), 403)["code"] == "origin_not_allowed"
    response = mini.get("/v1/models", headers={"Origin": "http://127.0.0.1:8998"})
    assert response.status_code == 200 and "access-control-allow-origin" not in response.headers


def test_other_pages_are_allowed_by_their_origin():
    listening = ListeningSettings(port=0, allow_origin=("https://a.example",), api_key="secret")
    with client_of(served(engine=HeldEngine()), listening=listening) as client:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        response = client.options(CHAT, headers={"Origin": "https://a.example", **asked})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert client.options(CHAT, headers={"Origin": "https://b.example", **asked}).status_code == 403
        response = client.get("/v1/models", headers={"Origin": "https://a.example"})
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == "https://a.example"


def test_a_refused_page_is_told_how_to_be_admitted(mini):
    for origin, admitted in (("app://obsidian.md", "app://obsidian.md"), ("file://", "file://"), ("null", "'*'"),
                             ("https://a/b", "'*'")):
        message = error(mini.get("/v1/models", headers={"Origin": origin}), 403)["message"]
        assert message.endswith(f"--allow_origin {admitted} admits this one")


def test_programs_made_of_web_pages_are_allowed_by_their_origin():
    listening = ListeningSettings(port=0, allow_origin=("app://obsidian.md", "file://"))
    assert not listening.problems()
    with client_of(served(engine=HeldEngine()), listening=listening) as client:
        for origin in listening.allow_origin:
            response = client.get("/v1/models", headers={"Origin": origin})
            assert response.status_code == 200 and response.headers["access-control-allow-origin"] == origin
        assert error(client.get("/v1/models", headers={"Origin": "app://other"}), 403)["code"] == "origin_not_allowed"
        assert error(client.get("/health", headers={"Host": "obsidian.md"}), 421)["code"] == "misdirected_request"


def test_a_proxy_passes_on_requests_under_its_own_name():
    listening = ListeningSettings(port=0, allow_origin=("https://a.example:8443", "*"))
    with client_of(served(engine=HeldEngine()), listening=listening) as client:
        for host in ("a.example", "A.example:8443", "127.0.0.1:8998"):
            found = client.get("/v1/models", headers={"Host": host, "Origin": "https://a.example:8443"})
            assert found.status_code == 200, host
        assert error(client.get("/health", headers={"Host": "b.example"}), 421)["code"] == "misdirected_request"


def test_a_key_protects_the_interface_and_the_metrics():
    with client_of(served(engine=HeldEngine(held=False)), listening=ListeningSettings(api_key="k-1")) as client:
        for address in ("/v1/models", "/metrics", "/v1/nothing"):
            for given in ({}, {"Authorization": "Bearer k-2"}, {"Authorization": "Bearer"}, {"Authorization": "k-1"},
                          {"Authorization": "Basic k-1"}, {"Authorization": b"Bearer k-1\xff"}):
                response = client.get(address, headers=given)
                assert error(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer" and "k-1" not in response.text
        assert client.get("/v1/models", headers={"Authorization": "bearer k-1"}).status_code == 200
        assert client.post(CHAT, json=chat(), headers={"Authorization": "Bearer k-1"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200


def test_an_engine_that_fails_ends_its_requests_and_goes_on(capsys):
    engine = HeldEngine(held=False)
    with client_of(served(engine=engine)) as client:
        engine.error = RuntimeError("out of \x1b[31mmemory")
        assert error(client.post(CHAT, json=chat()), 500)["code"] == "engine_failed"
        engine.error = RuntimeError("again")
        *_, last = events(client.post(CHAT, json=chat(stream=True)).text)
        assert last["error"]["code"] == "engine_failed"
        assert client.post(CHAT, json=chat()).json()["usage"]["completion_tokens"] == 8
    printed = capsys.readouterr().err
    assert "RuntimeError: out of \\u001b[31mmemory" in printed and "\x1b" not in printed


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fails_ends_the_others_of_its_request(stream):
    class FailingEngine(HeldEngine):
        def step(self):
            if self.held:
                return super().step()
            first, self.held = self.requests.pop(0), True
            first.finish, first.problem = "error", "the format allows nothing"
            return {first: []}

    engine = FailingEngine(max_running=2, held=False)
    with client_of(served(engine=engine)) as client:
        response = client.post(CHAT, json=chat(n=2, stream=stream))
        found = events(response.text)[-1] if stream else response.json()
        assert found["error"]["message"] == "the format allows nothing"
        wait_until(lambda: not engine.requests)


def test_a_thread_that_dies_ends_all_requests_and_shows_in_health(capsys):
    engine = HeldEngine(max_running=2, held=False)

    def fail(request):
        raise RuntimeError("broken beyond repair")

    engine.cancel = fail
    with client_of(served(engine=engine, context=10**9)) as client:  # it ends by being cancelled only
        found = error(client.post(CHAT, json=chat(stop="xx", max_tokens=10**9)), 500)
        assert found["code"] == "engine_failed"
        response = client.get("/health")
        assert response.status_code == 503 and response.json() == {"status": "failed"}
        assert error(client.post(CHAT, json=chat()), 503)["code"] == "server_stopping"
    assert "broken beyond repair" in capsys.readouterr().err


def test_a_prompt_that_was_read_before_is_not_read_again(mini):
    body = {"model": "other", "prompt": [5] * 200, "max_tokens": 4}
    first, second = (mini.post(COMPLETIONS, json=body).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second)]
    assert cached[0] == 0 and 64 <= cached[1] < 200
    assert second["usage"]["prompt_tokens"] == 200


def test_an_answer_that_takes_too_long_is_broken_off():
    with client_of(served(engine=HeldEngine()), answer_seconds=0.01) as client:
        response = client.post(CHAT, json=chat())
        assert error(response, 408)["code"] == "answer_timeout"
        assert response.headers["x-should-retry"] == "false"
        *_, last = events(client.post(CHAT, json=chat(stream=True)).text)
        assert last["error"]["code"] == "answer_timeout"
        assert 'minimind_answers_total{model="mini",reason="late"} 2.0' in client.get("/metrics").text


def test_answers_are_as_long_as_the_cache_has_room():
    engine = HeldEngine(held=False)
    engine.cache_tokens = 40
    with client_of(served(engine=engine)) as client:
        answer = client.post(CHAT, json=chat(max_tokens=10**9)).json()
        assert answer["usage"]["total_tokens"] == 40 and answer["choices"][0]["finish_reason"] == "length"
        found = error(client.post(COMPLETIONS, json={"model": "mini", "prompt": [[5] * 40]}), 400)
        assert found["message"] == "the prompt has 40 tokens, this server has room for 40 (--cache_tokens)"
