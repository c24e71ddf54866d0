"""Reads and writes one resume state: everything a run needs to continue from a step, in full precision.

A state is a folder `step-00000123/`: counters in `state.json`; the model's parameters (of a model with adapters only
those that train) and AdamW's moments as safetensors, `weights-00001-of-00001.safetensors` and
`optimizer-00001-of-00001.safetensors`, or a pair per rank if the model is sharded. The shards of a tensor follow one
another along its first dimension, so a state written by any number of ranks can be read by any other number. A manifest
lists the SHA-256 of each file (manifest.py).

No random state is needed: dropout's is a pure function of (seed, step, rank), set at every step (`loop.seed_step`),
and the data order is one of (seed, epoch).
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minimind_sft.errors import UserError
from minimind_sft.files import read_object, sha256_of_file, sync
from minimind_sft.model.loaded import all_finite
from minimind_sft.model.lora import own_parameters
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.manifest import MANIFEST, Damaged, verify
from minimind_sft.training.parallel import is_sharded, own_part, place

FORMAT = 1
ADDED_LATER = {"best_exact_match", "best_value", "evaluations_without_gain"}
"""Fields that states of earlier versions lack."""
STATE = "state.json"
PART = re.compile(r"(weights|optimizer)-(\d{5})-of-(\d{5})\.safetensors")
DTYPES = {"F32": torch.float32, "F64": torch.float64}


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
    samples_per_step: int = 0
    """Conversations per step over all ranks; another number of ranks divides the same batch differently."""
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
    names = verify(path, lambda name: name == STATE or PART.fullmatch(name) is not None)
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
    try:
        record = read_object(path / STATE)
        version, names_then = record["format"], set(record["state"])
    except (KeyError, TypeError, UserError) as error:
        raise Damaged(f"{STATE} cannot be read ({error})") from error
    if version != FORMAT or names_then | ADDED_LATER != {one.name for one in fields(TrainState)}:
        raise Damaged(f"{STATE} was written by another version of this project")
    values = record["state"]
    state = TrainState(**{"best_value": values["best_eval_loss"], **values})  # earlier versions knew no other value
    if path.name != f"step-{state.step:08d}":
        raise Damaged(f"{STATE} is that of step {state.step}")
    return state


def load_tensors(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 ranks: Ranks) -> None:
    """Loads the tensors of a state into the model, the optimizer and the scaler of every rank.

    The main rank reads the files and sends the others their parts.

    Raises:
        UserError: if they are not the tensors of this model.
    """
    weights, moments = ranks.on_main(lambda: (_kinds_in(path, "weights"), _kinds_in(path, "optimizer")))

    def read(part: str, key: str, kind: tuple[torch.Size, torch.dtype], like: nn.Parameter) -> Tensor:
        shape, dtype = kind
        tensor = _read_tensor(path, part, key) if ranks.is_main else torch.empty(shape, dtype=dtype)
        return place(tensor, like, ranks)

    parameters = own_parameters(model)
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[0]
        raise UserError(f"{path}: not the parameters of this model: {odd} is on one side only")
    for name, parameter in parameters.items():
        shape, _ = weights[name]
        if shape != parameter.shape:
            raise UserError(f"{path}: {name} has shape {tuple(shape)}, the model's has {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.copy_(read("weights", name, weights[name], parameter))
        if not parameter.requires_grad:  # frozen now; if it trained before, its moments are of no use
            continue
        optimizer.state[parameter] = {key.split("|", 1)[0]: read("optimizer", key, kind, parameter)
                                      for key, kind in moments.items() if key.endswith(f"|{name}")}
    scaling = ranks.on_main(lambda: read_object(path / STATE)["scaler"])
    if scaling:  # empty unless the run so far was in float16
        scaler.load_state_dict(scaling)


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
    # Keyed by "<kind>|<parameter name>", which does not depend on how the optimizer groups parameters.
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


def _shards_of(path: Path, part: str) -> list[Path]:
    return sorted(path.glob(f"{part}-*.safetensors"))


def _kinds_in(path: Path, part: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Returns shape and dtype of each unsharded tensor of a state's weights or optimizer, by name."""
    kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for shard in _shards_of(path, part):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (the file is no dict)
                tensor = file.get_slice(name)
                shape, dtype = tensor.get_shape(), DTYPES[tensor.get_dtype()]
                if shape and name in kinds:
                    shape[0] += kinds[name][0][0]
                kinds[name] = (torch.Size(shape), dtype)
    return kinds


def _read_tensor(path: Path, part: str, name: str) -> Tensor:
    """Reads a tensor of a state's weights or optimizer, joined from its shards."""
    shards = []
    for shard in _shards_of(path, part):
        with safe_open(shard, "pt") as file:
            shards.append(file.get_tensor(name))
    return torch.cat(shards) if shards[0].dim() else shards[0]  # a scalar (AdamW's step) is the same in every shard
