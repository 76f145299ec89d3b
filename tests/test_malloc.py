"""Freed memory is kept for the next tensor: pages are not asked of the system again and again."""

import subprocess
import sys

import pytest
import torch

from dcbench_tesla.compute.malloc import keep_freed_memory, kept_bytes

FAULTS = """
import resource, sys, torch
from dcbench_tesla.compute.malloc import keep_freed_memory, kept_bytes
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
for _ in range(30):  # until the heap has found its size
    torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 * 2**20)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_pages_are_not_asked_for_again() -> None:
    assert page_faults("keep") < 0.1 * page_faults("leave")


@pytest.mark.skipif(not kept_bytes(), reason="needs glibc 2.33")
def test_what_is_kept_counts_as_free() -> None:
    keep_freed_memory()
    before = kept_bytes()
    tensor = torch.ones(64 * 2**20)  # 256 MiB
    held = kept_bytes()
    del tensor
    assert kept_bytes() - held >= 255 * 2**20
    assert kept_bytes() >= before - 2**20  # what Python itself took meanwhile is a few bytes of the same heap
