"""Writes a run's resume states into their folder, finds the newest good one, and removes old ones.

A state is written under a temporary name and then renamed, so it exists whole or not at all. Its manifest reveals
damage done later, and the newest state that verifies is used. resume_state.py describes the files of one state.
"""

import json
import re
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
from minimind_sft.files import read_text, sha256_of_file
from minimind_sft.locks import FolderLock
from minimind_sft.manifest import MANIFEST, Damaged
from minimind_sft.set_aside import bring_older_back, is_there, keep_older, remove_older
from minimind_sft.training.distributed import Ranks, under_torchrun
from minimind_sft.training.parallel import is_sharded
from minimind_sft.training.resume_state import (
    FORMAT,
    STATE,
    TrainState,
    has_only_parts,
    own_shard,
    read_state,
    write_shard,
)
from minimind_sft.writing import PrivateFolder, create_text, remove_leftovers, sync

T = TypeVar("T")

FOLDER = re.compile(r"step-(\d{8,})")


class Found(NamedTuple):
    """The newest good state of a folder, if it has one, and why each newer one was passed over."""

    path: Path | None
    state: TrainState | None
    refused: list[str]


class PendingState(NamedTuple):
    """A state that is still being written: first its tensors, then the main rank seals it.

    If the model is sharded, every rank writes its shard first, and the main rank needs the checksums of all.
    """

    final: Path
    temporary: Path
    record: dict
    task: Future | None
    """The work that this rank's thread is doing for it; None if there is none."""
    is_last_task: bool
    """Whether the state is complete once the main rank's thread is done."""


def lock_of(folder: Path) -> FolderLock:
    """Returns the lock for a folder of resume states and for all other files under the run's name."""
    return FolderLock(folder.with_name(folder.name + ".lock"))


class Checkpoints:
    """The resume states of one run, in a folder that only this process writes to.

    Use it as a context manager. Entering takes the folder's lock; a run that does not continue an earlier one (`fresh`)
    then moves that one's states to `<folder>.previous`. If the run fails before `begin`, leaving moves them back. Under
    torchrun it does not: a restarted process would take them for its own.

    All ranks call every method; only `is_writing` is about one rank. If a method fails on one rank, the others raise
    ProcessLost.

    Args:
        keep: how many good states to keep.
        check: called on the main rank once it holds the lock, before anything in the folder changes.

    Raises:
        UserError: on entering, if another process holds the folder; and whatever `check` raises.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks, fresh: bool, check: Callable[[], None] | None = None):
        self.folder, self.keep, self.ranks, self.fresh, self._check = folder, keep, ranks, fresh, check
        self.previous = folder.with_name(folder.name + ".previous")
        self.was_set_aside = False
        self.has_begun = False
        self._lock = lock_of(folder)
        self._verified: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, "resume state")
        self._pending: PendingState | None = None
        self._private: PrivateFolder | None = None
        """Where the main rank lets the pending state be written."""
        self.thread_seconds = 0.0
        """How long this rank's thread worked on the newest state."""

    def __enter__(self) -> Self:
        self.was_set_aside = self.ranks.on_main(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # completes a state of one shard, whatever ended the run
        if self.ranks.is_main:
            self._close_private()  # if it is still open, some shards are missing
            if self.was_set_aside and not self.has_begun and not self._states() and not under_torchrun():
                self._bring_back()
            self._lock.release()

    def check_shared(self) -> None:
        """Checks that all ranks see the same folder: each of them writes a shard of a sharded model.

        Raises:
            UserError: on a rank that does not see the main rank's folder.
        """
        holder = self.ranks.on_main(lambda: self._lock.holder)

        def look() -> None:
            # Not on the main rank: a process that holds a lock loses it by closing the file, wherever it does so.
            if not self.ranks.is_main and not (
                    self._lock.path.is_file() and read_text(self._lock.path) == holder):
                raise UserError(f"--parallel fsdp: {self.folder} is not the folder that the main rank sees; every rank "
                                "writes its shard, so --save_dir must be on a file system that all of them share")

        self.ranks.on_each(look)

    def begin(self) -> None:
        """Notes that this run writes files of its own from here on."""
        self.has_begun = True
        if self.ranks.is_main:
            remove_older(self.previous)

    def newest(self) -> Found:
        """Finds the newest state that verifies; the main rank looks and tells the others.

        Raises:
            UserError: if another rank has states on a disk of its own, and the main rank has none.
        """
        found = self.ranks.on_main(self._newest)
        on_ranks = self.ranks.on_each(lambda: [str(path) for path in self._states()])
        for rank, states in enumerate(on_ranks):
            if found.path is None and states and not on_ranks[0]:
                raise UserError(f"the main rank has no resume state in {self.folder}, but rank {rank} has {states[0]}: "
                                "copy it to the main rank's machine, or start without --from_resume 1")
        return found

    def save(self, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer,
             scaler: torch.amp.GradScaler, wait: bool = True) -> None:
        """Writes `step-<step>`, then removes all but the `keep` newest good states.

        If the model is sharded, every rank writes its own shard into the folder.

        Args:
            wait: returns when the state is complete. Otherwise a thread writes a copy of the tensors; call `advance`
                whenever no rank `is_writing`, and expect errors there.

        Raises:
            UserError: if it cannot be written or a tensor is not finite; older states stay.
        """
        self.finish()
        final = self.folder / f"step-{state.step:08d}"
        record = {"format": FORMAT, "state": asdict(state), "scaler": scaler.state_dict()}
        with self._discarded_on_error(final):
            temporary = self.ranks.on_main(lambda: self._make_temporary(final.name))
            pending = PendingState(final, temporary, record, None, is_last_task=not is_sharded(model))
            shard = own_shard(model, optimizer, self.ranks.rank, self.ranks.world_size, copied=not wait)
            self.thread_seconds = 0.0
            if not pending.is_last_task:
                pending = pending._replace(task=self._in_thread(write_shard, temporary, shard))
            elif self.ranks.is_main:
                pending = pending._replace(task=self._in_thread(self._write_and_seal, pending, shard))
            self._pending = pending
        if wait:
            self.finish()

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._pending is not None and self._pending.task is not None and not self._pending.task.done()

    def advance(self) -> bool:
        """Waits for what all ranks' threads are doing and starts what comes next; returns whether that was the last.

        Raises:
            UserError: if the state cannot be written.
        """
        pending = self._pending
        if pending is None:
            return False
        with self._discarded_on_error(pending.final):
            if pending.is_last_task:
                self.ranks.on_main(lambda: pending.task and pending.task.result())
                self._pending = None
            else:
                assert pending.task is not None
                checksums = self.ranks.on_each(pending.task.result)
                task = self._in_thread(self._seal, pending, checksums) if self.ranks.is_main else None
                self._pending = pending._replace(task=task, is_last_task=True)
        return self._pending is None

    def finish(self) -> None:
        """Waits until the state that is being written, if any, is complete.

        Raises:
            UserError: if it cannot be written.
        """
        while self._pending is not None:
            self.advance()

    @contextmanager
    def _discarded_on_error(self, final: Path) -> Iterator[None]:
        """Discards the unfinished state if the block fails; errors that a person can fix become a UserError."""
        try:
            yield
        except Exception as error:
            self._pending = None
            self._close_private()
            if not isinstance(error, (OSError, SafetensorError, UserError)):
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"{final}: this resume state cannot be written ({reason}); the ones before it are "
                            "untouched") from error

    def _open(self) -> bool:
        """Takes the lock and puts the folder in order; returns whether an earlier run's states were set aside."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sync(self.folder.parent)
        self._lock.take()
        try:
            if self._check is not None:
                self._check()
            self._finish_what_was_killed()
            if self.fresh and self._states():
                self._set_aside()
                return True
        except BaseException:  # `__exit__` is not called after this
            self._lock.release()
            raise
        return False

    def _finish_what_was_killed(self) -> None:
        """Removes half-written states, and finishes a pair of renames that a kill interrupted.

        Raises:
            UserError: for something else under the name of a state, which could not be written then.
        """
        for path in self.folder.iterdir():
            if FOLDER.fullmatch(path.name) and not path.is_dir():
                raise UserError(f"{path}: expected the folder of a resume state or nothing; move it away")
        remove_leftovers(self.folder)
        for replaced in self.folder.glob(".step-*.replaced"):  # see `_seal`
            final = self.folder / replaced.name.removeprefix(".").removesuffix(".replaced")
            if not FOLDER.fullmatch(final.name) or not (replaced / MANIFEST).is_file() or replaced.is_symlink():
                continue  # it is no state
            if final.exists():
                self._remove(replaced)
            else:
                replaced.rename(final)
        if not is_there(self.previous):  # see `_set_aside`
            bring_older_back(self.previous)

    def _set_aside(self) -> None:
        """Moves the states to `previous`; what was there stays beside it until this run begins."""
        keep_older(self.previous)
        self.folder.rename(self.previous)
        self.folder.mkdir()

    def _bring_back(self) -> None:
        """Undoes `_set_aside`, unless somebody has put something into the new folder."""
        try:
            self.folder.rmdir()
        except OSError:
            return
        self.previous.rename(self.folder)
        bring_older_back(self.previous)

    def _newest(self) -> Found:
        refused = []
        for path in self._states():
            try:
                state = read_state(path)
            except Damaged as fault:
                refused.append(f"{path}: {fault}")
                continue
            self._verified.add(path)
            self._prune()  # the run before may have been killed before it did this
            return Found(path, state, refused)
        return Found(None, None, refused)

    def _make_temporary(self, name: str) -> Path:
        """Makes an empty folder in a private one, for a state that is being written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._private = PrivateFolder(self.folder)
        (self._private.path / name).mkdir()
        return self._private.path / name

    def _close_private(self) -> None:
        if self._private is not None:
            self._private.close()
            self._private = None

    def _in_thread(self, action: Callable[..., T], *arguments: object) -> Future[T]:
        def timed() -> T:
            start = time.perf_counter()
            try:
                return action(*arguments)
            finally:
                self.thread_seconds += time.perf_counter() - start

        return self._thread.submit(timed)

    def _write_and_seal(self, pending: PendingState, files: dict[str, dict[str, Tensor]]) -> None:
        """Writes a state of one shard."""
        self._seal(pending, [write_shard(pending.temporary, files)])

    def _seal(self, pending: PendingState, checksums: list[dict[str, str]]) -> None:
        """Writes counters and manifest, gives the state its name, reads it back, and removes old states.

        Args:
            checksums: of the files that each rank has written, by name.
        """
        final, temporary = pending.final, pending.temporary
        create_text(temporary / STATE, json.dumps(pending.record, indent=1))
        manifest = {name: sha256 for of_rank in checksums for name, sha256 in of_rank.items()}
        manifest[STATE] = sha256_of_file(temporary / STATE)
        create_text(temporary / MANIFEST, json.dumps(manifest, indent=1))
        for path in (temporary / STATE, temporary / MANIFEST, temporary):
            sync(path)
        replaced = final.with_name(f".{final.name}.replaced")
        was_there = is_there(final)
        if was_there:
            final.rename(replaced)
        temporary.rename(final)
        sync(self.folder)
        if was_there:
            self._remove(replaced)
        self._close_private()
        try:
            read_state(final)
        except Damaged as fault:
            raise UserError(f"it is damaged when read back: {fault}") from fault
        self._verified.add(final)
        self._prune()

    def _prune(self) -> None:
        """Removes all but the `keep` newest good states. Damaged ones among these stay, and do not count."""
        good = 0
        for path in self._states():
            if good == self.keep:
                self._remove(path)
            elif path in self._verified or _is_good(path):
                self._verified.add(path)
                good += 1

    def _remove(self, path: Path) -> None:
        """Hides a state before deleting it, so that nobody finds half of it.

        One that cannot be deleted stays, and so does one in which somebody has put something of their own.
        """
        if path.is_symlink() or has_only_parts(path):
            with suppress(OSError), PrivateFolder(self.folder) as hidden:
                path.rename(hidden / path.name)

    def _states(self) -> list[Path]:
        """Lists the states in the folder, newest first."""
        named = [(int(match[1]), path) for path in self.folder.glob("step-*")
                 if path.is_dir() and (match := FOLDER.fullmatch(path.name))]
        return [path for _, path in sorted(named, reverse=True)]


def _is_good(path: Path) -> bool:
    try:
        read_state(path)
    except Damaged:
        return False
    return True
