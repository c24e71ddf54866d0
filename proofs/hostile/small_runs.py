"""A finished run of a tiny model, made once for each kind; tries change its files, which a resumed run then reads."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from hostile.programs import made_once, succeed
from hostile.tries import Outcome
from minimind_sft.files import sha256_of_file
from minimind_sft.paths import REPOSITORY

SFT, LORA = "trainer/train_full_sft.py", "trainer/train_lora.py"
TOKENIZER = str(REPOSITORY / "tests/written_by_0_1/tokenizer")
COMMON = ("--device", "cpu", "--dtype", "float32", "--batch_size", "2", "--eval_samples", "0", "--eval_share", "0",
          "--log_interval", "1", "--save_interval", "1", "--max_steps")
DATA = ("--data_path", "rows.jsonl", "--tokenizer_path", TOKENIZER, "--save_dir", "out", *COMMON)
STEPS = 4
"""Steps of a finished run; the states that are changed are those of the two steps before the last."""


@dataclass(frozen=True)
class SmallRun:
    """A run that has finished in `folder`; `command` resumes it there, `result` is the file it writes."""

    folder: Path
    command: tuple[str, ...]
    result: str

    @property
    def states(self) -> Path:
        return self.folder / "out/checkpoints" / f"{Path(self.result).stem}_resume"

    def copy(self, to: Path) -> "SmallRun":
        """Copies the run, without its last state and its result, as if it had been killed before its last step."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        copied = SmallRun(to, self.command, self.result)
        shutil.rmtree(copied.states / f"step-{STEPS:08d}")
        (to / "out" / self.result).rename(to / "expected")
        return copied


def finished(folder: Path, program: str) -> SmallRun:
    """Trains a tiny model, or with train_lora.py an adapter for one, and copies the run to `folder`."""
    which = ("--lora_name", "tiny", "--lora_rank", "2") if program == LORA else ("--save_weight", "tiny")
    flags = (*DATA, str(STEPS), "--from_weight", "base", *which, "--keep_checkpoints", "3")

    def make(made: Path) -> None:
        shutil.copytree(made_once("base", _make_base), made, dirs_exist_ok=True)
        succeed(made, program, *flags)

    shutil.copytree(made_once(f"run of {Path(program).stem}", make), folder)
    (result,) = [path for path in (folder / "out").glob("*tiny_16.*") if path.suffix in (".pth", ".safetensors")]
    (folder / "out" / f"{result.stem}_report.html").unlink(missing_ok=True)
    return SmallRun(folder, (program, *flags), result.name)


def _make_base(folder: Path) -> None:
    rows = [{"kind": "ab"[i % 2], "conversations": [{"role": "user", "content": f"Say {i}."},
                                                    {"role": "assistant", "content": f"It is {i}."}]}
            for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    succeed(folder, SFT, *DATA, "2", "--from_weight", "none", "--hidden_size", "16", "--num_hidden_layers", "1",
            "--save_weight", "base")


def flags_in(folder: Path, run: SmallRun) -> tuple[str, ...]:
    """Returns the command with its paths those of a copy of the run in `folder`."""
    places = {"rows.jsonl": str(folder / "rows.jsonl"), "out": str(folder / "out")}
    return tuple(places.get(word, word) for word in run.command)


def same_result(outcome: Outcome) -> str | None:
    """Compares the tensors that the resumed run wrote with those from before anybody changed its files."""
    folder = outcome.folder / "run"
    for result in [path for path in (folder / "out").glob("*tiny_16.*") if path.suffix in (".pth", ".safetensors")]:
        found, expected = (load_file(path) if result.suffix == ".safetensors" else torch.load(path, weights_only=True)
                           for path in (result, folder / "expected"))
        same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        return None if same else "the resumed run has other weights"
    return "there are no weights"


def vouch(folder: Path, *names: str) -> None:
    """Writes the checksums of files into the manifest of their folder, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {name: sha256_of_file(folder / name) for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
