"""Prepared data that somebody changed or put other things beside: prepared again, and nothing of others is removed."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hostile.odd_values import ODD_VALUES, fields_of, with_value
from hostile.small_runs import SFT, SmallRun, finished, flags_in, same_result, vouch
from hostile.tries import Try

KIND = "prepared data that somebody changed"

Damage = Callable[[Path], None]


def tries(folder: Path, random: random.Random, count: int) -> Iterator[Try]:
    base = finished(folder / "finished", SFT)
    (prepared,) = [path for path in (base.folder / "out/prepared").iterdir() if path.is_dir()]
    files = sorted(path.name for path in prepared.iterdir())
    listed = [("untouched", lambda prepared: None), *_contents(files), *_kinds(files), *_neighbours()]
    fields = list(_fields(prepared, random))
    chosen = [*listed, *random.sample(fields, max(min(count - len(listed), len(fields)), 0))]
    random.shuffle(chosen)
    for name, damage in chosen[:count]:
        yield _resumed(base, folder, name, damage)


def _resumed(base: SmallRun, folder: Path, name: str, damage: Damage) -> Try:
    outside = folder / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    for file in ("precious", "header.json", "made_by_minimind_sft"):
        (outside / file).write_text("precious", encoding="utf-8")
    run = base.copy(folder / "run")
    (prepared,) = [path for path in (run.folder / "out/prepared").iterdir() if path.is_dir()]
    damage(prepared)
    theirs = [path for path in (run.folder / "out/prepared").rglob("*")
              if "precious" in path.name or (path.is_symlink() and path.parent != prepared)]
    return Try(name, (*flags_in(run.folder, run), "--from_resume", "1"),
               "accepted" if name == "untouched" else "either", check=same_result,
               guarded=(outside, folder / "run/rows.jsonl", *theirs))


def _contents(files: Sequence[str]) -> Iterator[tuple[str, Damage]]:
    """Yields changes of the content of each file, some with checksums that fit."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda whole: b"", "cut by one": lambda whole: whole[:-1], "cut by four": lambda whole: whole[:-4],
        "longer": lambda whole: whole + bytes(4), "zeros": lambda whole: bytes(len(whole)),
        "ones": lambda whole: b"\xff" * len(whole), "backwards": lambda whole: whole[::-1],
        "another byte": lambda whole: bytes([(whole or b"x")[0] ^ 1]) + whole[1:], "twice": lambda whole: whole * 2}
    for file in [name for name in files if "." in name]:
        for what, change in changes.items():
            for forged in (False, True):
                # With a checksum that fits, other tokens cannot be told from the right ones.
                if not forged or (file not in ("manifest.json", "input_ids.bin", "labels.bin")
                                  and what not in ("backwards", "another byte", "zeros")):
                    yield f"{file}: {what}{', forged' * forged}", _changed(file, change, forged)
    for file in ("input_ids.bin", "labels.bin"):
        for what in ("ones", "longer", "cut by one"):
            yield f"{file}: {what}, forged", _changed(file, changes[what], forged=True)


def _changed(file: str, change: Callable[[bytes], bytes], forged: bool) -> Damage:
    def damage(prepared: Path) -> None:
        (prepared / file).write_bytes(change((prepared / file).read_bytes()))
        if forged and (prepared / "manifest.json").exists():
            vouch(prepared, file)

    return damage


def _fields(prepared: Path, random: random.Random) -> Iterator[tuple[str, Damage]]:
    """Yields each field of the header with odd values in its place, with a checksum that fits."""
    header = json.loads((prepared / "header.json").read_text(encoding="utf-8"))
    for path in fields_of(header):
        if path[:2] not in (("counts", "rows"), ("counts", "truncated")):  # only shown
            for value in ODD_VALUES:
                if value != header.get(path[0]):
                    content = json.dumps(with_value(header, path, value)).encode()
                    yield (f"header.json: {'.'.join(map(str, path))} is {ascii(value)[:40]}",
                           _changed("header.json", lambda _, content=content: content, forged=True))


def _kinds(files: Sequence[str]) -> Iterator[tuple[str, Damage]]:
    """Yields each file, and the folder, replaced by something else."""
    makers: dict[str, Callable[[Path, Path], object]] = {
        "a pipe": lambda path, outside: os.mkfifo(path),
        "a folder": lambda path, outside: shutil.copytree(outside, path),
        "a link to a device": lambda path, outside: path.symlink_to("/dev/zero"),
        "a link to a folder": lambda path, outside: path.symlink_to(outside),
        "a link to a file": lambda path, outside: path.symlink_to(outside / "precious"),
        "a link to nothing": lambda path, outside: path.symlink_to(outside / "new"),
        "missing": lambda path, outside: None}
    for name in ("", *files):
        for what, make in makers.items():
            def damage(prepared: Path, name: str = name, make: Callable[[Path, Path], object] = make) -> None:
                path = prepared / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                make(path, prepared.parents[3] / "outside")

            yield f"{name or 'the folder'}: {what}", damage


def _neighbours() -> Iterator[tuple[str, Damage]]:
    """Yields folders and links of others in the folder, while the data have to be prepared again."""
    def names(prepared: Path) -> dict[str, str]:
        return {"a hidden folder": ".cache.tmp", "an unfinished preparation": f".{prepared.name}.tmp",
                "another's unfinished preparation": f".{'0a' * 16}.tmp", "a private folder":
                f".minimind_sft.{'0' * 16}.tmp", "the lock": f".{prepared.name}.lock", "another's data": "0a" * 16}

    for what in names(Path()):
        for kind in ("a folder", "a link", "a file", "a folder with our marker"):
            def damage(prepared: Path, what: str = what, kind: str = kind) -> None:
                shutil.rmtree(prepared)
                path = prepared.parent / names(prepared)[what]
                path.unlink(missing_ok=True)
                if kind == "a link":
                    path.symlink_to(prepared.parents[3] / "outside")
                elif kind == "a file":
                    path.write_text("precious", encoding="utf-8")
                else:
                    path.mkdir()
                    (path / "precious.txt").touch()
                    if "marker" in kind:
                        (path / "made_by_minimind_sft").touch()

            yield f"{kind} in the place of {what}", damage
