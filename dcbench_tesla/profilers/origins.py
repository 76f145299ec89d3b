"""What memory is for: a label that code puts around what it allocates, and that a meter reads.

Nothing is imported but the standard library, and where no meter is entered a label costs a microsecond.
"""

from typing import Literal, get_args

Origin = Literal["parameters", "inputs", "graph", "trajectory", "optimiser", "other"]
"""``parameters``: of networks, experts' vectors too. ``inputs``: images and labels, of the set and of a batch, and
their gradients. ``graph``: what the computation of a step keeps for its backward pass, and its passing results.
``trajectory``: the students' weight vectors. ``optimiser``: momentum and the like. ``other``: whatever has no label."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

# A plain variable of the module and no ContextVar: autograd computes gradients in a thread of its own for every GPU,
# and those threads do not carry a context.
_current: Origin = "other"


class origin:
    """Label what is allocated in the block; where blocks are nested, the innermost label counts.

    Only the storage's making counts: a view, or a tensor that is handed on, keeps the label it was made under. One
    object can be entered once at a time. One thread at a time is metered: labels of two threads would mix.

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
        ValueError: ``name`` is none of :data:`ORIGINS`.
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
    """Return the label in force."""
    return _current
