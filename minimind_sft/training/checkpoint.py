"""The folder of a run's resume states: written, found again, pruned. resume_state.py describes one of them.

A state is written beside its final name and renamed, so that it is there whole or not at all; what was damaged
afterwards is recognised (see `manifest.py`), and the newest state that verifies is used.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minimind_sft.errors import UserError
from minimind_sft.files import FolderLock, read_object, sha256_of_file, sync
from minimind_sft.set_aside import is_there, older_name, remove
from minimind_sft.training.distributed import Ranks, under_torchrun
from minimind_sft.training.manifest import MANIFEST, Damaged
from minimind_sft.training.parallel import is_sharded, place
from minimind_sft.training.resume_state import (
    FORMAT,
    STATE,
    TrainState,
    own_shard,
    read_state,
    read_whole,
    tensors_in,
    write_shard,
)

T = TypeVar("T")

FOLDER = re.compile(r"step-(\d{8,})")


class Found(NamedTuple):
    """The newest good state of a folder (None where there is none), and why each newer one was passed over."""

    path: Path | None
    state: TrainState | None
    refused: list[str]


class PendingState(NamedTuple):
    """A state that is not whole yet: its tensors are written, then the main rank seals it.

    Where the model is sharded every rank writes its part first, and has to tell the main rank what it wrote.
    """

    final: Path
    temporary: Path
    record: dict
    task: Future | None
    """The work of this rank's thread for it; None: nothing."""
    last: bool
    """Whether the state is whole when the main rank's thread has done that."""


class Checkpoints:
    """The resume states of one run, in a folder that no other process writes to meanwhile.

    A context: entering takes the folder's lock and, for a run that does not go on from an earlier one (`fresh`), sets
    that one's states aside in `<folder>.previous`; leaving puts them back if this run never came to `begin` (not under
    torchrun: it may start this one again, which then must not go on from the earlier one).

    Every method is called by all ranks (`is_writing` speaks for one). What fails on one of them is a ProcessLost on the
    others.

    Args:
        check: called on the main rank once it has the lock, before anything in the folder changes.

    Raises:
        UserError: on entering, if another process holds the folder; what `check` raises.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks, fresh: bool, check: Callable[[], None] | None = None):
        self.folder, self.keep, self.ranks, self.fresh, self._check = folder, keep, ranks, fresh, check
        self.previous = folder.with_name(folder.name + ".previous")
        self.was_set_aside = False
        self.has_begun = False
        self._lock = FolderLock(folder.with_name(folder.name + ".lock"))
        self._verified: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, "resume state")
        self._pending: PendingState | None = None
        self.thread_seconds = 0.0
        """How long this rank's thread was at work for the newest state."""

    def __enter__(self) -> Self:
        self.was_set_aside = self.ranks.on_main(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # a state of one shard is whole after that, whatever has ended the run
        if self.ranks.is_main:
            if self._pending is not None:  # the run ended before all shards were there
                shutil.rmtree(self._pending.temporary, ignore_errors=True)
            if self.was_set_aside and not self.has_begun and not self._states() and not under_torchrun():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.previous.rename(self.folder)
                if is_there(older := older_name(self.previous)):
                    older.rename(self.previous)
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
        """Says that from here on this run writes files of its own."""
        self.has_begun = True
        if self.ranks.is_main and is_there(older := older_name(self.previous)):
            remove(older)

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
             scaler: torch.amp.GradScaler, wait: bool = True) -> None:
        """Writes `step-<step>`, then removes the oldest states beyond the `keep` newest that verify.

        Every rank calls it. Where the model is sharded each writes its own part, so that the folder must lie on a
        file system that all of them see.

        Args:
            wait: until it is there. Else a thread writes a copy of the tensors, and `advance` is to be called whenever
                no rank `is_writing`; what goes wrong is raised there.

        Raises:
            UserError: if it cannot be written or a tensor is not finite; older states stay.
        """
        self.finish()
        final = self.folder / f"step-{state.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        record = {"format": FORMAT, "state": asdict(state), "scaler": scaler.state_dict()}
        pending = PendingState(final, temporary, record, None, last=not is_sharded(model))
        with self._discarded_on_error(final, temporary):
            self.ranks.on_main(lambda: _make_empty(temporary))
            shard = own_shard(model, optimizer, self.ranks.rank, self.ranks.world_size, copied=not wait)
            self.thread_seconds = 0.0
            if not pending.last:
                pending = pending._replace(task=self._in_thread(write_shard, temporary, shard))
            elif self.ranks.is_main:
                pending = pending._replace(task=self._in_thread(self._write, pending, shard))
            self._pending = pending
        if wait:
            self.finish()

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._pending is not None and self._pending.task is not None and not self._pending.task.done()

    def advance(self) -> bool:
        """Goes on with an unfinished state, waiting for what all ranks' threads do for it; True once it is whole.

        Raises:
            UserError: if it cannot be written.
        """
        pending = self._pending
        if pending is None:
            return False
        with self._discarded_on_error(pending.final, pending.temporary):
            if pending.last:
                self.ranks.on_main(lambda: pending.task.result())
                self._pending = None
            else:
                sums = self.ranks.on_each(pending.task.result)
                task = self._in_thread(self._seal, pending, sums) if self.ranks.is_main else None
                self._pending = pending._replace(task=task, last=True)
        return self._pending is None

    def finish(self) -> None:
        """Waits until no state is unfinished.

        Raises:
            UserError: if it cannot be written.
        """
        while self._pending is not None:
            self.advance()

    @contextmanager
    def _discarded_on_error(self, final: Path, temporary: Path) -> Iterator[None]:
        """An error in the block discards the unfinished state; one that a person can mend is told as a UserError."""
        try:
            yield
        except Exception as error:
            self._pending = None
            if self.ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, (OSError, SafetensorError, UserError)):
                raise
            raise UserError(f"{final}: this resume state cannot be written ({_reason(error)}); "
                            f"the ones before it are untouched") from error

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
             scaler: torch.amp.GradScaler) -> None:
        """Puts the state at `path` into the model, the optimizer and the scaler of every rank.

        The main rank reads, the others get their part from it.

        Raises:
            UserError: if its tensors are not those of this model.
        """
        weights, moments = self.ranks.on_main(lambda: (tensors_in(path, "weights"), tensors_in(path, "optimizer")))
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
        scaling = self.ranks.on_main(lambda: read_object(path / STATE)["scaler"])
        if scaling:  # nothing, where the run so far was not in float16
            scaler.load_state_dict(scaling)

    def _read(self, path: Path, part: str, key: str, kind: tuple[torch.Size, torch.dtype],
              like: nn.Parameter) -> Tensor:
        """A tensor of the state, spread over the ranks as `like` is."""
        shape, dtype = kind
        whole = read_whole(path, part, key) if self.ranks.is_main else torch.empty(shape, dtype=dtype)
        return place(whole, like, self.ranks)

    def _open(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        sync(self.folder.parent)
        self._lock.take()
        if self._check is not None:
            try:
                self._check()
            except BaseException:  # `__exit__` is not called after this
                self._lock.release()
                raise
        for left_over in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        for replaced in self.folder.glob(".step-*.replaced"):  # killed before the new one had its name
            final = self.folder / replaced.name.removeprefix(".").removesuffix(".replaced")
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(final)
        older = older_name(self.previous)
        if is_there(older) and not is_there(self.previous):  # killed between the two renames below
            older.rename(self.previous)
        if not (self.fresh and self._states()):
            return False
        if is_there(self.previous):
            if is_there(older):
                remove(older)
            self.previous.rename(older)
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
            self._prune()  # the run before may have been killed before it came to that
            return Found(path, state, refused)
        return Found(None, None, refused)

    def _in_thread(self, action: Callable[..., T], *arguments: object) -> Future[T]:
        def timed() -> T:
            start = time.perf_counter()
            try:
                return action(*arguments)
            finally:
                self.thread_seconds += time.perf_counter() - start

        return self._thread.submit(timed)

    def _write(self, pending: PendingState, files: dict[str, dict[str, Tensor]]) -> None:
        """All of a state that has one shard."""
        self._seal(pending, [write_shard(pending.temporary, files)])

    def _seal(self, pending: PendingState, sums: list[dict[str, str]]) -> None:
        """Writes counters and manifest, gives the state its name, reads it back, and removes the oldest."""
        final, temporary, record = pending.final, pending.temporary, pending.record
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


def _is_good(path: Path) -> bool:
    try:
        read_state(path)
    except Damaged:
        return False
    return True


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
