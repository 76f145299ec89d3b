"""Seeds derived by role, so that no result depends on the clock or on what ran before it.

Every random choice of the harness comes from a generator made for it alone,
``generator(seed, "inner batches", iteration, permutation)``. Nothing has to be saved to resume: iteration 4711
draws the same numbers whether or not iterations 0 to 4710 ran in the same process.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_for(seed: int, role: str, *repetition: int) -> int:
    """Derive a 63-bit seed from a run's ``seed``, the ``role`` of the numbers and their repetition."""
    text = "/".join([str(seed), role, *map(str, repetition)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, role: str, *repetition: int) -> "torch.Generator":
    """Return a CPU generator seeded by :func:`seed_for`; numbers are drawn on the CPU so that devices agree."""
    import torch

    return torch.Generator().manual_seed(seed_for(seed, role, *repetition))
