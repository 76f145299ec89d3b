"""Seeds by role, so that no result depends on the clock or on what was computed before.

Every random choice of the harness comes from a generator that is made for this choice alone, for instance
``generator(seed, "inner batches", iteration, permutation)``. Resuming a run therefore needs no saved random state:
iteration 4711 draws the same numbers whether or not iterations 0 to 4710 ran in the same process.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_for(seed: int, role: str, *repetition: int) -> int:
    """Derive a 63-bit seed from the ``seed`` of a run, the ``role`` of the random numbers and their repetition."""
    text = "/".join([str(seed), role, *map(str, repetition)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, role: str, *repetition: int) -> "torch.Generator":
    """Return a CPU generator seeded by :func:`seed_for`. Drawing on the CPU gives every device the same numbers."""
    import torch

    return torch.Generator().manual_seed(seed_for(seed, role, *repetition))
