"""Running the programs as a user does, on small data."""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from unittest import mock

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAIN, SFT, LORA = "trainer/train_pretrain.py", "trainer/train_full_sft.py", "trainer/train_lora.py"
CHAT = "eval_llm.py"
PATIENCE = 600.0
"""Seconds after which a process counts as hanging; none needs a tenth of them on a usual machine."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
NEW = ["--from_weight", "none", "--hidden_size", "32", "--num_hidden_layers", "2", "--eval_samples", "0"]
"""A run of a tiny new model, which answers no questions: it would never end an answer."""


def program(script: str, *arguments: object, module: tuple[str, ...] = (), cwd: Path = REPOSITORY,
            **environment: str) -> list:
    return [[sys.executable, *module, str(REPOSITORY / script), *map(str, arguments)],
            {"cwd": cwd, "text": True, "encoding": "utf-8",
             "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "COLUMNS": "100",
                     "CUDA_VISIBLE_DEVICES": "",  # expected results are those of a CPU
                     **environment}}]


def run(script: str, *arguments: object, typed: str = "", **keywords) -> subprocess.CompletedProcess:
    """Runs a program in a process of its own."""
    command, options = program(script, *arguments, **keywords)
    return subprocess.run(command, capture_output=True, input=typed, timeout=PATIENCE, **options)


def run_here(script: str, *arguments: object, cwd: Path = REPOSITORY, encoding: str = "utf-8", **environment: str
             ) -> subprocess.CompletedProcess:
    """Runs a program in this process, which has PyTorch loaded: seconds less than `run`.

    With a GPU it runs in a process of its own, from which the GPU is hidden. `encoding` is that of what it prints.
    """
    if torch.cuda.is_available():
        return run(script, *arguments, cwd=cwd, **{"PYTHONIOENCODING": encoding, **environment})
    command, options = program(script, *arguments, cwd=cwd, **environment)
    handler = signal.getsignal(signal.SIGTERM)
    with (tempfile.TemporaryDirectory() as folder, Path(folder, "out").open("w+", encoding=encoding) as out,
          Path(folder, "err").open("w+", encoding=encoding) as err, Path(os.devnull).open() as nothing,
          mock.patch.dict(os.environ, options["env"]), chdir(cwd),
          mock.patch.multiple(sys, argv=command[1:], stdin=nothing, stdout=out, stderr=err)):
        try:
            runpy.run_path(command[1], run_name="__main__")
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            signal.signal(signal.SIGTERM, handler)
            sys.stdout.flush()  # the program may have wrapped the two
            sys.stderr.flush()
        said = [stream.seek(0) or stream.read() for stream in (out, err)]
    return subprocess.CompletedProcess(command, status, *said)


def run_without_room(file_bytes: int, *arguments: object) -> subprocess.CompletedProcess:
    """Runs a program that cannot write a file of more than `file_bytes` and must fail with status 2."""
    code = (f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, "
            "resource.RLIM_INFINITY)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    command, options = program(*arguments, PYTHONDONTWRITEBYTECODE="1")  # Python may leave half a cached module
    done = subprocess.run([command[0], "-c", code, *command[1:]], capture_output=True, timeout=PATIENCE, **options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done


HELD = """
import os, runpy, sys, time
from minimind_sft.training import loop
gate, steps, *sys.argv = sys.argv[1:]
take_step, made = loop.train_step, 0
def train_step(*arguments, **keywords):
    global made
    while made == int(steps) and os.path.exists(gate):
        time.sleep(0.005)
    made += 1
    return take_step(*arguments, **keywords)
loop.train_step = train_step
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def stopped_after(steps: int, signum: int, metrics: Path, command: list[str], **options) -> tuple[int, str]:
    """Runs a recipe, and sends it a signal in the step after the first `steps`; returns its status and what it shows.

    It waits there for the signal, however late that comes.
    """
    with tempfile.NamedTemporaryFile() as gate:
        command = [command[0], "-c", HELD, gate.name, str(steps), *command[1:]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        wait_for(lambda: metrics.exists() and f'"step": {steps}, "epoch"' in metrics.read_text(), process)
        process.send_signal(signum)
    shown, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, shown


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Waits until the condition holds; fails after a while, or when the process has ended before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)


@contextmanager
def locked_by_another(path: Path) -> Iterator[int]:
    """Lets another process hold the lock at `path`, and returns its id."""
    code = ("import sys; from pathlib import Path; from minimind_sft.locks import FolderLock; "
            "lock = FolderLock(Path(sys.argv[1])); lock.take(); print('taken', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=REPOSITORY, text=True) as holder:  # closing its input ends it
        assert holder.stdout.readline() == "taken\n"
        yield holder.pid


def start(script: str, *arguments: object, **keywords) -> subprocess.CompletedProcess:
    """Runs a program in this process, unless it needs one of its own: to type into it, or under torchrun."""
    own_process = {"typed", "module", "PYTHONPATH"} & keywords.keys()  # PYTHONPATH counts when Python starts
    return (run if own_process else run_here)(script, *arguments, **keywords)


def succeed(script: str, *arguments: object, **keywords) -> str:
    """Runs a program that must succeed and returns what it prints."""
    done = start(script, *arguments, **keywords)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuse(script: str, *arguments: object, **keywords) -> str:
    """Runs a program that must fail with status 2 and one line of error, which it returns."""
    done = start(script, *arguments, **keywords)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    return errors[0]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int) -> list[dict]:
    return [{"conversations": [{"role": "user", "content": f"Say {i}."},
                               {"role": "assistant", "content": f"It is {i}."}],
             "kind": "even" if i % 2 == 0 else "odd"} for i in range(count)]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "full_sft_32.pth", weights_only=True)
