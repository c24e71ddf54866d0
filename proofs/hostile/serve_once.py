"""Runs scripts/serve_openai_api.py, sends it one request as soon as it listens, and stops it.

    python proofs/hostile/serve_once.py REQUEST FLAGS...

REQUEST is a file that holds an HTTP request byte for byte; "-" asks whether the server is well. Exits with status 0
after an answer 2xx, and with 2 and one line if the server answers 4xx or closes the connection; any other answer is a
traceback.
"""

import json
import os
import re
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from minimind_sft.paths import REPOSITORY

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SECONDS = 60.0
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

answers: list[bytes] = []


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Sends the request; returns what comes until the server closes the connection."""
    connection.settimeout(SECONDS)
    got = b""
    try:
        connection.sendall(data)
        while piece := connection.recv(2**16):
            got += piece
    except ConnectionError:  # as when the server closes before it has read everything
        return got
    return got


def ask(address: Any, data: bytes) -> None:
    """Sends the request, keeps the answer, and asks this process to end."""
    try:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
        with socket.create_connection((host, address[1]), SECONDS) as connection:
            answers.append(exchange(connection, data))
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def when_it_listens(data: bytes) -> None:
    """Makes uvicorn's server call `ask` in a thread, as soon as it listens."""
    import uvicorn

    startup = uvicorn.Server.startup

    async def listening(server: uvicorn.Server, *arguments: Any, **keywords: Any) -> None:
        await startup(server, *arguments, **keywords)
        address = server.servers[0].sockets[0].getsockname()
        threading.Thread(target=ask, args=(address, data), daemon=True).start()

    uvicorn.Server.startup = listening  # type: ignore[method-assign]


def judge(answer: bytes) -> int:
    """Prints the answer; returns the exit status that it stands for.

    Raises:
        RuntimeError: if the server has made a mistake, or did not answer in OpenAI's form.
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    found = STATUS.match(head)
    status = int(found[1]) if found else 0
    if 200 <= status < 300:
        print(ascii(body.decode("utf-8"))[1:-1])
        return 0
    if answer and not 400 <= status < 500:
        raise RuntimeError(f"answered {answer[:500]!a}")
    is_json = b"content-type: application/json" in head.lower()
    message = json.loads(body)["error"]["message"] if is_json else ascii(body[:200])
    if "\n" in message:
        raise RuntimeError(f"several lines: {message!r}")
    print(f"error: {ascii(message)[1:-1]}", file=sys.stderr)
    return 2


def main() -> int:
    request, *flags = sys.argv[1:]
    when_it_listens(HEALTH if request == "-" else Path(request).read_bytes())
    program = REPOSITORY / "scripts/serve_openai_api.py"
    sys.argv[:] = [str(program), *flags]
    sys.path[0] = str(program.parent)
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as leaving:
        if leaving.code:
            raise
    return judge(answers[0]) if answers else 1


if __name__ == "__main__":
    sys.exit(main())
