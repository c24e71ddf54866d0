"""Adapters, ours, PEFT's and MiniMind's: each field of their descriptions and each tensor replaced by odd ones."""

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile.odd_values import ODD_TENSORS, ODD_VALUES, fields_of, with_value
from hostile.small_models import small_adapter, small_weights, train_adapter, written_as
from hostile.tries import Try

KIND = "adapters: ours, PEFT's and MiniMind's"

DECISIVE = {"lora_alpha", "r", "bias", "peft_type", "use_dora", "rank", "scale", "base", "sha256"}
"""Fields without which, or with other values than these, an adapter must not be applied."""

SLOW_PATTERNS = (r"(\w+\.?)*x", "(a|a)*x", "(.*)*x", ".*" * 30 + "x", ".?" * 100 + "x", "(.|.)" * 100 + "x", "(" * 5000,
                 "a{99999999999999}", "(?:a{9999}){9999}", "(?=(.*)+x)", r"(.*)\1*x", "." * 10**6)
"""Regular expressions that take time, memory or levels of recursion without a bound."""


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    weights = small_weights(folder)
    ours, peft = small_adapter(folder), written_as("peft", folder / "peft")
    minimind = folder / "lora_theirs_32.pth"
    torch.save({f"model.layers.{layer}.self_attn.q_proj.lora.{half}.weight": torch.full(shape, 0.1)
                for layer in (0, 1) for half, shape in (("A", (16, 32)), ("B", (32, 16)))}, minimind)
    odd = folder / "odd"
    programs = (chat, merge, train_adapter, convert)
    for adapter in (ours, peft, minimind):
        for program in programs if adapter == peft else programs[:1]:
            yield Try(f"{adapter.name} as it was, {program.__name__}", program(weights, adapter, folder), "accepted")

    def described() -> Iterator[tuple[str, str, Callable[[], Path]]]:
        for adapter, file in ((ours, ours.with_suffix(".json")), (peft, peft / "adapter_config.json")):
            whole = json.loads(file.read_text(encoding="utf-8"))
            for path in fields_of(whole):
                for value in ODD_VALUES:
                    field = ".".join(map(str, path))
                    decides = path[-1] in DECISIVE and not _could_be(path[-1], value)
                    yield (f"{file.name}: {field}: {_short(value)}", "refused" if decides else "either",
                           lambda a=adapter, f=file.name, w=whole, p=path, v=value: _described(
                               a, odd, f, with_value(w, p, v)))

    def slow() -> Iterator[tuple[str, str, Callable[[], Path]]]:
        file = peft / "adapter_config.json"
        whole = json.loads(file.read_text(encoding="utf-8"))
        for field in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
            for pattern in SLOW_PATTERNS:
                value = {pattern: 2} if field in ("rank_pattern", "alpha_pattern") else pattern
                yield (f"{file.name}: {field}: {_short(value)}", "refused", lambda f=field, v=value: _described(
                    peft, odd, file.name, {**whole, "layers_to_transform": [0, 1], f: v}))

    def stored() -> Iterator[tuple[str, str, Callable[[], Path]]]:
        for adapter in (ours, peft, minimind):
            names = sorted(_tensors(adapter))
            for name in random.sample(names, min(6, len(names))):
                for what in (*ODD_TENSORS, "missing", "twice, under another name"):
                    whole_numbers = what in ("whole numbers", "booleans")
                    yield (f"{adapter.name}: {name}: {what}", "either" if whole_numbers else "refused",
                           lambda a=adapter, n=name, w=what: _stored(a, odd, n, w))

    def damaged() -> Iterator[tuple[str, str, Callable[[], Path]]]:
        for adapter in (ours, peft, minimind):
            data = _file(adapter).read_bytes()
            for _ in range(8):
                size, at, value = random.randrange(len(data)), random.randrange(2000), random.randrange(256)
                yield (f"{adapter.name}: the first {size} bytes", "refused",
                       lambda a=adapter, d=data[:size]: _damaged(a, odd, d))
                yield (f"{adapter.name}: byte {at} is {value}", "either",
                       lambda a=adapter, d=data[:at] + bytes([value]) + data[at + 1:]: _damaged(a, odd, d))

    for kind, share in ((described(), 0.5), (slow(), 0.15), (stored(), 0.2), (damaged(), 0.15)):
        choices = list(kind)
        for name, expected, make in random.sample(choices, min(len(choices), max(int(share * count), 1))):
            yield Try(name, random.choice(programs)(weights, make(), folder), expected)


def chat(weights: Path, adapter: Path, _: Path) -> list[str]:
    return ["eval_llm.py", "--weight", str(weights), "--lora_weight", str(adapter), "--prompt", "Hello",
            "--max_new_tokens", "2", "--device", "cpu"]


def merge(weights: Path, adapter: Path, folder: Path) -> list[str]:
    return ["scripts/merge_lora.py", "--weight", str(weights), "--lora_weight", str(adapter), "--save_dir",
            str(folder / "out"), "--save_weight", "merged", "--overwrite"]


def convert(weights: Path, adapter: Path, folder: Path) -> list[str]:
    return ["scripts/convert_model.py", "--weight", str(weights), "--lora_weight", str(adapter), "--to", "peft",
            "--output", str(folder / "converted"), "--overwrite"]


def _could_be(field: Any, value: Any) -> bool:
    """Tells whether another adapter could have this value."""
    number = type(value) in (int, float) and abs(value) < 1e300
    return (field in ("lora_alpha", "scale") and number) or (field == "use_dora" and value in (False, None))


def _copied(adapter: Path, odd: Path) -> Path:
    """Copies an adapter, and its sidecar, into a fresh folder."""
    shutil.rmtree(odd, ignore_errors=True)
    if adapter.is_dir():
        return Path(shutil.copytree(adapter, odd))
    odd.mkdir()
    for path in (adapter, adapter.with_suffix(".json")):
        if path.is_file():
            shutil.copy(path, odd)
    return odd / adapter.name


def _file(adapter: Path) -> Path:
    return adapter / "adapter_model.safetensors" if adapter.is_dir() else adapter


def _tensors(adapter: Path) -> dict[str, torch.Tensor]:
    path = _file(adapter)
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _described(adapter: Path, odd: Path, file: str, value: Any) -> Path:
    copied = _copied(adapter, odd)
    (odd / file).write_text(json.dumps(value), encoding="utf-8")
    return copied


def _stored(adapter: Path, odd: Path, name: str, what: str) -> Path:
    copied, tensors = _copied(adapter, odd), dict(_tensors(adapter))
    tensor = tensors.pop(name)
    if what in ODD_TENSORS:
        tensors[name] = ODD_TENSORS[what](tensor)
    elif what != "missing":
        tensors |= {name: tensor, f"x.{name}": tensor.clone()}
    path = _file(copied)
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return _vouched(copied)


def _damaged(adapter: Path, odd: Path, data: bytes) -> Path:
    copied = _copied(adapter, odd)
    _file(copied).write_bytes(data)
    return _vouched(copied)


def _vouched(adapter: Path) -> Path:
    """Writes the checksum of the changed file into its sidecar, as a forger would."""
    sidecar = adapter.with_suffix(".json")
    if adapter.is_file() and sidecar.is_file():
        described = json.loads(sidecar.read_text(encoding="utf-8"))
        described["sha256"] = sha256(adapter.read_bytes()).hexdigest()
        sidecar.write_text(json.dumps(described), encoding="utf-8")
    return adapter


def _short(value: Any) -> str:
    return "-10^400" if value == -10**400 else f"{value!r:.30}"
