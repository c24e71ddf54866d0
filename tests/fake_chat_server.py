"""A server of the chat page whose answers a test writes, as parts of the stream that OpenAI's interface sends."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from programs import PATIENCE

from minimind_sft.serving.chat_page import page_files

WAIT, DIE, ENDLESS = "wait until the test says go", "break the connection", "go on until the browser leaves"


class FakeChatServer(ThreadingHTTPServer):
    """Answers the question that the last message asks with the parts in `answers`.

    A part is text, a delta, an error of the stream (`{"error": ...}`), WAIT, DIE or ENDLESS. An answer that is a tuple
    is refused: (status, message, headers).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.key = ["mini", "style"], ""
        self.answers: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}  # of models, beside their names
        self.bodies: list[dict] = []
        self.left = threading.Event()  # a browser left before it had its answer
        self._go = threading.Semaphore(0)
        self.files = page_files()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def go(self, count: int = 1) -> None:
        """Lets answers go on that WAIT."""
        self._go.release(count)

    def wait(self) -> bool:
        return self._go.acquire(timeout=PATIENCE)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing about a browser that left."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeChatServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self.is_known():
                self.answer_json(200, {"object": "list", "data": [{"id": name, **self.server.facts.get(name, {})}
                                                                   for name in self.server.models]})
            return
        file = self.server.files.get(self.path)
        self.send_response(200 if file else 404)
        for name, value in (file.headers if file else {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(file.content if file else b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_known():
            return
        self.server.bodies.append(body)
        answer = self.server.answers.get(body["messages"][-1]["content"], ["I am ", body["model"], "."])
        if isinstance(answer, tuple):
            status, message, headers = answer
            self.answer_json(status, {"error": {"message": message}}, headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with suppress(ConnectionError):
            self.stream(answer)
            return
        self.server.left.set()

    def stream(self, parts: list[Any]) -> None:
        self.send_event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        finish = "stop"
        for part in parts:
            if part == DIE:
                return
            if part == WAIT:
                self.server.wait()
                continue
            while part == ENDLESS:
                self.send_event({"choices": [{"index": 0, "delta": {"content": "more "}, "finish_reason": None}]})
            if isinstance(part, dict) and "error" in part:
                self.send_event(part)
                return
            delta = {"content": part} if isinstance(part, str) else dict(part)
            finish = delta.pop("finish", None) or ("tool_calls" if "tool_calls" in delta else finish)
            self.send_event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        self.send_event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        self.send_event({"choices": [], "usage": {"completion_tokens": len(parts)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def send_event(self, data: dict) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def is_known(self) -> bool:
        known = not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}"
        if not known:
            self.answer_json(401, {"error": {"message": "an API key is needed"}})
        return known

    def answer_json(self, status: int, value: dict, headers: dict | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})
                           }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@contextmanager
def serving() -> Iterator[FakeChatServer]:
    """Serves until the block ends."""
    with FakeChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.go(100)
            server.shutdown()
            thread.join()
