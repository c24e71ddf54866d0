"""The settings of scripts/serve_openai_api.py, and how the program ends before it serves."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from chats import TOKENIZER, tiny_model
from programs import PATIENCE, REPOSITORY, refuse

from minimind_sft.errors import UserError
from minimind_sft.inference.loading import Loaded
from minimind_sft.serving import models, program
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.serve import API_KEY_VARIABLE, ServedWeights, ServeSettings
from minimind_sft.settings.spec import changed, problems

SCRIPT = "scripts/serve_openai_api.py"
OWN, FURTHER = ("--weight", "--lora_weight"), ("--models", "--models")


@pytest.mark.parametrize(("values", "expected"), [
    ({}, [ServedWeights("full_sft", "full_sft", (), OWN)]),
    ({"weight": "a/b_256.pth"}, [ServedWeights("b_256", "a/b_256.pth", (), OWN)]),
    ({"weight": "a/SmolLM2-1.7B", "served_name": "s"}, [ServedWeights("s", "a/SmolLM2-1.7B", (), OWN)]),
    ({"weight": "SmolLM2-1.7B/"}, [ServedWeights("SmolLM2-1.7B", "SmolLM2-1.7B/", (), OWN)]),
    ({"lora_weight": ("x:0.5", "y"), "models": ("base=pretrain", "calls=full_sft+c:0.5+d")}, [
        ServedWeights("full_sft", "full_sft", ("x:0.5", "y"), OWN),
        ServedWeights("base", "pretrain", (), FURTHER),
        ServedWeights("calls", "full_sft", ("c:0.5", "d"), FURTHER)]),
])
def test_models_by_name(values, expected):
    assert list(changed(ServeSettings(), **values).served()) == expected


@pytest.mark.parametrize(("values", "expected"), [
    ({"models": ("calls",)}, "--models calls: expected NAME=WEIGHT or NAME=WEIGHT+ADAPTER"),
    ({"models": ("=full_sft",)}, "--models =full_sft: expected NAME=WEIGHT or NAME=WEIGHT+ADAPTER"),
    ({"models": ("a=b+",)}, "--models a=b+: expected NAME=WEIGHT or NAME=WEIGHT+ADAPTER"),
    ({"models": ("full_sft=pretrain",)}, "--models: full_sft is the name of 2 models"),
    ({"served_name": ""}, "--served_name: expected a name, found nothing"),
    ({"allow_origin": ("example.org",)},
     "--allow_origin example.org: expected an origin such as https://example.org, or *"),
    ({"allow_origin": ("https://example.org/page",)},
     "--allow_origin https://example.org/page: expected an origin such as https://example.org, or *"),
    ({"allow_origin": ("https://",)}, "--allow_origin https://: expected an origin such as https://example.org, or *"),
    ({"host": ""}, "--host: expected an address, found nothing"),
    ({"port": 65536}, "--port is 65536, expected 0 to 65,535"),
    ({"api_key": "two words"}, "--api_key: expected letters, digits and signs of ASCII without blanks"),
    ({"api_key": "\udcff"}, "--api_key: expected letters, digits and signs of ASCII without blanks"),
    ({"api_key": ""}, "--api_key: expected letters, digits and signs of ASCII without blanks"),
])
def test_values_that_cannot_be_used(values, expected):
    assert problems(changed(ServeSettings(), **values)) == [expected]


def test_the_key_comes_from_the_flag_or_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "from-environment")
    assert parse_flags(ServeSettings, "", []).listening.key == "from-environment"
    assert parse_flags(ServeSettings, "", ["--api_key", "typed"]).listening.key == "typed"
    monkeypatch.setenv(API_KEY_VARIABLE, "se cret")
    with pytest.raises(UserError) as caught:
        parse_flags(ServeSettings, "", [])
    assert "se cret" not in str(caught.value) and API_KEY_VARIABLE in str(caught.value)
    monkeypatch.delenv(API_KEY_VARIABLE)
    assert parse_flags(ServeSettings, "", []).listening.key is None


def test_each_model_is_loaded_with_its_adapters_and_has_an_engine_of_its_own(monkeypatch):
    asked, sharing = [], set()

    def load(weights, runtime, say, flags, shared):
        asked.append((weights.weight, weights.lora_weight, weights.use_moe, flags))
        sharing.add(shared)
        return Loaded(Path(weights.weight), tiny_model(), TOKENIZER, None, frozenset(), (), is_minimind=False)

    monkeypatch.setattr(models, "load", load)
    found = models.load_models(changed(
        ServeSettings(), weight="base", lora_weight=("x:0.5",), use_moe=True, models=("other=full_sft+c+d:2",),
        max_running=3, cache_tokens=64, max_new_tokens=9), print)
    assert asked == [("base", ("x:0.5",), True, OWN), ("full_sft", ("c", "d:2"), True, FURTHER)]
    assert len(sharing) == 1 and None not in sharing
    assert found.names == ["base", "other"] and len({model.engine for model in found}) == 2
    for model in found:
        assert (model.engine.max_running, model.engine.cache_tokens, model.sampling.max_new_tokens) == (3, 64, 9)


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(program, "find_spec", lambda name: None if name in ("uvicorn", "llguidance") else True)
    with pytest.raises(UserError) as caught:
        program.require_packages()
    assert str(caught.value) == "the server needs uvicorn, llguidance: pip install 'minimind-sft[serve]'"


@pytest.mark.parametrize(("host", "shown"), [
    ("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"),
    ("192.168.1.5", "http://192.168.1.5:80")])
def test_the_address_to_open(host, shown):
    assert program.address(changed(ServeSettings(), host=host).listening, 80) == shown


@pytest.mark.slow
def test_the_program_refuses_in_one_line_and_ends_cleanly():
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    assert "no_such_weights" in refuse(SCRIPT, "--weight", "no_such_weights", "--port", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {port}: cannot be used at 127.0.0.1" in refuse(SCRIPT, "--weight", "pretrain", "--port", port)
    with subprocess.Popen([sys.executable, SCRIPT, "--weight", "pretrain", "--port", "0"], cwd=REPOSITORY,
                          stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("open http://127.0.0.1:"):
                    break
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
