"""The server of the live page: who may ask for what."""

import http.client
import socket
import struct
import threading

import pytest
from programs import PATIENCE

from minimind_sft.errors import UserError
from minimind_sft.report import live
from minimind_sft.report.live import LiveServer, Pages


def render(path, query):
    return f"<p>{path} {sorted(query.items())} 中\ud800"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(live._Handler, "timeout", PATIENCE)
    with LiveServer(0, render, "default-src 'none'") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path="/", method="GET", **headers):
    """Returns status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read()


def test_the_page_and_its_headers(server):
    status, headers, body = ask(server, "/?run=a%20b")
    assert (status, body.decode()) == (200, "<p>/ [('run', 'a b')] 中\\ud800")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"] == "default-src 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"] and "Access-Control-Allow-Origin" not in headers


def test_unchanged_content_is_not_sent_again(server):
    status, headers, body = ask(server, "/content")
    assert status == 200 and body
    assert ask(server, "/content", If_None_Match=headers["ETag"])[::2] == (304, b"")
    assert ask(server, "/content", If_None_Match='"other"')[0] == 200


def test_it_listens_on_the_loopback_address_only(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1:8642", "localhost", "LOCALHOST:1", "[::1]:9", "[::1]"])
def test_names_of_this_machine(server, host):
    assert ask(server, Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "localhost.evil:80",
                                  "", "127.0.0.1:80:80", "localhost:x", "10.0.0.1"])
def test_other_names_are_refused(server, host):
    status, headers, body = ask(server, Host=host)
    assert status == 421 and body == b"This server answers to localhost only.\n"
    assert headers["X-Content-Type-Options"] == "nosniff"


def raw(server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=PATIENCE) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_request_without_a_host_or_with_two_is_refused(server):
    assert b" 421 " in raw(server, b"GET / HTTP/1.0\r\n\r\n")
    assert b" 421 " in raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")


@pytest.mark.parametrize("path", ["/x", "/../../etc/passwd", "/content/", "//evil.example/content", "/%2e%2e/x", "//[",
                                  "http://evil.example/", "/favicon.ico", "*", "/?a=1&b=2&c=3&d=4&e=5"])
def test_other_addresses_do_not_exist(server, path):
    assert b" 404 " in raw(server, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()).split(b"\r\n")[0]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_it_is_read_only(server, method):
    status, headers, body = ask(server, method=method)
    assert (status, headers["Allow"], body) == (405, "GET, HEAD", b"This server is read-only.\n")


def test_head_has_no_body(server):
    status, headers, body = ask(server, method="HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 0 and body == b""


def test_nonsense_gets_an_answer_and_the_server_lives_on(server):
    assert b"Bad request syntax" in raw(server, b"GET / HTTP/1.0 x y\r\n\r\n")
    assert b" 414 " in raw(server, b"GET /" + b"a" * (2**16 - 4))  # more, unread, would reset the connection
    assert ask(server)[0] == 200


def test_a_browser_that_leaves_is_no_error_but_a_mistake_in_a_page_is_shown(server, capsys):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets the connection
        connection.sendall(b"GET / HTTP/1.0\r\n")
    assert ask(server)[0] == 200
    server.pages = Pages(lambda path, query: 1 / 0)
    assert raw(server, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n") == b""
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 1 and "ZeroDivisionError" in shown


def test_a_port_in_use_is_named(server):
    with pytest.raises(UserError, match=f"--port {server.server_port}: cannot be used .*; choose another, or 0"):
        LiveServer(server.server_port, render, "")


def test_pages_that_take_long_are_made_seldom(monkeypatch):
    now, made = [100.0], []

    def slow(path, query):
        made.append(path)
        now[0] += 0.5
        return str(len(made))

    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    pages = Pages(slow)
    assert [pages.page("/", {}), pages.page("/", {}), pages.page("/content", {})] == [b"1", b"1", b"2"]
    now[0] += 9.0
    assert pages.page("/", {}) == b"1"
    now[0] += 0.6
    assert pages.page("/", {}) == b"3"
