"""The resume state: everything that going on from a step needs, in full precision.

A state is a folder `step-00000123/` with `weights.safetensors`, `optimizer.safetensors` and `state.json`, and a
`manifest.json` with the SHA-256 of each. It is written beside its final name and renamed, so that it is there whole or
not at all; what was damaged afterwards is recognised by its sums, and the newest state that verifies is used.

Random state: dropout's is a pure function of (seed, step, rank), set anew at every step (`loop.seed_step`), and the
data order is one of (seed, epoch). The seed and the step are therefore all the random state there is.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file, sync

MANIFEST = "manifest.json"
PARTS = ("weights.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class TrainState:
    """Where a training stands, between two steps."""

    step: int = 0
    """Steps taken: the position in the data."""
    updates: int = 0
    """Optimizer updates made: the position in the schedule; a step whose gradient overflowed makes none."""
    bad_steps: int = 0
    """Steps skipped because their gradient was not finite."""
    bad_steps_in_a_row: int = 0
    samples_per_step: int = 0
    """Conversations per step, over all ranks; another number of ranks divides the same batch anew."""
    supervised_tokens: int = 0
    eval_loss: float | None = None
    """The validation loss of the weights as they stand; None where they were not evaluated."""
    best_eval_loss: float | None = None
    finished: bool = False
    run: dict = field(default_factory=dict)
    """What the run was started with; a resumed run must agree (see `recipe.run_identity`)."""


def save_resume_state(folder: Path, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer,
                      scaler: torch.amp.GradScaler, keep: int) -> Path:
    """Writes `folder/step-<step>`, then removes the oldest states beyond the `keep` newest."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(_cpu_tensors(dict(model.named_parameters())), temporary / "weights.safetensors")
        save_file(_cpu_tensors(_optimizer_tensors(model, optimizer)), temporary / "optimizer.safetensors")
        record = {"state": asdict(state), "scaler": scaler.state_dict()}
        (temporary / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        sums = {name: sha256_of_file(temporary / name) for name in PARTS}
        (temporary / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _states(folder)[keep:]:
        shutil.rmtree(old)
    return final


def find_resume_state(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest state in `folder` that verifies (or None), and why each newer one was passed over."""
    refused = []
    for path in _states(folder):
        fault = _fault(path)
        if fault is None:
            return path, refused
        refused.append(f"{path}: {fault}")
    return None, refused


def read_train_state(path: Path) -> TrainState:
    return TrainState(**json.loads((path / "state.json").read_text(encoding="utf-8"))["state"])


def load_resume_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                      scaler: torch.amp.GradScaler) -> None:
    """Puts the state at `path` into the model, the optimizer and the scaler.

    Raises:
        UserError: if its tensors are not those of this model.
    """
    try:
        weights, moments = load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    parameters = dict(model.named_parameters())
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[0]
        raise UserError(f"{path}/weights.safetensors: not this model's parameters: {odd} is on one side only")
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise UserError(f"{path}/weights.safetensors: {name} has shape {tuple(weights[name].shape)}, "
                            f"the model's has {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.copy_(weights[name])
        kinds = [key.split("|", 1)[0] for key in moments if key.endswith(f"|{name}")]
        optimizer.state[parameter] = {
            kind: moments[f"{kind}|{name}"].to(parameter.device) for kind in kinds
        }
    scaler.load_state_dict(json.loads((path / "state.json").read_text(encoding="utf-8"))["scaler"])


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def _fault(path: Path) -> str | None:
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if not isinstance(sums, dict) or set(sums) != set(PARTS):
        return f"{MANIFEST} does not list {', '.join(PARTS)}"
    for name, expected in sums.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of_file(path / name) != expected:
            return f"{name} was damaged: its SHA-256 is not the one in {MANIFEST}"
    return None


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's tensors by "<kind>|<parameter name>", so that they find their parameter whatever the grouping."""
    return {f"{kind}|{name}": tensor for name, parameter in model.named_parameters()
            for kind, tensor in optimizer.state.get(parameter, {}).items()}


def _cpu_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
