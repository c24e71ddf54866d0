"""Reads and writes one resume state: everything a run needs to continue from a step, in full precision.

A state is a folder `step-00000123/`: counters in `state.json`; the model's parameters (of a model with adapters only
those that train) and AdamW's moments as safetensors, `weights-00001-of-00001.safetensors` and
`optimizer-00001-of-00001.safetensors`, or a pair per rank if the model is sharded. The shards of a tensor follow one
another along its first dimension, so a state written by any number of ranks can be read by any other number. A manifest
lists the SHA-256 of each file (manifest.py).

No random state is needed: dropout's is a pure function of (seed, step, rank), set at every step (`loop.seed_step`),
and the data order is one of (seed, epoch).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minimind_sft.errors import UserError, first_line
from minimind_sft.files import read_object, sha256_of_file
from minimind_sft.manifest import MANIFEST, Damaged, verify
from minimind_sft.model.loaded import all_finite
from minimind_sft.model.lora import own_parameters
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.freezing import frozen_names
from minimind_sft.training.parallel import is_sharded, own_part, place
from minimind_sft.training.state_fields import check_scaler, check_state
from minimind_sft.training.state_tensors import (
    StateTensors,
    Stored,
    check_moments,
    check_weights,
    fresh_moments,
    kept_by,
)
from minimind_sft.writing import sync

FORMAT = 1
ADDED_LATER = {"best_exact_match", "best_value", "evaluations_without_gain"}
"""Fields that states of earlier versions lack."""
STATE = "state.json"
PART = re.compile(r"(weights|optimizer)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass
class TrainState:
    """How far a run is, between two steps."""

    step: int = 0
    """Steps taken: the position in the data."""
    updates: int = 0
    """Updates made: the position in the schedule. A skipped step makes none."""
    bad_steps: int = 0
    """Steps skipped because their loss or gradient was not finite."""
    bad_steps_in_a_row: int = 0
    samples_per_step: int = 1
    """Conversations or chunks of text per step, over all ranks; another number of ranks divides the same batch."""
    supervised_tokens: int = 0
    eval_loss: float | None = None
    """The validation loss of the weights as they are; None if it has not been measured."""
    best_eval_loss: float | None = None
    """The validation loss of the best weights, while they are on disk."""
    best_exact_match: float | None = None
    """Their share of exact answers."""
    best_value: float | None = None
    """The lowest validation loss (or, with --best_by exact_match, negated share of exact answers) that was measured."""
    evaluations_without_gain: int = 0
    """Evaluations in a row that did not improve `best_value`."""
    finished: bool = False
    identity: dict = field(default_factory=dict)
    """Identifies the run: model, tokenizer, data, ... A resumed run must agree (`identity.run_identity`)."""
    settings: dict = field(default_factory=dict)
    """Settings that decide what is learned. A resumed run may change them, and says so."""

    def forget_best(self) -> None:
        """Makes the next evaluation the best: earlier ones measured something else."""
        self.best_eval_loss = self.best_exact_match = self.best_value = None
        self.evaluations_without_gain = 0


def read_state(path: Path) -> TrainState:
    """Reads the counters of a state after verifying all of its files.

    Raises:
        Damaged: naming the file and its fault.
    """
    names = verify(path, is_part)
    if set(names) != {STATE, *_shard_names(sum(name.startswith("weights") for name in names))}:
        raise Damaged(f"{MANIFEST} does not list the parts of one resume state, but {', '.join(names)}")
    extra = sorted(file.name for file in path.iterdir() if file.name not in names and file.suffix == ".safetensors")
    if extra:
        raise Damaged(f"{extra[0]} is not in {MANIFEST}")
    for name in set(names) - {STATE}:
        try:
            with safe_open(path / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise Damaged(f"{name} is not a safetensors file ({error})") from error
    state = _counters(_record(path))
    if path.name != f"step-{state.step:08d}":
        raise Damaged(f"{STATE} is that of step {state.step}")
    return state


def is_part(name: str) -> bool:
    """Whether a file of that name belongs into a state, beside the manifest."""
    return name == STATE or PART.fullmatch(name) is not None


def has_only_parts(path: Path) -> bool:
    """Whether nothing is in the folder of a state but the files of one."""
    return all((is_part(entry.name) or entry.name == MANIFEST) and entry.is_file(follow_symlinks=False)
               for entry in os.scandir(path))


def load_tensors(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 ranks: Ranks) -> None:
    """Loads the tensors of a state into the model, the optimizer and the scaler of every rank.

    The main rank reads the files and sends the others their parts, once it has checked all of them.

    Raises:
        UserError: if they are not the tensors of this model, or not such that training can go on with them.
        Damaged: if the counters cannot be read.
    """
    parameters, kinds = own_parameters(model), kept_by(optimizer)
    stored, scaling = ranks.on_main(lambda: _checked(path, model, kinds))

    def read(part: str, name: str, like: nn.Parameter) -> Tensor:
        shape, dtype = stored[part][name]
        tensor = StateTensors(path, part).read(name) if ranks.is_main else torch.empty(shape, dtype=dtype)
        return place(tensor, like, ranks)

    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(read("weights", name, parameter))
        if not parameter.requires_grad:  # frozen now; if it trained before, its moments are of no use
            continue
        has_moments = all(f"{kind}|{name}" in stored["optimizer"] for kind in kinds)
        optimizer.state[parameter] = ({kind: read("optimizer", f"{kind}|{name}", parameter) for kind in kinds}
                                      if has_moments else fresh_moments(kinds, parameter))
    if scaling:  # empty unless the run so far was in float16
        scaler.load_state_dict(scaling)


def _record(path: Path) -> dict[str, Any]:
    """Reads the counters of a state as JSON.

    Raises:
        Damaged: if they are not those of a state that this version reads.
    """
    try:
        record = read_object(path / STATE)
    except UserError as error:
        raise Damaged(f"it cannot be read: {error}") from error
    values = record.get("state")
    names = {one.name for one in fields(TrainState)}
    if (record.get("format") != FORMAT or not isinstance(values, dict) or "scaler" not in record
            or values.keys() | ADDED_LATER != names):
        raise Damaged(f"{STATE} was written by another version of this project")
    try:
        check_state(values)
        check_scaler(record["scaler"])
    except Damaged as fault:
        raise Damaged(f"{STATE}: {fault}") from fault
    return record


def _counters(record: dict[str, Any]) -> TrainState:
    values = record["state"]
    return TrainState(**{"best_value": values["best_eval_loss"], **values})  # earlier versions knew no other value


def _checked(path: Path, model: nn.Module, kinds: Mapping[str, Stored | None]
             ) -> tuple[dict[str, dict[str, Stored]], dict[str, Any]]:
    """Checks all tensors of a state against the model; returns {part: {name: shape and dtype}} and the scaler's state.
    """
    record, parameters = _record(path), own_parameters(model)
    state = _counters(record)
    weights, moments = (StateTensors(path, part) for part in ("weights", "optimizer"))
    check_weights(weights, parameters)
    try:
        frozen_then = frozen_names(model, state.settings.get("freeze", ()))
    except ValueError as error:
        raise UserError(f"{path}: {STATE}: settings: {first_line(error)}") from error
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad and name not in frozen_then]
    check_moments(moments, parameters, trained, state.updates, kinds)
    return {"weights": weights.stored, "optimizer": moments.stored}, record["scaler"]


def own_shard(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world_size: int, *,
              copied: bool) -> dict[str, dict[str, Tensor]]:
    """Collects what this rank has to write, {file: {name: tensor}}; unless the model is sharded, only the main rank
    has anything.

    Args:
        copied: copies the tensors, so that further training does not change them.
    """
    shards = world_size if is_sharded(model) else 1
    if rank >= shards:
        return {}
    weights = own_parameters(model)
    assert is_sharded(model) == all(isinstance(weight, DTensor) for weight in weights.values()), "see parallel.reshard"
    # Keyed as state_tensors.py says.
    moments = {f"{kind}|{name}": tensor for name, parameter in weights.items()
               for kind, tensor in optimizer.state.get(parameter, {}).items()}
    return {
        _shard_name(part, rank + 1, shards): {
            name: own_part(tensor).detach().to("cpu", copy=copied).contiguous() for name, tensor in tensors.items()}
        for part, tensors in (("weights", weights), ("optimizer", moments))
    }


def write_shard(folder: Path, files: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """Writes what `own_shard` collected; returns the SHA-256 of each file by its name.

    Raises:
        UserError: for a tensor that is not finite.
    """
    checksums = {}
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if tensor.numel() and not all_finite(tensor):
                raise UserError(f"{name} is not finite")
        save_file(tensors, folder / file)
        sync(folder / file)
        checksums[file] = sha256_of_file(folder / file)
    return checksums


def _shard_name(part: str, shard: int, shards: int) -> str:
    return f"{part}-{shard:05d}-of-{shards:05d}.safetensors"


def _shard_names(shards: int) -> list[str]:
    return [_shard_name(part, shard, shards) for shard in range(1, shards + 1) for part in ("weights", "optimizer")]
