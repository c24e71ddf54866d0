"""Damages a resume state in every way there is, and looks whether it is recognised and the one before it used.

    python proofs/checkpoint_faults.py --json proofs/results/checkpoint_faults.json

Two states of a tiny model lie in a folder; the newer one is damaged, one fault at a time: cut at every byte, every
single bit flipped, files exchanged, removed, replaced by links and by pickles. Each time the older state must be found,
and the reason told. Ends with status 1 if a damaged state was taken for good.
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
"""The files whose sums the manifest has."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    print(f"| {'damage':<62} | {'tried':>6} | {'not recognised':>14} |\n|{'-' * 64}|{'-' * 7}:|{'-' * 15}:|")
    for row in rows:
        print(f"| {row['damage']:<62} | {row['tried']:>6,} | {len(row['missed']):>14} |")
    missed = [place for row in rows for place in row["missed"]]
    print("\n".join(["", "not recognised:", *missed]) if missed else "\nevery one was recognised")
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/checkpoint_faults.py", *sys.argv[1:]]), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(bool(missed))


def measure(folder: Path) -> list[dict]:
    """Per kind of damage: how many were tried, and which were not recognised."""
    pristine = folder / "pristine"
    write_states(pristine)
    return [try_damage(folder, pristine, name, damage) for name, damage in DAMAGES.items()]


def write_states(folder: Path) -> None:
    """States of steps 1, 2 and 3 of a model with one parameter, all their numbers different."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(model, 1e-2, 0.1)
    checkpoints = Checkpoints(folder, keep=3, ranks=Ranks(0, 1, torch.device("cpu")), fresh=False)
    for step in (1, 2, 3):
        model(torch.rand(1, 2)).sum().backward()
        optimizer.step()
        checkpoints.save(TrainState(step=step), model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def try_damage(folder: Path, pristine: Path, name: str, damage: Callable[[Path, Path], Iterator[str]]) -> dict:
    """Applies one kind of damage to step 2 of a folder that has steps 1 and 2; step 3 is where others come from."""
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
    """One file from another step; then two of them; then all, with its manifest."""
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
    """A pickle that ends this program when it is loaded, under a manifest that vouches for it."""
    for part in SEALED:
        for write in (lambda path: torch.save({"weight": RunsCode()}, path),
                      lambda path: path.write_bytes(pickle.dumps(RunsCode()))):
            write(bad / part)
            vouch(bad, part)
            yield part


def empty_out(bad: Path, _: Path) -> Iterator[str]:
    """Files of zeros of the same length, under a manifest that vouches for them."""
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
    "a byte more at the end of a file": add,
    "a file missing": remove,
    "a file more, which the manifest does not list": add_a_file,
    "files of another step among its own": mix,
    "a symbolic link in place of a file or of the folder": link,
    "a manifest that names files outside or unknown ones": lead_outside,
    "a pickle that runs code, in a manifest that vouches for it": smuggle,
    "files full of zeros, in a manifest that vouches for them": empty_out,
}


if __name__ == "__main__":
    run_program(main)
