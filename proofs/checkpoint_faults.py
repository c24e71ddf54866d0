"""Proves that a damaged resume state is detected, and the previous good one used instead.

    python proofs/checkpoint_faults.py --json proofs/results/checkpoint_faults.json

A folder holds two states of a tiny model. The program damages the newer one, one fault at a time: it cuts each file at
every byte, flips every single bit, swaps files, removes them, and replaces them with links and pickles. Each time the
older state must be chosen and the reason reported. Exits with status 1 if a damaged state passed as good.
"""

import argparse
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from minimind_sft.errors import run_program
from minimind_sft.files import sha256_of_file
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.resume_state import TrainState

STATE = "state.json"
MANIFEST = "manifest.json"
PARTS = ("weights-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", STATE, MANIFEST)
SEALED = PARTS[:3]
"""The files whose checksums are in the manifest."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    print(f"| {'damage':<62} | {'tried':>6} | {'missed':>14} |\n|{'-' * 64}|{'-' * 7}:|{'-' * 15}:|")
    for row in rows:
        print(f"| {row['damage']:<62} | {row['tried']:>6,} | {len(row['missed']):>14} |")
    missed = [place for row in rows for place in row["missed"]]
    print("\n".join(["", "missed:", *missed]) if missed else "\nall were detected")
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/checkpoint_faults.py", *sys.argv[1:]]), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(bool(missed))


def measure(folder: Path) -> list[dict]:
    """Tries each kind of damage; returns how many faults were tried and which were missed."""
    pristine = folder / "pristine"
    write_states(pristine)
    return [try_damage(folder, pristine, name, damage) for name, damage in DAMAGES.items()]


def write_states(folder: Path) -> None:
    """Writes the states of steps 1, 2 and 3 of a model with one parameter; no two numbers are equal."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, 1e-2, 0.1)
    checkpoints = Checkpoints(folder, keep=3, ranks=Ranks(0, 1, torch.device("cpu")), fresh=False)
    for step in (1, 2, 3):
        model(torch.rand(1, 2)).sum().backward()
        optimizer.step()
        checkpoints.save(TrainState(step=step), model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def try_damage(folder: Path, pristine: Path, name: str, damage: Callable[[Path, Path], Iterator[str]]) -> dict:
    """Applies one kind of damage to step 2 of a folder with steps 1 and 2; foreign files come from step 3."""
    work, other = folder / "work", pristine / "step-00000003"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
    shutil.rmtree(work / other.name)
    good, bad = work / "step-00000001", work / "step-00000002"
    tried, missed = 0, []
    for place in tqdm(damage(bad, other), desc=name, unit="", leave=False, delay=1):
        path, _, refused = Checkpoints(work, keep=3, ranks=Ranks(0, 1, torch.device("cpu")), fresh=False).newest()
        tried += 1
        if path != good or len(refused) != 1 or not refused[0].startswith(f"{bad}: "):
            missed.append(f"{name}: {place}")
        restore(bad, pristine)
    return {"damage": name, "tried": tried, "missed": missed}


def restore(state: Path, pristine: Path) -> None:
    if state.is_symlink():
        state.unlink()
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(pristine / state.name, state)


def cut(bad: Path, _: Path) -> Iterator[str]:
    for part in PARTS:
        for length in range((bad / part).stat().st_size):
            os.truncate(bad / part, length)
            yield f"{part}, {length} bytes left"


def flip(bad: Path, _: Path, every: int = 1) -> Iterator[str]:
    for part in PARTS:
        content = (bad / part).read_bytes()
        for bit in range(0, 8 * len(content), every):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (bad / part).write_bytes(flipped)
            yield f"{part}, bit {bit}"


def add(bad: Path, _: Path) -> Iterator[str]:
    for part in PARTS:
        for byte in (b"\0", b"}", b"x"):
            (bad / part).write_bytes((bad / part).read_bytes() + byte)
            yield f"{part}, {byte!r} at its end"


def add_a_file(bad: Path, other: Path) -> Iterator[str]:
    for name in ("weights-00002-of-00002.safetensors", "optimizer-00000-of-00001.safetensors"):
        shutil.copy(other / PARTS[0], bad / name)
        yield name


def remove(bad: Path, _: Path) -> Iterator[str]:
    for part in PARTS:
        (bad / part).unlink()
        yield part


def mix(bad: Path, other: Path) -> Iterator[str]:
    """Takes one file from another step, then two, then all of them, manifest included."""
    for first in PARTS:
        for second in PARTS:
            for part in (first, second):
                shutil.copy(other / part, bad / part)
            yield f"{first} and {second}"
    for part in PARTS:
        shutil.copy(other / part, bad / part)
    yield "all files"


def link(bad: Path, other: Path) -> Iterator[str]:
    for part in PARTS:
        (bad / part).unlink()
        (bad / part).symlink_to(bad.parent.parent / "pristine" / bad.name / part)  # the right content, from elsewhere
        yield part
    shutil.rmtree(bad)
    bad.symlink_to(bad.parent.parent / "pristine" / bad.name)
    yield "the folder"


def lead_outside(bad: Path, _: Path) -> Iterator[str]:
    for name in ("../step-00000001/state.json", "/etc/hostname", "a/../state.json", "..", "", "model.py"):
        manifest = json.loads((bad / MANIFEST).read_text())
        (bad / MANIFEST).write_text(json.dumps(manifest | {name: "0" * 64}))
        yield repr(name)


class RunsCode:
    def __reduce__(self):
        return os.abort, ()


def smuggle(bad: Path, _: Path) -> Iterator[str]:
    """Plants a pickle that ends this program when loaded, with a manifest that lists its checksum."""
    for part in SEALED:
        for write in (lambda path: torch.save({"weight": RunsCode()}, path),
                      lambda path: path.write_bytes(pickle.dumps(RunsCode()))):
            write(bad / part)
            vouch(bad, part)
            yield part


def empty_out(bad: Path, _: Path) -> Iterator[str]:
    """Fills files with zeros, with a manifest that lists their checksums."""
    for part in SEALED:
        (bad / part).write_bytes(bytes((bad / part).stat().st_size))
        vouch(bad, part)
        yield part


def vouch(state: Path, part: str) -> None:
    manifest = json.loads((state / MANIFEST).read_text())
    (state / MANIFEST).write_text(json.dumps(manifest | {part: sha256_of_file(state / part)}))


DAMAGES: dict[str, Callable[[Path, Path], Iterator[str]]] = {
    "a file cut, at each of its bytes": cut,
    "one bit flipped, each bit of each file": flip,
    "an extra byte at the end of a file": add,
    "a file missing": remove,
    "an extra file that the manifest does not list": add_a_file,
    "files of another step among its own": mix,
    "a symbolic link in place of a file or of the folder": link,
    "a manifest that names files outside or unknown ones": lead_outside,
    "a pickle that runs code, with its checksum in the manifest": smuggle,
    "files full of zeros, with their checksums in the manifest": empty_out,
}


if __name__ == "__main__":
    run_program(main)
