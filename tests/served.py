"""Servers for tests: tiny models, an engine that a test holds still, and a server on a port of its own."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chats import tiny_model
from programs import PATIENCE

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.inference.engine import Engine
from minimind_sft.inference.loading import Loaded
from minimind_sft.inference.request import Request, Token
from minimind_sft.serving.application import make_application
from minimind_sft.serving.models import ServedModel, ServedModels
from minimind_sft.serving.server import Server, configured, listen
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.serve import LimitSettings, ListeningSettings

TOKENIZER = load_tokenizer(None)
X = TOKENIZER.encode_ordinary("x")[0]
HERE = ListeningSettings(port=0)
PATIENT = dict.fromkeys(("receive_seconds", "answer_seconds", "stall_seconds", "drain_seconds"), PATIENCE)
QUESTION = [{"role": "user", "content": "Who are you?"}]


class HeldEngine:
    """Answers every request with x, one a step, unless it is held still. It fails if `error` is set."""

    def __init__(self, max_running: int = 1, held: bool = True):
        self.max_running, self.held, self.cache_tokens = max_running, held, 10**9
        self.error: Exception | None = None
        self.requests: list[Request] = []
        self.counts: dict[Request, int] = {}

    @property
    def running(self) -> int:
        return min(len(self.requests), self.max_running)

    @property
    def waiting(self) -> int:
        return len(self.requests) - self.running

    def add(self, request: Request) -> None:
        self.requests.append(request)

    def cancel(self, request: Request) -> None:
        if request in self.requests:
            self.requests.remove(request)
            request.finish = "cancelled"

    def step(self) -> dict[Request, list[Token]]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.held:
            time.sleep(0.001)
            return {}
        stepped = self.requests[:self.max_running]
        for request in stepped:
            self.counts[request] = self.counts.get(request, 0) + 1
            if self.counts[request] >= request.sampling.max_new_tokens:
                request.finish = "length"
                self.requests.remove(request)
        return {request: [Token(X)] for request in stepped}


class ScriptedEngine(HeldEngine):
    """Answers the requests with texts of a script, a token a step.

    asked: the prompts so far, as text.
    """

    def __init__(self, *script: str):
        super().__init__(max_running=8, held=False)
        self.script, self.asked = list(script), []
        self.left: dict[Request, list[int]] = {}

    def add(self, request: Request) -> None:
        super().add(request)
        self.asked.append(TOKENIZER.decode(request.prompt))
        self.left[request] = TOKENIZER.encode(self.script.pop(0))

    def step(self) -> dict[Request, list[Token]]:
        stepped: dict[Request, list[Token]] = {}
        for request in list(self.requests):
            left = self.left[request]
            self.counts[request] = self.counts.get(request, 0) + bool(left)
            token = left.pop(0) if left else None
            if token is None or self.counts[request] == request.sampling.max_new_tokens:
                request.finish = "length" if token is not None else "stop"
                self.requests.remove(request)
            logprobs = () if request.logprobs is None else (-0.25, [(7, -0.25), (8, -2.0)][:request.logprobs])
            stepped[request] = [] if token is None else [Token(token, *logprobs)]
        return stepped


def served(name: str = "mini", engine: Any = None, context: int = 4096) -> ServedModel:
    """Returns a tiny model with the bundled tokenizer, and with an engine of its own unless there is one."""
    config = SimpleNamespace(context=context, vocab_size=TOKENIZER.vocab_size)
    model = tiny_model(context) if engine is None else SimpleNamespace(config=config)
    loaded = Loaded(Path("model"), model, TOKENIZER, ChatTemplate(TOKENIZER), frozenset(), (), is_minimind=False)
    return ServedModel(name, loaded, engine or Engine(model), SamplingSettings(max_new_tokens=8))


@contextmanager
def server_of(*models: ServedModel, listening: ListeningSettings = HERE, **limits: Any) -> Iterator[Server]:
    """Runs a server in a thread; its `port` tells where. At the end it must end by itself.

    Its limits of time are those of a machine that is slow at will, but for those in `limits`.
    """
    chosen = LimitSettings(**{**PATIENT, **limits})
    app = make_application(ServedModels(models), listening, chosen)
    listener = listen(listening)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that little can wait unread in the system
    config = configured(app, chosen)
    config.timeout_keep_alive = PATIENCE
    server = Server(config, app.state.service.worker, chosen)
    server.port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield server
    finally:
        server.handle_exit(15, None)
        for model in models:
            if isinstance(model.engine, HeldEngine):
                model.engine.held = False
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_until(is_so: Callable[[], Any]) -> None:
    """Waits for a state, and fails if it never comes."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def connect(server: Server, data: bytes = b"", read_bytes: int | None = None) -> socket.socket:
    """Opens a connection and sends data; `read_bytes` limits what waits to be read."""
    client = socket.socket()
    if read_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_bytes)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", server.port))
    with suppress(ConnectionError):  # a server may refuse and close before it has everything
        client.sendall(data)
    return client


def posted(body: Any, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    """Returns the bytes of a request with JSON; with `length`, its head announces so many bytes instead."""
    data = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data) if length is None else length}\r\n\r\n").encode() + data


def response_on(client: socket.socket) -> bytes:
    """Reads one response with a Content-Length."""
    def more() -> bytes:
        data = client.recv(65536)
        assert data, f"the connection ended after {found!r}"
        return data

    found = b""
    while b"\r\n\r\n" not in found:
        found += more()
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])
    while len(body) < length:
        body += more()
    assert len(body) == length
    return head + b"\r\n\r\n" + body


def everything(client: socket.socket) -> bytes:
    """Reads until the server closes the connection, in whatever way."""
    found = b""
    try:
        while data := client.recv(65536):
            found += data
    except ConnectionError:
        pass
    return found


def chat(**fields: Any) -> dict[str, Any]:
    """Returns the body of a chat."""
    return {"model": "mini", "messages": QUESTION, **fields}


def events(text: str) -> list[Any]:
    """Returns the data of server-sent events: parsed, except for [DONE]."""
    blocks = text.split("\n\n")
    assert blocks.pop() == "" and all(block.startswith("data: ") for block in blocks)
    return [data if data == "[DONE]" else json.loads(data) for data in (block[6:] for block in blocks)]
