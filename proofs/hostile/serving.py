"""The server with odd flags, variables, models and generation settings, and with hostile requests."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from load.bodies import BROKEN, CHAT, full, injections
from load.clients import odd_requests
from load.http_client import request

from hostile.flags import one_flag_each
from hostile.small_models import small_adapter, small_weights, written_as
from hostile.tries import Try
from minimind_sft.settings.serve import ServeSettings

KIND = "the server: flags, variables, models and requests"
PROGRAM = str(Path(__file__).with_name("serve_once.py"))
PORT = 8998
"""The port in the Host field, whatever the server's own is."""

NAMES = ("", "=", "a=", "=a", "a=b=c", "\x1b[2J={}", "a\nb={}", "\u202ea={}", "a b={}", "../a={}", "<b>={}", '"={}',
         "x" * 5000 + "={}", "名={}", "a={}+", "a={}+no", "a={}+{}", "a={}+:", "small_32={}", "a=/dev/zero",
         "a=/proc/self/mem", "a=/nowhere/\x1b[31m")
"""Values of --models; {} stands for the weights."""
VARIABLES = (
    *({"MINIMIND_API_KEY": key} for key in ("", " ", "é", "a b", "\x1b[2J", "a\nb", "x" * 100_000, "\udcff", "密")),
    {"WEB_CONCURRENCY": "4"}, {"WEB_CONCURRENCY": "x"}, {"FORWARDED_ALLOW_IPS": "*"}, {"FORWARDED_ALLOW_IPS": "\x1b"},
    {"PROMETHEUS_MULTIPROC_DIR": "/nowhere"}, {"PROMETHEUS_MULTIPROC_DIR": ""},
    {"UVICORN_PORT": "x"}, {"LLGUIDANCE_LOG_LEVEL": "x"}, {"PYDANTIC_DISABLE_PLUGINS": "x"}, {"HOST": "x", "PORT": "x"},
    {"ROOT_PATH": "\x1b"}, {"PYTHONASYNCIODEBUG": "1"}, {"TMPDIR": "/nowhere"}, {"HOME": "/nowhere"})
ODD_SAMPLING = ({"temperature": "1"}, {"temperature": -1}, {"temperature": 1e400}, {"top_p": 0}, {"top_k": 1.5},
                {"top_k": 2**64}, {"do_sample": "yes"}, {"repetition_penalty": 0}, {"eos_token_id": "x"},
                {"eos_token_id": -1}, {"eos_token_id": 10**9}, [], 1, {"\x1b": 1}, {"temperature": [0.5]})
"""Contents of a generation_config.json."""


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields good input, and then an equal part of each: flags, variables and models, broken and hostile requests."""
    weights = small_weights(folder)
    base = ["--weight", str(weights), "--device", "cpu", "--port", "0"]
    yield Try("good", [PROGRAM, _file(folder, "good", _chat(full("small_32"))), *base], "accepted")
    parts = [list(_flags(base)), [*_variables(base), *_models(folder, weights)],
             [*_broken(folder, base), *_odd_http(folder, base)]]
    for part in parts:
        random.shuffle(part)
        yield from part[:max(1, count // 4)]
    hostile = injections(random, "small_32")
    for number in range(max(1, count // 4)):
        path, body = next(hostile)
        file = _file(folder, f"hostile{number}", _chat(body, path))
        yield Try(f"hostile field {json.dumps(body)[:200]}", [PROGRAM, file, *base], "either")


def _chat(body: dict, path: str = CHAT) -> bytes:
    return request(PORT, path, json.dumps(body).encode())


def _file(folder: Path, name: str, data: bytes) -> str:
    path = folder / f"{name}.http"
    path.write_bytes(data)
    return str(path)


def _flags(base: list[str]) -> Iterator[Try]:
    yield from one_flag_each({PROGRAM: (ServeSettings, ["-", *base])})
    for key in ("", " ", "é", "a b", "\x1b[2J", "密", "x" * 100_000):
        yield Try(f"key {key[:10]!a}", [PROGRAM, "-", *base, f"--api_key={key}"], "either")
    for origin in ("null", "*", "http://", "https://a/b", "javascript:1", "https://*.example", "a\r\nb: c", "\x1b[2J"):
        yield Try(f"origin {origin!a}", [PROGRAM, "-", *base, f"--allow_origin={origin}"], "either")
    for host in ("", "999.1.1.1", "nowhere.invalid", "127.0.0.1\n", "127.1", "localhost", "::1", "[::1]", "1.2.3.4",
                 "127.0.0.1:80", "/tmp/socket", "é"):
        yield Try(f"host {host!a}", [PROGRAM, "-", *base, f"--host={host}"], "either")


def _variables(base: list[str]) -> Iterator[Try]:
    for variables in VARIABLES:
        yield Try(f"{variables!s:.60}", [PROGRAM, "-", *base], "either", environment=variables)


def _models(folder: Path, weights: Path) -> Iterator[Try]:
    """Yields further models under odd names, an adapter, and folders with odd generation settings."""
    base = ["--weight", str(weights), "--device", "cpu", "--port", "0"]
    for value in NAMES:
        models = value.format(*[weights] * value.count("{}"))
        yield Try(f"models {value[:40]!a}", [PROGRAM, "-", *base, "--models", models], "either")
    adapter = small_adapter(folder)
    yield Try("an adapter", [PROGRAM, "-", *base, "--models", f"a={weights}+{adapter}:0.5"], "accepted")
    model = written_as("huggingface", folder / "served")
    for number, sampling in enumerate(ODD_SAMPLING):
        yield _with_sampling(folder / f"served{number}", model, sampling)


def _with_sampling(folder: Path, model: Path, sampling: object) -> Try:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    return Try(f"generation_config.json {sampling}",
               [PROGRAM, "-", "--weight", str(folder), "--device", "cpu", "--port", "0"], "either")


def _broken(folder: Path, base: list[str]) -> Iterator[Try]:
    for number, (name, body) in enumerate(BROKEN.items()):
        file = _file(folder, f"broken{number}", request(PORT, CHAT, body))
        yield Try(f"body: {name}", [PROGRAM, file, *base], "refused")


def _odd_http(folder: Path, base: list[str]) -> Iterator[Try]:
    """Yields requests that HTTP forbids; serve_once.py takes a closed connection for refused."""
    for number, (name, data, _) in enumerate(odd_requests(PORT)):
        yield Try(f"HTTP: {name}", [PROGRAM, _file(folder, f"http{number}", data), *base], "refused")
