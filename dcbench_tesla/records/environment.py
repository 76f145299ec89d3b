"""What a result was computed with: hardware, versions, commit. Recorded beside every row, hashed into no key."""

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
    """Return the installed versions of Python and the packages that results depend on, without importing them."""
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
    """Return the commit of the checkout this package runs from, ``+changes`` behind it where it is not clean.

    Empty for an installed package: its version says what it is.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # what a run writes under results/ does not change the program
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def hardware(device: str = "cpu") -> str:
    """Return the name of what computes on ``device``: the GPU, or the processor with its number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {os.cpu_count()} cores"


def environment(device: str, threads: int, backend: str = "serial") -> dict[str, Any]:
    """Return hardware, device, threads, backend, versions, platform and commit, as plain JSON."""
    return {
        "hardware": hardware(device),
        "device": device,
        "threads": threads,
        "backend": backend,
        "platform": f"{sys.platform} {platform.machine()}",
        "versions": versions(),
        "commit": commit(),
    }
