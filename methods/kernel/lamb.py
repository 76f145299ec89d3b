"""LAMB: Adam's direction, scaled for each tensor to the tensor's own norm."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-6


class Learned(NamedTuple):
    """A tensor that LAMB learns, and its two moments, all of one shape."""

    value: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def begin(cls, value: Tensor) -> "Learned":
        """Return ``value`` with moments of zero."""
        return cls(value, torch.zeros_like(value), torch.zeros_like(value))


def lamb_step(k: int, state: Learned, gradient: Tensor, rate: float) -> None:
    """Make step number k, from 0, in place.

    With Adam's direction ``u = m / (sqrt(v) + eps)``, both moments corrected for their start at zero::

        x <- x - rate |x| / |u| u        the factor |x| / |u| is 1 where one of the norms is zero

    You et al., "Large Batch Optimization for Deep Learning" (ICLR 2020), without weight decay, with the usual betas
    0.9 and 0.999 and eps 1e-6.
    """
    state.first.mul_(_BETA1).add_(gradient, alpha=1 - _BETA1)
    state.second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
    way = (state.second / (1 - _BETA2 ** (k + 1))).sqrt_().add_(_EPS).reciprocal_().mul_(state.first)
    way.div_(1 - _BETA1 ** (k + 1))
    own, of_way = state.value.norm(), way.norm()
    trust = torch.where((own > 0) & (of_way > 0), own / of_way, 1.0)
    state.value.sub_(way.mul_(rate * trust))


def cosine(step: int, steps: int, floor: float) -> float:
    """Return the share of the rate in a step, from 0: along half a cosine from 1 towards ``floor`` after ``steps``."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / steps)) / 2
