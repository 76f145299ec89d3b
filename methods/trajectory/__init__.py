"""Trajectory matching: `mtt`, `tesla` and `tesla-exact`, one condenser with three gradients; `ftd` and `datm` on it.

The gradients can be used alone, in a program of one's own: :func:`matching_gradient` takes the batches of all steps at
once, :func:`stream_matching_gradient` asks for them step by step.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inner.matching import matching_gradient as matching_gradient
    from ..inner.matching import stream_matching_gradient as stream_matching_gradient

__all__ = ["matching_gradient", "stream_matching_gradient"]


def __getattr__(name: str) -> Any:
    """Import the gradients when they are asked for: methods are listed without PyTorch."""
    if name in __all__:
        from ..inner import matching

        return getattr(matching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
