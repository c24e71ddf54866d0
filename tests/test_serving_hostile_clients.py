"""Clients that leave early, and names and text that other programs read in another way than we do."""

import asyncio
import json
import signal
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from served import HeldEngine, chat, connect, posted, response_on, served, server_of, wait_until

from minimind_sft.serving.application import make_application
from minimind_sft.serving.models import ServedModels
from minimind_sft.serving.server import Connection, configured
from minimind_sft.serving.stream import EventStream, event
from minimind_sft.settings.serve import LimitSettings, ListeningSettings

CHAT = "/v1/chat/completions"


async def sent_for(app, messages, path=CHAT, headers=()):
    """Gives the application a request in pieces; returns what it sends."""
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
             "http_version": "1.1", "scheme": "http", "root_path": "", "client": None, "server": ("127.0.0.1", 1)}
    sent, waiting = [], list(messages)

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def application(**listening):
    return make_application(ServedModels([]), ListeningSettings(**listening), LimitSettings())


def test_a_client_that_leaves_inside_its_body_is_no_error():
    half = {"type": "http.request", "body": b'{"model', "more_body": True}
    sent = asyncio.run(sent_for(application(), [half]))
    assert sent[0]["status"] == 499


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_clients_that_split_at_any_line_end_get_whole_events(separator):
    line, *rest = event({"a": f"x{separator}y"}).decode().splitlines()
    assert rest == [""] and json.loads(line.removeprefix("data: ")) == {"a": f"x{separator}y"}


@pytest.mark.parametrize(("host", "is_open"), [
    ("127.0.0.1", False), ("localhost", False), ("::1", False), ("127.0.0.2", False), ("127.1", False),
    ("0.0.0.0", True), ("", True), ("::", True), ("192.168.1.2", True), ("example.org", True)])
def test_names_of_this_machine_s_own_address(host, is_open):
    assert ListeningSettings(host=host).is_open is is_open


def test_two_names_are_refused():
    for name in (b"evil.example", b"localhost"):
        sent = asyncio.run(sent_for(application(), [], headers=[(b"host", name)]))
        assert sent[0]["status"] == 421


def test_a_length_of_many_digits_is_too_large():
    sent = asyncio.run(sent_for(application(), [], headers=[(b"content-length", b"9" * 5000)]))
    assert sent[0]["status"] == 413


def test_an_answer_that_cannot_be_sent_frees_its_place():
    left = []

    async def values():
        yield {"a": 1}

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            raise OSError("the connection is gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(EventStream(values(), lambda: left.append(True))({"type": "http"}, receive, send))
    assert left


@pytest.mark.parametrize(("unread", "is_dropped"), [
    ([100_000] * 4, True), ([100_000, 99_000, 98_000, 97_000], True), ([100_000, 80_000, 60_000, 40_000], False),
    ([100_000, 100_000, 0, 100_000, 100_000], False)])
def test_a_reader_has_to_read_a_certain_amount_in_time(unread, is_dropped):
    """It is looked at every second, and may stall for 2.5."""
    dropped, waiting = [], iter(unread)
    client = object.__new__(Connection)
    client._limits, client._receiving_since = LimitSettings(stall_seconds=2.5), None
    client._unread, client._unread_since = 0, None
    client.transport = SimpleNamespace(get_write_buffer_size=lambda: next(waiting), abort=lambda: dropped.append(True))
    client.cycle = None
    for now in range(len(unread)):
        client.look(float(now))
    assert bool(dropped) is is_dropped


def test_uvicorn_s_variables_are_not_read(monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "four")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    config = configured(application(), LimitSettings())
    assert config.workers == 1 and not config.proxy_headers


def test_more_answers_than_ever_fit_are_refused_for_good():
    engine = HeldEngine(max_running=1)
    with server_of(served(engine=engine), max_waiting=1) as server:
        response = response_on(connect(server, posted(chat(n=3))))
        assert response.startswith(b"HTTP/1.1 400 ") and b"expected at most 2 answers" in response


def test_ctrl_c_leaves_clients_that_do_not_read_the_rest_of_their_answers():
    engine = HeldEngine(held=False)
    with server_of(served(engine=engine), stall_seconds=1000.0) as server:
        client = connect(server, posted(chat(stream=True, max_tokens=3000)), read_bytes=2048)
        wait_until(lambda: engine.counts and not engine.requests)
        server.handle_exit(signal.SIGINT, None)
        wait_until(lambda: server.should_exit)
        server.handle_exit(signal.SIGINT, None)
    client.close()
