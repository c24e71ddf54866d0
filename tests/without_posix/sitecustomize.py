"""Makes a Python process on Linux lack what Windows lacks, where this project could touch it.

Python imports a module of this name by itself when it finds one: with this folder on PYTHONPATH the real programs, and
the processes that they spawn, run without these names. Libraries choose by the system's name instead and are imported
first. What cannot be shown like this: backslashes in paths, and files that cannot be removed while they are open.
"""

import asyncio  # noqa: F401
import ctypes
import errno
import fcntl
import logging  # noqa: F401
import multiprocessing
import multiprocessing.context
import multiprocessing.resource_tracker
import os
import random  # noqa: F401
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import filelock  # noqa: F401
import torch.utils.data  # noqa: F401
from torch.utils.data._utils import signal_handling

MISSING = {
    signal: ("SIGHUP", "SIGCHLD", "pthread_sigmask"),
    os: ("fork", "register_at_fork", "sched_getaffinity", "set_blocking", "O_DIRECTORY", "O_TMPFILE"),
}
_open, _fsync, _rename, _CDLL = os.open, os.fsync, os.rename, ctypes.CDLL


def open_no_folder(path, flags, *arguments, **keywords) -> int:
    if not isinstance(path, int) and Path(os.fsdecode(path)).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return _open(path, flags, *arguments, **keywords)


def fsync_what_can_be_written_to(handle) -> None:
    number = handle if isinstance(handle, int) else handle.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _fsync(number)


def rename_to_a_new_name(source, target, **keywords) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "File exists", source, None, target)
    _rename(source, target, **keywords)


class NamedLibrary(_CDLL):
    def __init__(self, name, *arguments, **keywords):
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        super().__init__(name, *arguments, **keywords)


for module, names in MISSING.items():
    for name in names:
        delattr(module, name)
for name in ("fcntl", "readline", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
os.open, os.fsync, os.rename, ctypes.CDLL = (
    open_no_folder, fsync_what_can_be_written_to, rename_to_a_new_name, NamedLibrary)
shutil._use_fd_functions = False
tempfile._O_TMPFILE_WORKS = False
multiprocessing.resource_tracker._HAVE_SIGMASK = False
signal_handling._set_SIGCHLD_handler = lambda: None
for method in ("fork", "forkserver"):
    multiprocessing.context._concrete_contexts.pop(method, None)
multiprocessing.context.BaseContext.get_all_start_methods = lambda self: ["spawn"]
multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]
multiprocessing.get_all_start_methods = lambda: ["spawn"]
multiprocessing.set_start_method("spawn", force=True)

if log := os.environ.get("WITHOUT_POSIX_LOG"):
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(" ".join(sys.orig_argv[1:]) + "\n")
