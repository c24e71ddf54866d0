"""Settings of scripts/serve_openai_api.py: which models answer, to whom, and how much at once."""

import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from minimind_sft.settings.chat import ChatRuntimeSettings, ChatSamplingSettings, WeightSettings
from minimind_sft.settings.spec import same_setting, setting

API_KEY_VARIABLE = "MINIMIND_API_KEY"
ORIGIN = re.compile(r"https?://[^/?#@\s]+|(?!https?:)[a-z][a-z0-9+.-]*://[^/?#@\s]*")
"""An origin of web pages, or of programs on this machine that are made of them, as app://obsidian.md or file://."""
ENDINGS = (".pth", ".pt", ".safetensors", ".gguf")
"""Endings of weight files that are not part of a model's name."""


class ServedWeights(NamedTuple):
    """Weights and adapters under the name that requests use. flags: those that name weights and adapters."""

    name: str
    weight: str
    adapters: tuple[str, ...]
    flags: tuple[str, str]


@dataclass(frozen=True)
class OfferedSettings:
    """The names of the models in requests, and further models."""

    served_name: str | None = setting(
        None, "name of the model of --weight in requests (default: the name of the weights)")
    models: tuple[str, ...] = setting(
        (), "further models, each NAME=WEIGHT or NAME=WEIGHT+ADAPTER, as in calls=full_sft+calls:0.5; they take the "
            "other flags of the weights as well")

    def problems(self) -> list[str]:
        found = [f"--models {one}: expected NAME=WEIGHT or NAME=WEIGHT+ADAPTER"
                 for one in self.models if not re.fullmatch(r"[^=]+=[^+]+(\+[^+]+)*", one)]
        if self.served_name == "":
            found.append("--served_name: expected a name, found nothing")
        return found


@dataclass(frozen=True)
class ListeningSettings:
    """Where the server listens, and whom it answers."""

    host: str = setting("127.0.0.1", "address to listen at; 127.0.0.1: this machine only, 0.0.0.0: every network")
    port: int = setting(8998, "port to listen at; 0: any free one", min=0, max=65535)
    api_key: str | None = setting(
        None, f"key that clients have to send; better in the environment variable {API_KEY_VARIABLE}, as other users "
              "can see command lines", secret=True)
    allow_origin: tuple[str, ...] = setting(
        (), "web pages from elsewhere that may use the server (CORS), or the name of a proxy on this machine, as in "
            "https://example.org; programs made of web pages, as in app://obsidian.md; *: all pages")

    @property
    def key(self) -> str | None:
        """The key that clients have to send."""
        return self.api_key if self.api_key is not None else os.environ.get(API_KEY_VARIABLE)

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach the server."""
        try:  # inet_aton takes short forms such as 127.1, as listening does
            address: bytes | str = socket.inet_aton(self.host)
        except OSError:
            address = self.host
        try:
            return not ip_address(address).is_loopback
        except ValueError:
            return self.host.lower() != "localhost"

    def problems(self) -> list[str]:
        found = [] if self.host else ["--host: expected an address, found nothing"]
        if self.key is not None and not re.fullmatch("[!-~]+", self.key):
            where = "--api_key" if self.api_key is not None else f"environment variable {API_KEY_VARIABLE}"
            found.append(f"{where}: expected letters, digits and signs of ASCII without blanks")
        found += [f"--allow_origin {one}: expected an origin such as https://example.org, or *"
                  for one in self.allow_origin if one != "*" and not ORIGIN.fullmatch(one)]
        return found


@dataclass(frozen=True)
class LimitSettings:
    """Limits on requests, connections and times."""

    max_running: int = setting(16, "requests that each model answers at the same time", min=1, max=1024)
    max_waiting: int = setting(
        64, "requests that may wait for each model; one more is refused with status 429", min=0, max=10**6)
    cache_tokens: int = setting(
        16384, "tokens of prompts and answers that each model's KV cache holds for all requests together", min=16)
    max_body: int = setting(1024, "largest request, in KiB", min=1, max=2**20)
    max_connections: int = setting(512, "connections that may be open at the same time", min=1, max=10**5)
    receive_seconds: float = setting(30.0, "time in which a request must have arrived completely", above=0)
    answer_seconds: float = setting(600.0, "time that an answer may take, the wait for its turn included", above=0)
    stall_seconds: float = setting(30.0, "a client that reads nothing for so long is disconnected", above=0)
    drain_seconds: float = setting(30.0, "time that answers get to end after the server was told to stop", min=0)


@dataclass(frozen=True)
class ServedSamplingSettings:
    """How the next token is chosen where a request does not say it."""

    max_new_tokens: int = same_setting(
        ChatSamplingSettings, "max_new_tokens", help="maximum tokens of an answer, unless its request says max_tokens")
    temperature: float | None = same_setting(ChatSamplingSettings, "temperature")
    top_k: int | None = same_setting(ChatSamplingSettings, "top_k")
    top_p: float | None = same_setting(ChatSamplingSettings, "top_p")
    repetition_penalty: float | None = same_setting(ChatSamplingSettings, "repetition_penalty")

    def typed(self) -> ChatSamplingSettings:
        """Returns the same as the settings of a chat."""
        return ChatSamplingSettings(**asdict(self))


@dataclass(frozen=True)
class ServeSettings:
    """Settings of scripts/serve_openai_api.py."""

    weights: WeightSettings = WeightSettings()
    offered: OfferedSettings = OfferedSettings()
    listening: ListeningSettings = ListeningSettings()
    limits: LimitSettings = LimitSettings()
    sampling: ServedSamplingSettings = ServedSamplingSettings()
    runtime: ChatRuntimeSettings = ChatRuntimeSettings()

    def served(self) -> Iterator[ServedWeights]:
        """Yields every model to serve, the one of --weight first."""
        weights, offered = self.weights, self.offered
        yield ServedWeights(offered.served_name or _name_of(weights.weight), weights.weight, weights.lora_weight,
                            ("--weight", "--lora_weight"))
        for one in offered.models:
            name, _, what = one.partition("=")
            weight, *adapters = what.split("+")
            yield ServedWeights(name, weight, tuple(adapters), ("--models", "--models"))

    def problems(self) -> list[str]:
        if self.offered.problems():
            return []
        counts = Counter(served.name for served in self.served())
        return [f"--models: {name} is the name of {count} models" for name, count in counts.items() if count > 1]


def _name_of(weight: str) -> str:
    """Returns the name of weights: that of a file without its ending."""
    path = Path(weight)
    return path.stem if path.suffix in ENDINGS else path.resolve().name
