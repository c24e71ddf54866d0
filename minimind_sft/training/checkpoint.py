"""The resume state: everything that going on from a step needs, in full precision.

A state is a folder `step-00000123/`: `state.json`, and the model's parameters and AdamW's moments as safetensors,
`weights-00001-of-00001.safetensors` and `optimizer-00001-of-00001.safetensors`, or one pair per rank where the model
is sharded. The shards of a tensor follow each other along its first dimension, so that a state made by any number of
ranks is read by any other.

A state is written beside its final name and renamed, so that it is there whole or not at all; what was damaged
afterwards is recognised (see `manifest.py`), and the newest state that verifies is used.

Random state: dropout's is a pure function of (seed, step, rank), set anew at every step (`loop.seed_step`), and the
data order is one of (seed, epoch). The seed and the step are therefore all the random state there is.
"""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minimind_sft.errors import UserError
from minimind_sft.files import FolderLock, sha256_of_file, sync
from minimind_sft.training.distributed import Ranks, under_torchrun
from minimind_sft.training.manifest import MANIFEST, Damaged, read_json, verify
from minimind_sft.training.parallel import is_sharded, own_part, place

FORMAT = 1
STATE = "state.json"
PART = re.compile(r"(weights|optimizer)-(\d{5})-of-(\d{5})\.safetensors")
DTYPES = {"F32": torch.float32, "F64": torch.float64}
FOLDER = re.compile(r"step-(\d{8,})")


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


class Found(NamedTuple):
    """The newest good state of a folder (None where there is none), and why each newer one was passed over."""

    path: Path | None
    state: TrainState | None
    refused: list[str]


class Checkpoints:
    """The resume states of one training, in a folder that no other process writes to meanwhile.

    A context: entering takes the folder's lock and, for a training that does not go on from an earlier one
    (`fresh`), sets that one's states aside in `<folder>.previous`; leaving puts them back if this training never
    came to `begin` (not under torchrun: it may start this one again, which then must not go on from the earlier one).

    Every method is called by all ranks. What fails on one of them is a ProcessLost on the others.

    Raises:
        UserError: on entering, if another process holds the folder.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks, fresh: bool):
        self.folder, self.keep, self.ranks, self.fresh = folder, keep, ranks, fresh
        self.previous = folder.with_name(folder.name + ".previous")
        self.was_set_aside = False
        self.has_begun = False
        self._lock = FolderLock(folder.with_name(folder.name + ".lock"))
        self._verified: set[Path] = set()

    def __enter__(self) -> Self:
        self.was_set_aside = self.ranks.on_main(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ranks.is_main:
            if self.was_set_aside and not self.has_begun and not self._states() and not under_torchrun():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.previous.rename(self.folder)
            self._lock.release()

    def check_shared(self) -> None:
        """
        Raises:
            UserError: on a rank that does not see the main rank's folder, where a sharded state could not be written.
        """
        holder = self.ranks.on_main(lambda: self._lock.holder)

        def look() -> None:
            # Not on the main rank: closing the file anywhere in the process that holds the lock would let it go.
            if not self.ranks.is_main and not (
                    self._lock.path.is_file() and self._lock.path.read_text(encoding="utf-8") == holder):
                raise UserError(f"--parallel fsdp: {self.folder} is not the folder that the main rank sees; every rank "
                                "writes its shard, so --save_dir must be on a file system that all of them share")

        self.ranks.on_each(look)

    def begin(self) -> None:
        """From here on this training writes files of its own."""
        self.has_begun = True

    def newest(self) -> Found:
        """The newest state that verifies; all ranks learn what the main one found.

        Raises:
            UserError: if the main rank has none, but another one does, on a disk of its own.
        """
        found = self.ranks.on_main(self._newest)
        elsewhere = self.ranks.on_each(lambda: [str(path) for path in self._states()])
        for rank, states in enumerate(elsewhere):
            if found.path is None and states and not elsewhere[0]:
                raise UserError(f"the main rank has no resume state in {self.folder}, but rank {rank} has {states[0]}: "
                                "copy it to the main rank's machine, or start without --from_resume 1")
        return found

    def save(self, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer,
             scaler: torch.amp.GradScaler) -> None:
        """Writes `step-<step>`, then removes the oldest states beyond the `keep` newest that verify.

        Every rank calls it. Where the model is sharded each writes its own part, so that the folder must lie on a
        file system that all of them see.

        Raises:
            UserError: if it cannot be written or a tensor is not finite; older states stay.
        """
        final = self.folder / f"step-{state.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        shards = self.ranks.world_size if is_sharded(model) else 1
        record = {"format": FORMAT, "state": asdict(state), "scaler": scaler.state_dict()}
        try:
            self.ranks.on_main(lambda: _make_empty(temporary))
            sums = self.ranks.on_each(
                lambda: _write_shard(temporary, self.ranks.rank, shards, model, optimizer))
            self.ranks.on_main(lambda: self._seal(temporary, final, record, sums))
        except (OSError, SafetensorError, UserError) as error:
            raise UserError(f"{final}: this resume state cannot be written ({_reason(error)}); "
                            f"the ones before it are untouched") from error
        finally:
            if self.ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
             scaler: torch.amp.GradScaler) -> None:
        """Puts the state at `path` into the model, the optimizer and the scaler of every rank.

        The main rank reads, the others get their part from it.

        Raises:
            UserError: if its tensors are not those of this model.
        """
        weights, moments = self.ranks.on_main(lambda: (_tensors_in(path, "weights"), _tensors_in(path, "optimizer")))
        parameters = dict(model.named_parameters())
        if set(weights) != set(parameters):
            odd = sorted(set(weights) ^ set(parameters))[0]
            raise UserError(f"{path}: not the parameters of this model: {odd} is on one side only")
        for name, parameter in parameters.items():
            shape, _ = weights[name]
            if shape != parameter.shape:
                raise UserError(f"{path}: {name} has shape {tuple(shape)}, the model's has {tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(self._read(path, "weights", name, weights[name], parameter))
            optimizer.state[parameter] = {
                key.split("|", 1)[0]: self._read(path, "optimizer", key, kind, parameter)
                for key, kind in moments.items() if key.endswith(f"|{name}")
            }
        scaling = self.ranks.on_main(lambda: read_json(path / STATE)["scaler"])
        if scaling:  # nothing, where the run so far was not in float16
            scaler.load_state_dict(scaling)

    def _read(self, path: Path, part: str, key: str, kind: tuple[torch.Size, torch.dtype],
              like: nn.Parameter) -> Tensor:
        """A tensor of the state, spread over the ranks as `like` is."""
        shape, dtype = kind
        whole = _read_whole(path, part, key) if self.ranks.is_main else torch.empty(shape, dtype=dtype)
        return place(whole, like, self.ranks)

    def _open(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        sync(self.folder.parent)
        self._lock.take()
        for left_over in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        for replaced in self.folder.glob(".step-*.replaced"):  # killed before the new one had its name
            final = self.folder / replaced.name.removeprefix(".").removesuffix(".replaced")
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(final)
        if not (self.fresh and self._states()):
            return False
        if self.previous.is_symlink():
            self.previous.unlink()
        shutil.rmtree(self.previous, ignore_errors=True)
        self.folder.rename(self.previous)
        self.folder.mkdir()
        return True

    def _newest(self) -> Found:
        refused = []
        for path in self._states():
            try:
                state = read_state(path)
            except Damaged as fault:
                refused.append(f"{path}: {fault}")
                continue
            self._verified.add(path)
            self._prune()  # the training before may have been killed before it came to that
            return Found(path, state, refused)
        return Found(None, None, refused)

    def _seal(self, temporary: Path, final: Path, record: dict, sums: list[dict[str, str]]) -> None:
        (temporary / STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        manifest = {name: sha for of_rank in sums for name, sha in of_rank.items()}
        manifest[STATE] = sha256_of_file(temporary / STATE)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (temporary / STATE, temporary / MANIFEST, temporary):
            sync(path)
        replaced = final.with_name(f".{final.name}.replaced")
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        try:
            read_state(final)
        except Damaged as fault:
            raise UserError(f"read back, it is damaged: {fault}") from fault
        self._verified.add(final)
        self._prune()

    def _prune(self) -> None:
        """Keeps the `keep` newest good states; a damaged one is no reason to remove a good one."""
        good = 0
        for path in self._states():
            if good == self.keep:
                self._remove(path)
            elif path in self._verified or _is_good(path):
                self._verified.add(path)
                good += 1

    def _remove(self, path: Path) -> None:
        """Out of sight at once, so that a half-removed state is never met; what cannot be removed stays."""
        hidden = path.with_name(f".{path.name}.removed.tmp")
        shutil.rmtree(hidden, ignore_errors=True)
        with suppress(OSError):
            path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _states(self) -> list[Path]:
        """Newest first."""
        named = [(int(match[1]), path) for path in self.folder.glob("step-*")
                 if path.is_dir() and (match := FOLDER.fullmatch(path.name))]
        return [path for _, path in sorted(named, reverse=True)]


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
        record = read_json(path / STATE)
        told, known = (record["format"], set(record["state"])), (FORMAT, {one.name for one in fields(TrainState)})
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise Damaged(f"{STATE} cannot be read ({error})") from error
    if told != known:
        raise Damaged(f"{STATE} was written by another version of this project")
    state = TrainState(**record["state"])
    if path.name != f"step-{state.step:08d}":
        raise Damaged(f"{STATE} is that of step {state.step}")
    return state


def _is_good(path: Path) -> bool:
    try:
        read_state(path)
    except Damaged:
        return False
    return True


def _shard_names(count: int) -> list[str]:
    return [f"{part}-{shard:05d}-of-{count:05d}.safetensors"
            for shard in range(1, count + 1) for part in ("weights", "optimizer")]


def _write_shard(folder: Path, shard: int, shards: int, model: nn.Module,
                 optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Writes shard number `shard` (from 0) of `shards`; the SHA-256 of each file by its name."""
    if shard >= shards:
        return {}
    weights = dict(model.named_parameters())
    assert is_sharded(model) == all(isinstance(weight, DTensor) for weight in weights.values()), "see parallel.reshard"
    # By "<kind>|<parameter name>", so that each finds its parameter again however the optimizer groups them.
    moments = {f"{kind}|{name}": tensor for name, parameter in weights.items()
               for kind, tensor in optimizer.state.get(parameter, {}).items()}
    sums = {}
    for part, tensors in (("weights", weights), ("optimizer", moments)):
        path = folder / f"{part}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = {name: own_part(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in own.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{name} is not finite")
        save_file(own, path)
        sync(path)
        sums[path.name] = sha256_of_file(path)
    return sums


def _shards_of(path: Path, part: str) -> list[Path]:
    return sorted(path.glob(f"{part}-*.safetensors"))


def _tensors_in(path: Path, part: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
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


def _read_whole(path: Path, part: str, name: str) -> Tensor:
    shards = []
    for shard in _shards_of(path, part):
        with safe_open(shard, "pt") as file:
            shards.append(file.get_tensor(name))
    return torch.cat(shards) if shards[0].dim() else shards[0]  # a scalar (AdamW's step) is the same in every shard


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
