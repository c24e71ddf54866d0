"""The files of a resume state: everything that going on from a step needs, in full precision.

A state is a folder `step-00000123/`: `state.json`, and the model's parameters and AdamW's moments as safetensors,
`weights-00001-of-00001.safetensors` and `optimizer-00001-of-00001.safetensors`, or one pair per rank where the model
is sharded. The shards of a tensor follow each other along its first dimension, so that a state made by any number of
ranks is read by any other. The manifest says the SHA-256 of each (manifest.py).

Random state: dropout's is a pure function of (seed, step, rank), set anew at every step (`loop.seed_step`), and the
data order is one of (seed, epoch). The seed and the step are therefore all the random state there is.
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
from minimind_sft.training.manifest import MANIFEST, Damaged, verify
from minimind_sft.training.parallel import is_sharded, own_part

FORMAT = 1
STATE = "state.json"
PART = re.compile(r"(weights|optimizer)-(\d{5})-of-(\d{5})\.safetensors")
DTYPES = {"F32": torch.float32, "F64": torch.float64}


@dataclass
class TrainState:
    """Where a training stands, between two steps."""

    step: int = 0
    """Steps taken: the position in the data."""
    updates: int = 0
    """Optimizer updates made: the position in the schedule; a step that changes nothing makes none."""
    bad_steps: int = 0
    """Steps skipped because their loss or gradient was not finite."""
    bad_steps_in_a_row: int = 0
    samples_per_step: int = 0
    """Conversations per step, over all ranks; another number of ranks divides the same batch anew."""
    supervised_tokens: int = 0
    eval_loss: float | None = None
    """The validation loss of the weights as they stand; None where they were not evaluated."""
    best_eval_loss: float | None = None
    finished: bool = False
    identity: dict = field(default_factory=dict)
    """What the run is of (model, tokenizer, data, ...); a resumed run must agree (see `identity.run_identity`)."""
    settings: dict = field(default_factory=dict)
    """The settings that decide what is learned; a resumed run tells where its own differ."""


def read_state(path: Path) -> TrainState:
    """The counters of the state at `path`, after all of its files were verified.

    Raises:
        Damaged: naming the file and what is wrong with it.
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
            raise Damaged(f"{name} is no safetensors file ({error})") from error
    try:
        record = read_object(path / STATE)
        told = record["format"], set(record["state"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise Damaged(f"{STATE} cannot be read ({error})") from error
    if told != (FORMAT, {one.name for one in fields(TrainState)}):
        raise Damaged(f"{STATE} was written by another version of this project")
    state = TrainState(**record["state"])
    if path.name != f"step-{state.step:08d}":
        raise Damaged(f"{STATE} is that of step {state.step}")
    return state


def own_shard(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world_size: int, *,
              copied: bool) -> dict[str, dict[str, Tensor]]:
    """What this rank has to write, {file: {name: tensor}}; of a model that is not sharded only the main rank has some.

    Args:
        copied: as copies, which further training does not change, instead of the tensors themselves.
    """
    shards = world_size if is_sharded(model) else 1
    if rank >= shards:
        return {}
    weights = dict(model.named_parameters())
    assert is_sharded(model) == all(isinstance(weight, DTensor) for weight in weights.values()), "see parallel.reshard"
    # By "<kind>|<parameter name>", so that each finds its parameter again however the optimizer groups them.
    moments = {f"{kind}|{name}": tensor for name, parameter in weights.items()
               for kind, tensor in optimizer.state.get(parameter, {}).items()}
    return {
        _shard_name(part, rank + 1, shards): {
            name: own_part(tensor).detach().to("cpu", copy=copied).contiguous() for name, tensor in tensors.items()}
        for part, tensors in (("weights", weights), ("optimizer", moments))
    }


def write_shard(folder: Path, files: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """Writes what `own_shard` gave; the SHA-256 of each file by its name.

    Raises:
        UserError: for a tensor that is not finite.
    """
    sums = {}
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{name} is not finite")
        save_file(tensors, folder / file)
        sync(folder / file)
        sums[file] = sha256_of_file(folder / file)
    return sums


def _shard_name(part: str, shard: int, shards: int) -> str:
    return f"{part}-{shard:05d}-of-{shards:05d}.safetensors"


def _shard_names(shards: int) -> list[str]:
    return [_shard_name(part, shard, shards) for shard in range(1, shards + 1) for part in ("weights", "optimizer")]


def _shards_of(path: Path, part: str) -> list[Path]:
    return sorted(path.glob(f"{part}-*.safetensors"))


def tensors_in(path: Path, part: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of each whole tensor of a state's weights or optimizer, by name."""
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


def read_whole(path: Path, part: str, name: str) -> Tensor:
    """A tensor of a state's weights or optimizer, put together from its shards."""
    shards = []
    for shard in _shards_of(path, part):
        with safe_open(shard, "pt") as file:
            shards.append(file.get_tensor(name))
    return torch.cat(shards) if shards[0].dim() else shards[0]  # a scalar (AdamW's step) is the same in every shard
