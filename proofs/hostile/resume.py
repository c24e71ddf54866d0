"""Resume states that somebody changed, with checksums that fit: refused, or passed over for the state before."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hostile.odd_values import ODD_VALUES, fields_of, with_value
from hostile.small_runs import LORA, SFT, STEPS, SmallRun, finished, flags_in, same_result, vouch
from hostile.tries import Try

KIND = "resume states that somebody changed"

NEWEST = STEPS - 1
WEIGHTS, OPTIMIZER = "weights-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors"
RIGHT = ("untouched", "tensors: cut in two shards")
Tensors = dict[str, Tensor]
Damage = Callable[[Path], None]


def tries(folder: Path, random: random.Random, count: int) -> Iterator[Try]:
    runs = {program: finished(folder / f"run of {Path(program).stem}", program) for program in (SFT, LORA)}
    state = runs[SFT].states / f"step-{NEWEST:08d}"
    listed = [("untouched", lambda state: None), *_tensor_damages(state), *_file_damages(), *_folder_damages()]
    values = list(_value_damages(state, random))
    chosen = [*listed, *random.sample(values, max(min(count - len(listed), len(values)), 0))]
    random.shuffle(chosen)
    for name, damage in chosen[:count]:
        program = LORA if "tensor" in name and random.random() < 0.3 else SFT
        yield _resumed(runs[program], folder, name, damage, alone=random.random() < 0.5)


def _resumed(base: SmallRun, folder: Path, name: str, damage: Damage, alone: bool) -> Try:
    """Damages the newest of two states; `alone` removes the older one."""
    outside = folder / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    (outside / "precious").write_text("precious", encoding="utf-8")
    run = base.copy(folder / "run")
    if alone:
        shutil.rmtree(run.states / f"step-{NEWEST - 1:08d}")
    damage(run.states / f"step-{NEWEST:08d}")
    return Try(f"{name}{', alone' * alone}", (*flags_in(run.folder, run), "--from_resume", "1"),
               "accepted" if name in RIGHT else "either", check=same_result,
               guarded=(outside, folder / "run/rows.jsonl"))


def _value_damages(state: Path, random: random.Random) -> Iterator[tuple[str, Damage]]:
    """Yields each field of the JSON files with odd values in its place, or without it."""
    for name in ("state.json", "manifest.json", "../run.json"):
        record = json.loads((state / name).read_text(encoding="utf-8"))
        for path in fields_of(record):
            for value in (*ODD_VALUES, "missing"):
                yield (f"{Path(name).name}: {'.'.join(map(str, path))} is {ascii(value)[:40]}",
                       _with_field(name, path, value))
        for content in (b"", b"[]", b"null", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"format": 1e999}',
                        b"\0" * 1000, b'{"a": ' + b"9" * 5000 + b"}"):
            yield f"{Path(name).name} is {content[:20]!r}", _with_content(name, content)


def _with_field(name: str, path: tuple, value: object) -> Damage:
    def damage(state: Path) -> None:
        record = json.loads((state / name).read_text(encoding="utf-8"))
        changed = with_value(record, path, value if value != "missing" else None)
        if value == "missing":
            place = changed
            for part in path[:-1]:
                place = place[part]
            del place[path[-1]]
        _with_content(name, json.dumps(changed).encode())(state)

    return damage


def _with_content(name: str, content: bytes) -> Damage:
    def damage(state: Path) -> None:
        (state / name).write_bytes(content)
        if name == "state.json":
            vouch(state, name)

    return damage


CHANGES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda tensor: None,
    "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor[None].repeat(2),
    "one row less": lambda tensor: tensor[1:] if tensor.dim() else tensor[None],
    "flat": lambda tensor: tensor.reshape(-1),
    "transposed": lambda tensor: tensor.mT.contiguous() if tensor.dim() > 1 else tensor[None],
    "one more dimension": lambda tensor: tensor[None],
    "a scalar": lambda tensor: tensor.new_zeros(()) if tensor.dim() else tensor.new_zeros(0),
    "empty": lambda tensor: tensor.new_zeros(0),
    "without columns": lambda tensor: tensor.new_zeros((len(tensor), 0) if tensor.dim() else (0, 0)),
    "huge": lambda tensor: tensor.new_zeros(3_000_000),
    "NaN": lambda tensor: tensor * float("nan"),
    "one NaN": lambda tensor: torch.where(torch.arange(max(tensor.numel(), 1)).reshape(tensor.shape) == 0,
                                          float("nan"), tensor),
    "infinite": lambda tensor: tensor + float("inf"),
    "negative": lambda tensor: -tensor.abs() - 1,
    "a fraction": lambda tensor: tensor * 0 - 0.5,
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "float64": lambda tensor: tensor.double(),
    "int64": lambda tensor: tensor.long(),
    "bool": lambda tensor: tensor.bool(),
    "uint8": lambda tensor: tensor.byte(),
    "complex": lambda tensor: tensor.to(torch.complex64),
}
HARMLESS = ("negative", "a fraction")
"""Changes that make other weights or first moments, which nobody can tell from the right ones."""


def _tensor_damages(state: Path) -> Iterator[tuple[str, Damage]]:
    """Yields each change of some of the tensors, and tensors of other names."""
    for file, kinds in ((WEIGHTS, ("",)), (OPTIMIZER, ("step|", "exp_avg|", "exp_avg_sq|"))):
        for kind in kinds:
            for change in CHANGES:
                if change not in HARMLESS or kind in ("step|", "exp_avg_sq|"):
                    yield f"tensor {file[:6]} {kind}: {change}", _with_tensor(file, kind, change)
        yield f"tensor {file[:6]}: another name", _edited(file, _renamed)
        yield f"tensor {file[:6]}: one more", _edited(file, lambda found: {**found, "x|y\x1b[2J": torch.zeros(1)})
        yield f"tensor {file[:6]}: none", _edited(file, lambda found: {})
    yield "tensors: cut in shards that do not fit", _in_odd_shards
    yield "tensors: cut in two shards", _in_shards
    yield "tensors: weights and moments swapped", _swapped


def _with_tensor(file: str, kind: str, change: str) -> Damage:
    def edit(found: Tensors) -> Tensors:
        name = max((one for one in found if one.startswith(kind)), key=lambda one: found[one].numel())
        new = CHANGES[change](found[name])
        rest = {one: tensor for one, tensor in found.items() if one != name}
        return rest if new is None else {**rest, name: new.contiguous()}

    return _edited(file, edit)


def _edited(file: str, edit: Callable[[Tensors], Tensors]) -> Damage:
    def damage(state: Path) -> None:
        found = load_file(state / file)
        save_file({name: tensor.clone() for name, tensor in edit(found).items()}, state / file)
        vouch(state, file)

    return damage


def _renamed(found: Tensors) -> Tensors:
    first = min(found)
    return {("other" if name == first else name): tensor for name, tensor in found.items()}


def _swapped(state: Path) -> None:
    shutil.move(state / WEIGHTS, state / "one")
    shutil.move(state / OPTIMIZER, state / WEIGHTS)
    shutil.move(state / "one", state / OPTIMIZER)
    vouch(state, WEIGHTS, OPTIMIZER)


def _in_shards(state: Path, odd: bool = False) -> None:
    for file in (WEIGHTS, OPTIMIZER):
        part = file.partition("-")[0]
        for shard in range(2):
            tensors = {name: (torch.tensor_split(tensor, 2)[shard] if tensor.dim() else tensor).clone()
                       for name, tensor in load_file(state / file).items()}
            if odd and shard:
                tensors = {name: tensor[..., :1].clone() if tensor.dim() else tensor[None].clone()
                           for name, tensor in tensors.items()}
            save_file(tensors, state / f"{part}-{shard + 1:05d}-of-00002.safetensors")
        (state / file).unlink()
    (state / "manifest.json").write_text("{}", encoding="utf-8")
    vouch(state, *(path.name for path in state.iterdir() if path.name != "manifest.json"))


def _in_odd_shards(state: Path) -> None:
    _in_shards(state, odd=True)


def _file_damages() -> Iterator[tuple[str, Damage]]:
    """Yields each file replaced by something that is no file, or that somebody cut."""
    for file in (WEIGHTS, OPTIMIZER, "state.json", "manifest.json", "../run.json"):
        for what, replace in {
                "a folder": lambda path: path.mkdir(), "a pipe": os.mkfifo,
                "a link to a device": lambda path: path.symlink_to("/dev/zero"),
                "a link to nothing": lambda path: path.symlink_to("/nowhere"),
                "a link to itself": lambda path: path.symlink_to(path)}.items():
            yield f"{Path(file).name} is {what}", _replaced(file, replace)
    for size in (0, 4, 8, 100):
        yield f"weights cut at {size}", lambda state, size=size: (os.truncate(state / WEIGHTS, size),
                                                                   vouch(state, WEIGHTS))
    for header in (b"\xff" * 8, b"\0" * 8, (10**9).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}"):
        yield f"weights begin with {header!r}", lambda state, header=header: (
            (state / WEIGHTS).write_bytes(header), vouch(state, WEIGHTS))


def _replaced(file: str, replace: Callable[[Path], object]) -> Damage:
    def damage(state: Path) -> None:
        (state / file).unlink()
        replace(state / file)

    return damage


def _folder_damages() -> Iterator[tuple[str, Damage]]:
    """Yields links, pipes and folders under names that a run uses for itself; `outside` must not change."""
    def outside(state: Path) -> Path:
        return state.parents[4] / "outside"

    names = {"of the state": f"step-{NEWEST:08d}", "of the next state": f"step-{STEPS:08d}",
             "of an unfinished state": f".step-{STEPS:08d}.tmp", "of a replaced state": f".step-{STEPS:08d}.replaced",
             "of the lock": "../tiny_16_resume.lock", "of the metrics": "../../tiny_16_metrics.jsonl",
             "of an unfinished record": ".run.json.tmp", "of the weights": "../../tiny_16.pth",
             "of unfinished weights": "../../.tiny_16.pth.tmp"}
    makers: dict[str, Callable[[Path, Path], object]] = {
        "a link to a folder": lambda path, target: path.symlink_to(target),
        "a link to a file": lambda path, target: path.symlink_to(target / "precious"),
        "a pipe": lambda path, _: os.mkfifo(path),
        "an empty folder": lambda path, _: path.mkdir(),
        "a link to nothing": lambda path, target: path.symlink_to(target / "new")}
    for where, name in names.items():
        for what, make in makers.items():
            def damage(state: Path, name: str = name, make: Callable[[Path, Path], object] = make) -> None:
                path = state.parent / name
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                make(path, outside(state))

            yield f"{what} under the name {where}", damage
