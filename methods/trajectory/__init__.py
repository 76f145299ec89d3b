"""Trajectory matching: `mtt`, `tesla` and `tesla-exact`, one condenser with three gradients.

The gradients alone, for a program of one's own: :func:`matching_gradient` and :func:`stream_matching_gradient`.
"""

from ..inner.gradients import matching_gradient, stream_matching_gradient

__all__ = ["matching_gradient", "stream_matching_gradient"]
