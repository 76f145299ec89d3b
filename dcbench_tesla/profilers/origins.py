"""Labels of what memory is for: code puts them around allocations, and a meter reads them.

This module imports the standard library only, and a label costs a microsecond if no meter is entered.
"""

from typing import Literal, get_args

Origin = Literal["parameters", "inputs", "graph", "trajectory", "optimiser", "other"]
"""``parameters``: weights of networks, and expert snapshots. ``inputs``: images and labels of the distilled set and of
batches, and their gradients. ``graph``: what a step keeps for its backward pass, and its intermediate results.
``trajectory``: weight vectors of the student. ``optimiser``: momentum and the like. ``other``: everything
unlabelled."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

# A plain variable of the module and no ContextVar: autograd computes gradients in a separate thread for each GPU,
# and a context does not reach these threads.
_current: Origin = "other"


class origin:
    """Label what is allocated in the block; in nested blocks the innermost label counts.

    The label belongs to the storage from its allocation on: views and later uses do not change it. One object can be
    entered once at a time. Only one thread may use labels at a time, because those of two threads would mix.

    Example:
        >>> import torch
        >>> from dcbench_tesla.profilers import LiveBytes, origin
        >>> with LiveBytes() as meter:
        ...     with origin("parameters"):
        ...         weights = torch.zeros(100)
        ...     double = weights * 2
        >>> meter.breakdown("cpu")
        {'parameters': 400, 'other': 400}

    Raises:
        ValueError: ``name`` is not one of :data:`ORIGINS`.
    """

    __slots__ = ("_before", "_name")

    def __init__(self, name: Origin) -> None:
        if name not in ORIGINS:
            raise ValueError(f"unknown origin {name!r}; known: {', '.join(ORIGINS)}.")
        self._name = name
        self._before: Origin = "other"

    def __enter__(self) -> None:
        global _current
        self._before, _current = _current, self._name

    def __exit__(self, *exception: object) -> None:
        global _current
        _current = self._before


def current() -> Origin:
    """Return the label that is in effect."""
    return _current
