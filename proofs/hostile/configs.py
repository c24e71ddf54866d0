"""Sidecars, the configurations of all families, and lists of shards, with each field replaced by odd values."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile.odd_values import ODD_VALUES, fields_of, with_value
from hostile.small_models import SMALL, chat, small_weights, train
from hostile.tries import Outcome, Try
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.paths import REPOSITORY

KIND = "sidecars and configurations"

ODD = (*ODD_VALUES, 1, 2, 3, 10**9, 5e-324, 1e-300, 1.0000000001, "a" * 10**6, "default", [0] * 10**5,
       [[[[[[[[[[1]]]]]]]]]], {"factor": 2.0})
EXTREMES = (5e-324, 1e-300, 1e308, 10**300, 0, -1, float("nan"))
"""For the numbers of RoPE's scaling, whose formulas divide by them and take their logarithms."""
ROPE: tuple[dict[str, Any], ...] = (
    {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 32.0, "beta_slow": 1.0,
     "attention_factor": 1.0, "original_max_position_embeddings": 2048},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 2048},
    {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0})
SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "use_moe", "attention_bias", "mlp_bias", "qk_norm", "norm", "mlp", "positions")
"""Fields of a sidecar's model that the tensors tell: no other value is accepted."""
FOLLOWS = ("head_dim", "intermediate_size", "moe_intermediate_size")
"""Fields that may be null."""

FAMILY_SHAPES: dict[str, ModelConfig] = {
    "qwen3": SMALL, "llama": replace(SMALL, qk_norm=False), "mistral": replace(SMALL, qk_norm=False, sliding_window=64),
    "qwen2": replace(SMALL, qk_norm=False, attention_bias="qkv"), "phi3": replace(SMALL, qk_norm=False),
    "smollm3": replace(SMALL, qk_norm=False, layers_without_rope=(1,)),
    "qwen3_moe": replace(SMALL, use_moe=True, moe_intermediate_size=32, num_experts_per_tok=2),
    "gpt2": replace(SMALL, num_key_value_heads=4, qk_norm=False, attention_bias="all", mlp_bias=True, norm="layer",
                    mlp="gelu", positions="learned", max_position_embeddings=1024)}

Run = Callable[[Path], list[str]]


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    good = small_weights(folder)

    def run(weights: Path) -> list[str]:
        return random.choice([chat, lambda path: train(path, folder)])(weights)

    yield Try("as it was", chat(good), "accepted")
    yield from odd_sidecars(good, random, count // 3, run)
    yield from odd_assumptions(good, random, count // 15, run)
    folders = {name: family_folder(folder / name, name, config) for name, config in FAMILY_SHAPES.items()}
    for name, path in folders.items():
        yield Try(f"{name} as it was", chat(path), "accepted")
    yield from odd_configurations(folders, random, count // 2, run)
    yield from odd_indexes(folders["llama"], random, count // 10, run)


def odd_sidecars(good: Path, random: Random, count: int, run: Run) -> Iterator[Try]:
    """Changes one field of the sidecar of weights, named by their path or by a name that several files have."""
    path = good.with_name("odd_32.pth")
    shutil.copy(good, path)
    shutil.copy(good, path.with_name("odd_64.pth"))
    sidecar = json.loads(good.with_suffix(".json").read_text())
    sidecar |= {"family": "qwen3", "parameters": 10**5, "training": {
        "command": "train --chat_template x", "experience": {"tokens": "AAAA", "longest": 5}}}
    scaled = with_value(sidecar, ("model", "rope_scaling"), vars(RopeScaling(factor=2.0)).copy())
    changes = [(whole, place, odd) for whole in (sidecar, scaled) for place in fields_of(whole) for odd in ODD
               if whole is sidecar or place[:2] == ("model", "rope_scaling")]
    random.shuffle(changes)
    extremes = [(scaled, ("model", "rope_scaling", name), odd) for name in scaled["model"]["rope_scaling"]
                for odd in EXTREMES if name != "rope_type"]
    for whole, place, odd in changes[:count - count // 4] + random.sample(extremes, min(len(extremes), count // 4)):
        changed = with_value(whole, place, odd)
        write(path.with_suffix(".json"), changed)
        write(path.with_name("odd_64.json"), changed)
        strict = place[0] == "model" and place[-1] in SHAPE and not (place[-1] in FOLLOWS and odd is None)
        strict = strict and odd != whole["model"][place[-1]]
        name = f"{'.'.join(map(str, place))}: {odd!r:.40}"
        yield Try(name, run(path), "refused" if strict else "either", check=finite)
        if random.random() < 0.2:
            yield Try(f"{name}, by name", ["eval_llm.py", "--weight", "odd", "--save_dir", str(path.parent), "--prompt",
                                           "Hello"])


def odd_assumptions(good: Path, random: Random, count: int, run: Run) -> Iterator[Try]:
    """Changes what is assumed for weights that have no description."""
    path = good.with_name("assumed.pth")
    shutil.copy(good, path)
    fields = json.loads(good.with_suffix(".json").read_text())["model"]
    changes = [(name, odd) for name in (*fields, "x\x1b[2J") for odd in ODD]
    random.shuffle(changes)
    for name, odd in changes[:count]:
        write(path.with_suffix(".json"), {"assume": {name: odd}})
        yield Try(f"assume {name}: {odd!r:.40}", [*run(path), "--tokenizer_path", "bundled"], "either", check=finite)
    for odd in random.sample(ODD, min(count, len(ODD))):
        write(path.with_suffix(".json"), {"assume": odd})
        yield Try(f"assume: {odd!r:.40}", [*run(path), "--tokenizer_path", "bundled"], "either", check=finite)


def odd_configurations(folders: dict[str, Path], random: Random, count: int, run: Run) -> Iterator[Try]:
    """Changes one field of the config.json of a family, also with each kind of RoPE scaling."""
    changes, extremes = [], []
    for path in folders.values():
        plain = json.loads((path / "config.json").read_text())
        wholes = [plain] + ([plain | {"rope_scaling": rope, "rope_parameters": None} for rope in ROPE]
                            if "rope_theta" in plain else [])
        changes += [(path, whole, place, odd) for whole in wholes for place in fields_of(whole) for odd in ODD
                    if whole is plain or place[0] == "rope_scaling"]
        changes += [(path, plain, (extra,), odd) for extra in ("quantization_config", "rope_scaling", "x\x1b[2J")
                    for odd in ODD]
        extremes += [(path, whole, place, odd) for whole in wholes[1:] for place in fields_of(whole) for odd in EXTREMES
                     if place[0] == "rope_scaling" and place[-1] not in ("rope_scaling", "rope_type")]
    random.shuffle(changes)
    random.shuffle(extremes)
    for path, whole, place, odd in changes[:count // 2] + extremes[:count // 2]:
        before = (path / "config.json").read_text()
        write(path / "config.json", with_value(whole, place, odd))
        yield Try(f"{path.name}, {'.'.join(map(str, place))}: {odd!r:.40}", run(path), "either", check=finite)
        (path / "config.json").write_text(before)


def odd_indexes(path: Path, random: Random, count: int, run: Run) -> Iterator[Try]:
    """Changes the list of shards."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    shard = path / "model-00001-of-00001.safetensors"
    single.rename(shard)
    weight_map = dict.fromkeys(load_file(shard), shard.name)
    write(index, {"weight_map": weight_map})
    yield Try("an index of one shard", chat(path), "accepted")
    secret = path.parent / "secret.safetensors"
    shutil.copy(shard, secret)
    name = random.choice(list(weight_map))
    odd_names = ["../secret.safetensors", str(secret), "..", "", "a\0b", "x" * 5000, "\ud800", "\x1b[2J", "config.json",
                 "missing.safetensors", "./model-00001-of-00001.safetensors", "C:\\x", *ODD]
    changes: list[tuple[str, Any]] = [(f"{name} in {odd!r:.40}", {"weight_map": {**weight_map, name: odd}})
                                      for odd in odd_names]
    changes += [(f"weight_map: {odd!r:.40}", {"weight_map": odd}) for odd in ODD]
    changes += [("all elsewhere", {"weight_map": dict.fromkeys(weight_map, "../secret.safetensors")}),
                ("a tensor more", {"weight_map": {**weight_map, "x\x1b[2J": shard.name}}),
                ("100,000 shards", {"weight_map": {str(i): f"{i}.safetensors" for i in range(100_000)}})]
    random.shuffle(changes)
    for what, content in changes[:count]:
        write(index, content)
        yield Try(f"an index with {what}", run(path))


def family_folder(folder: Path, name: str, config: ModelConfig) -> Path:
    """Writes the folder of a small model of a family, with the bundled tokenizer."""
    folder.mkdir()
    torch.manual_seed(0)
    family, ours = FAMILIES[name], MiniMindForCausalLM(config).state_dict()
    tensors = {entry.theirs: entry.to_theirs([ours[one] for one in entry.ours]).clone()
               for entry in family.entries(config)}
    save_file(tensors, folder / "model.safetensors")
    write(folder / "config.json", family.write_config(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "model" / file, folder)
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def finite(outcome: Outcome) -> str | None:
    """Looks for numbers that are none in what a program says."""
    said = outcome.stdout.lower().split()
    return next((f"says {word}" for word in said if word.strip("(),;") in ("nan", "inf")), None)
