"""Running a command in a process of its own that has PyTorch imported already, under a watchdog."""

import importlib
import os
import pkgutil
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

LIMIT_S = 10.0
_MORE_MEMORY = 2 << 30  # bytes beyond those that are there: a command that reads without end ends, not the machine
_POLL_S = 0.002
_PRELOADED = (
    "sklearn.datasets",
    "matplotlib.pyplot",
    "pandas",
    "PIL.PngImagePlugin",
    "kornia.enhance",
    "scipy.io",
    "torch._dynamo",
    "torch._functorch.apis",
    "torch.utils.flop_counter",
    "sympy",
    "torch.fx.experimental.symbolic_shapes",
    "torch.distributed.tensor",
    "safetensors.torch",
    "filelock",
)


@dataclass(frozen=True)
class Kill:
    """A signal for a running command, or for the processes that it started, after ``seconds``."""

    signal: signal.Signals
    seconds: float
    of_children: bool = False

    def send(self, pid: int) -> bool:
        """Send it, and return whether anything received it."""
        found = psutil.Process(pid).children() if self.of_children else [psutil.Process(pid)]
        for process in found:
            process.send_signal(self.signal)
        return bool(found)


@dataclass(frozen=True)
class Ran:
    """How a command ended: exit code (negative: the signal that ended it), what it printed, and whether it hung."""

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.out + self.err


def preload() -> None:
    """Import everything that commands need, so that the processes made from this one need not."""
    for name in _PRELOADED:
        importlib.import_module(name)
    package = importlib.import_module("dcbench_tesla")
    for module in pkgutil.walk_packages(package.__path__, "dcbench_tesla."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import torch
    from PIL import Image

    Image.init()
    torch.set_num_threads(1)


def dcbench(arguments: Sequence[str]) -> None:
    """Do what ``python -m dcbench_tesla ARGUMENTS`` does."""
    sys.argv = ["dcbench", *arguments]
    runpy.run_module("dcbench_tesla", run_name="__main__", alter_sys=True)


def worker(job: str) -> None:
    """Do what ``python -m dcbench_tesla.backends.worker JOB`` does."""
    sys.argv = ["worker", job]
    runpy.run_module("dcbench_tesla.backends.worker", run_name="__main__", alter_sys=True)


def run(work: Callable[[], None], folder: Path, *, limit_s: float = LIMIT_S, kill: Kill | None = None) -> Ran:
    """Do ``work`` in a process whose working directory is ``folder``; stop it after ``limit_s``."""
    out, err = (folder.parent / f"{folder.name}.{stream}" for stream in ("out", "err"))
    start = time.monotonic()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, folder, out, err)
    try:
        code, hung = _wait(pid, start + limit_s, start + kill.seconds if kill else None, kill)
    finally:  # what it started ends with it, also where the campaign itself is stopped
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    return Ran(code, texts[0], texts[1], time.monotonic() - start, hung)


def _wait(pid: int, deadline: float, strike: float | None, kill: Kill | None) -> tuple[int, bool]:
    """Wait for a process; return its exit code and whether it had to be stopped."""
    hung = False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), hung
        now = time.monotonic()
        if kill and strike is not None and now >= strike:
            strike = None if kill.send(pid) else strike
        if now > deadline and not hung:
            hung = True
            os.killpg(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _child(work: Callable[[], None], folder: Path, out: Path, err: Path) -> NoReturn:
    """The forked process: streams to files, default signals, bounded memory; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        _streams(out, err)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        limit = psutil.Process().memory_info().vms + _MORE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = _exit_code(work)
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _streams(out: Path, err: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
