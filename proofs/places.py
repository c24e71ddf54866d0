"""Places in a run where a process can be made to die.

`PLACES[name](passed)` patches a piece of the program: each time it runs, it calls `passed()`, and kills the process if
that returns True.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minimind_sft.model import weights
from minimind_sft.model.adapters import own_file
from minimind_sft.model.decoder import DecoderLayer, Losses, MiniMindForCausalLM
from minimind_sft.training import checkpoint, loop, resume_state
from minimind_sft.training.metrics import Metrics

Passed = Callable[[], bool]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: object, name: str, before: Callable | None = None, after: Callable | None = None) -> None:
    """Calls `before` ahead of a function, with its arguments, and `after` behind it, with its result first."""
    original = getattr(owner, name)

    def wrapped(*arguments, **keywords):
        if before is not None:
            before(*arguments, **keywords)
        result = original(*arguments, **keywords)
        if after is not None:
            after(result, *arguments, **keywords)
        return result

    setattr(owner, name, wrapped)


def in_forward(passed: Passed) -> None:
    wrap(DecoderLayer, "forward", before=lambda layer, *_: die() if layer.training and passed() else None)


def in_evaluation(passed: Passed) -> None:
    wrap(DecoderLayer, "forward", before=lambda layer, *_: die() if not layer.training and passed() else None)


def in_backward(passed: Passed) -> None:
    def watch(result: torch.Tensor, *_) -> None:
        if result.requires_grad:
            result.register_hook(lambda grad: die() if passed() else None)

    wrap(DecoderLayer, "forward", after=watch)


def between_micro_batches(passed: Passed) -> None:
    inside_a_step = [False]

    def watch(model: torch.nn.Module, wanted: bool) -> None:
        if inside_a_step[0] and passed():
            die()
        inside_a_step[0] = not wanted  # the ranks exchange gradients in the last micro-batch of a step

    wrap(loop, "gradient_sync", before=watch)


def in_optimizer_step(passed: Passed) -> None:
    """Dies after the first of AdamW's two parameter groups: half of the weights are new, half are old."""
    groups = [0]

    def watch(*_, **__) -> None:
        groups[0] += 1
        if groups[0] % 2 == 0 and passed():
            die()

    wrap(torch, "_fused_adamw_", before=watch)


def in_metrics_line(passed: Passed) -> None:
    def watch(metrics: Metrics, step: int, *_) -> None:
        if passed():
            metrics._file.write(f'{{"step": {step}, "lo')
            metrics._file.flush()
            die()

    wrap(Metrics, "write", before=watch)


def _half_written(owner: object, name: str, passed: Passed) -> None:
    def watch(_, content: dict, path: Path) -> None:
        if passed():
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    wrap(owner, name, after=watch)


def in_resume_state_file(passed: Passed) -> None:
    _half_written(resume_state, "save_file", passed)


def in_weights_file(passed: Passed) -> None:
    _half_written(weights.torch, "save", passed)
    _half_written(own_file, "save_file", passed)


def before_sync(passed: Passed) -> None:
    wrap(os, "fsync", before=lambda *_: die() if passed() else None)


def before_rename(passed: Passed) -> None:
    for name in ("rename", "replace"):
        wrap(Path, name, before=lambda *_: die() if passed() else None)


def after_rename(passed: Passed) -> None:
    for name in ("rename", "replace"):
        wrap(Path, name, after=lambda *_: die() if passed() else None)


def in_removing(passed: Passed) -> None:
    def watch(folder: Path, **_) -> None:
        files = sorted(Path(folder).glob("*"))
        if files and passed():
            files[0].unlink()
            die()

    wrap(shutil, "rmtree", before=watch)
    wrap(Path, "unlink", after=lambda *_, **__: die() if passed() else None)


PLACES: dict[str, Callable[[Passed], None]] = {
    "in a forward pass, between two layers": in_forward,
    "in a backward pass, between two layers": in_backward,
    "between two micro-batches of a step": between_micro_batches,
    "in the optimizer's step, half of the parameters updated": in_optimizer_step,
    "in an evaluation": in_evaluation,
    "in a line of the metrics file, half of it written": in_metrics_line,
    "in a file of the resume state, half of it written": in_resume_state_file,
    "in the weights file, half of it written": in_weights_file,
    "before a file is on the disk (fsync)": before_sync,
    "before a finished file or folder gets its name": before_rename,
    "after a finished file or folder got its name": after_rename,
    "in removing an old resume state": in_removing,
}


def loss_is_nan(passed: Passed) -> None:
    """Makes the loss of this rank's micro-batch NaN, and with it the gradient, instead of dying."""
    original = MiniMindForCausalLM.forward

    def watched(model: MiniMindForCausalLM, *batch) -> Losses:
        losses = original(model, *batch)
        return losses._replace(loss_sum=losses.loss_sum * float("nan")) if model.training and passed() else losses

    MiniMindForCausalLM.forward = watched


def hangs(passed: Passed) -> None:
    """Stops the process, as on a frozen machine, instead of dying."""
    wrap(DecoderLayer, "forward", before=lambda *_: os.kill(os.getpid(), signal.SIGSTOP) if passed() else None)


def disk_is_slow(passed: Passed) -> None:
    """Makes this rank's shard take half a second longer to write, while the others train on."""
    wrap(checkpoint, "write_shard", before=lambda *_: time.sleep(0.5) if passed() else None)


def is_slow(passed: Passed) -> None:
    """Makes the step take longer than any test waits before it interrupts it."""
    wrap(loop, "train_step", before=lambda *_: time.sleep(3600.0) if passed() else None)
