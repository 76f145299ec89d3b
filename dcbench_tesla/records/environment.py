"""The environment of a result: hardware, versions, commit. Every row records it, and no key depends on it."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("dcbench-tesla", "torch", "torchvision", "kornia", "timm", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, without importing the packages."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@cache
def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """Return the commit of the checkout that this package runs from, with ``+changes`` if tracked files are modified.

    An installed package has no commit; its version identifies it, and the result is empty.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # files that a run writes under results/ do not change the program
        changed = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def hardware(device: str = "cpu") -> str:
    """Return the name of the hardware behind ``device``: the GPU, or the processor with its number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores"


def environment(device: str, threads: int, backend: str = "serial") -> dict[str, Any]:
    """Return hardware, device, threads, backend, versions, platform and commit as values that JSON can hold."""
    return {
        "hardware": hardware(device),
        "device": device,
        "threads": threads,
        "backend": backend,
        "platform": f"{sys.platform} {platform.machine()}",
        "versions": versions(),
        "commit": commit(),
    }
