"""The server on a port: slow, silent and too many clients, the queue, and its end."""

import json
import re
import signal
import socket
import threading

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from served import HeldEngine, chat, connect, events, everything, posted, response_on, served, server_of, wait_until

from minimind_sft.errors import UserError
from minimind_sft.serving.server import listen
from minimind_sft.settings.serve import ListeningSettings

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr("minimind_sft.serving.server.LOOK_TICKS", 1)


class Clock:
    """The server's clock, which stands still until a test sets `speed`: then a second passes whenever it is read."""

    now, speed = 100.0, 0.0

    def monotonic(self):
        self.now += self.speed
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("minimind_sft.serving.server.time", clock)
    return clock


def status_of(response):
    return int(response.split(b" ", 2)[1])


def body_of(response):
    return json.loads(response.partition(b"\r\n\r\n")[2])


def streamed_text(response):
    """Returns the body of a response in chunks."""
    rest, text = response.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        text, rest = text + rest[:length], rest[length + 2:]
    return text.decode()


def test_a_client_that_leaves_frees_its_place_within_a_step():
    engine = HeldEngine(max_running=2)
    with server_of(served(engine=engine)) as server:
        clients = [connect(server, posted(chat(stream=stream, max_tokens=4000))) for stream in (True, False)]
        wait_until(lambda: engine.running == 2)
        for client in clients:
            client.close()
        wait_until(lambda: engine.running == 0)
        assert engine.counts == {}  # it was held, so no step was needed


def test_a_full_queue_refuses_and_says_when_to_come_again():
    engine = HeldEngine(max_running=1)
    with server_of(served(engine=engine), max_waiting=1) as server:
        waiting = [connect(server, posted(chat())) for _ in range(2)]
        wait_until(lambda: len(engine.requests) == 2)
        refused = connect(server, posted(chat()))
        head = response_on(refused)
        assert status_of(head) == 429 and b"\r\nretry-after: " in head
        both = connect(server, posted(chat(n=2)))  # all answers or none
        assert status_of(response_on(both)) == 429
        engine.held = False
        for client in waiting:
            assert status_of(response_on(client)) == 200
        refused.sendall(posted(chat()))
        assert status_of(response_on(refused)) == 200


def test_half_a_body_and_half_a_head_are_answered_408(clock):
    with server_of(served(engine=HeldEngine()), receive_seconds=0.3) as server:
        half_head = connect(server, GET[:30])
        wait_until(lambda: any(one.conn.trailing_data[0] for one in list(server.server_state.connections)))
        half_body, nothing = connect(server, posted(chat(), length=10_000)), connect(server)
        found = response_on(half_body)  # the event loop measures the time of a body
        clock.speed = 1.0
        for response in (found, everything(half_head)):
            assert status_of(response) == 408 and body_of(response)["error"]["code"] == "request_timeout"
        assert everything(half_body) == everything(nothing) == b""


def test_an_answer_may_take_longer_than_a_request(clock):
    engine = HeldEngine()
    with server_of(served(engine=engine), receive_seconds=0.3) as server:
        client = connect(server, posted(chat()) + GET[:10])
        wait_until(lambda: engine.running)
        silent = connect(server)
        clock.speed = 1.0
        assert everything(silent) == b""  # closed, so the time has passed
        engine.held = False
        assert status_of(response_on(client)) == 200


def test_a_reader_that_stalls_is_dropped():
    engine = HeldEngine(held=False)
    with server_of(served(engine=engine, context=10**9), stall_seconds=0.05) as server:
        client = connect(server, posted(chat(stream=True, max_tokens=10**8)), read_bytes=4096)
        wait_until(lambda: engine.counts)
        wait_until(lambda: engine.running == 0 and not server.server_state.connections)
        everything(client)


def test_surplus_connections_are_refused():
    with server_of(served(engine=HeldEngine()), max_connections=1) as server:
        first = connect(server, GET)
        assert status_of(response_on(first)) == 200
        refused = everything(connect(server))
        assert status_of(refused) == 503 and body_of(refused)["error"]["code"] == "too_many_connections"
        first.close()
        wait_until(lambda: not server.server_state.connections)
        assert status_of(everything(connect(server, LAST))) == 200


@pytest.mark.parametrize("sent", [
    b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\nHost : localhost\n\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**17,
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
])
def test_what_is_not_http_gets_one_refusal(server, sent):
    refused = everything(connect(server, sent))
    assert status_of(refused) == 400 and body_of(refused)["error"]["code"] == "invalid_http"


@pytest.fixture(scope="module")
def server():
    with server_of(served(engine=HeldEngine(held=False))) as running:
        yield running


def test_requests_behind_each_other_are_answered_in_order(server):
    found = everything(connect(server, GET + posted(chat(max_tokens=2)) + LAST))
    assert found.count(b"HTTP/1.1 200 OK") == 3
    assert found.index(b'{"status":"ok"}') < found.index(b'"content":"xx"') < found.rindex(b'{"status":"ok"}')


def test_the_rest_of_a_refused_body_is_not_taken_for_a_request(server):
    inner = posted(chat())
    found = everything(connect(server, posted({"x": "y" * 2**20}) + inner + LAST))
    assert found.count(b"HTTP/1.1 413") == 1 and found.count(b"HTTP/1.1 200") == 2


def test_asked_to_end_it_lets_answers_end_and_refuses_new_ones():
    engine = HeldEngine(max_running=2)
    with server_of(served(engine=engine)) as server:
        stream = connect(server, posted(chat(stream=True)))
        other = connect(server, GET)
        assert status_of(response_on(other)) == 200
        wait_until(lambda: engine.running)
        server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: server.worker.is_draining)
        other.sendall(posted(chat()))
        refused = response_on(other)
        assert status_of(refused) == 503 and b"server_stopping" in refused
        late = connect(server, GET)
        assert status_of(response_on(late)) == 503
        engine.held = False
        assert events(streamed_text(everything(stream)))[-1] == "[DONE]"


@pytest.mark.parametrize(("limits", "signals"), [
    ({"drain_seconds": 0.0}, [signal.SIGTERM]), ({}, [signal.SIGINT, signal.SIGINT]),
    ({}, [signal.SIGTERM, signal.SIGINT]),
])
def test_answers_are_broken_off_when_time_is_up_or_ctrl_c_comes_twice(limits, signals):
    engine = HeldEngine()
    with server_of(served(engine=engine), **limits) as server:
        stream, whole = (connect(server, posted(chat(stream=stream))) for stream in (True, False))
        wait_until(lambda: len(engine.requests) == 2)
        for one in signals:
            server.handle_exit(one, None)
        *_, last = events(streamed_text(everything(stream)))
        assert last["error"]["code"] == "server_stopping"
        assert status_of(everything(whole)) == 503


def test_a_port_in_use_and_a_foreign_address_are_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port {port}: cannot be used at 127.0.0.1 \(.*\); choose another"):
            listen(ListeningSettings(port=port))
    for host in ("no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(UserError, match=rf"^--host {re.escape(host)}: expected an address of this machine$"):
            listen(ListeningSettings(host=host))


def test_many_clients_get_their_own_answers():
    engine = HeldEngine(max_running=8, held=False)
    with server_of(served(engine=engine)) as server:
        found = {}

        def ask(count):
            client = connect(server, posted(chat(max_tokens=count, stream=count % 2 == 0)) + LAST)
            found[count] = everything(client)

        threads = [threading.Thread(target=ask, args=[count]) for count in range(1, 41)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 40
    for count, response in found.items():
        if count % 2:
            assert f'"content":"{"x" * count}"'.encode() in response
        else:
            assert response.count(b'"content":"x"') == count
