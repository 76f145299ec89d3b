"""The optimisers of the inner loop, and their adjoints: SGD with momentum, and Adam.

An optimiser carries a student from step k to step k + 1, given the gradient ``g_k`` and the rate ``b_k``. Its adjoint
goes back: given ``a = dJ/dw_{k+1}`` it names the vector ``q_k`` such that

    dJ/dx_k = d<g_k, q_k>/dx_k,    dJ/dy_k = d<g_k, q_k>/dy_k,    dJ/dw_k = a + H_k q_k

and the derivative ``dJ/db_k``. So one double backward pass a step serves every optimiser.

=============  ===========================================  ======================================================
optimiser      step                                         back
=============  ===========================================  ======================================================
SGD            ``v <- mu v + g``, ``w <- w - b v``          ``p <- p - b a``, ``q = p``, then ``p <- mu p``
Adam           as :class:`torch.optim.Adam`, with both      two carried vectors, one for each moment; see
               bias corrections                             :class:`Adam`
=============  ===========================================  ======================================================

A student is a tuple of vectors ``(P,)``: the weights first, then what the optimiser keeps. Its other vectors are zero
at the start. SGD with momentum has an adjoint of this form since Maclaurin, Duvenaud and Adams (2015).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError

Student = tuple[Tensor, ...]
"""The weights w ``(P,)``, followed by the vectors that the optimiser keeps, each ``(P,)``."""


class Adjoint(Protocol):
    """The way back through an optimiser's steps, from the last to the first; ``weights`` is ``a = dJ/dw``, ``(P,)``."""

    weights: Tensor
    needs_gradient: bool
    """Whether :meth:`vector` needs the step's gradient; it gets ``None`` otherwise."""

    def vector(self, k: int, student: Student, gradient: Tensor | None, rate: Tensor) -> Tensor:
        """Return ``q_k`` ``(P,)``. ``student`` is the one before step k. Called once a step."""
        ...

    def rate_gradient(self, k: int, student: Student, gradient: Tensor) -> Tensor:
        """Return ``dJ/db_k``, a scalar; called after :meth:`vector` and before :meth:`step_back`."""
        ...

    def step_back(self, curvature: Tensor | None) -> None:
        """Go on to the step before: add ``H_k q_k``, or nothing where the students are held constant."""
        ...


class InnerOptimiser(Protocol):
    """An optimiser that the engine can differentiate; :class:`SGD` and :class:`Adam` are those there are."""

    def begin(self, weights: Tensor) -> Student:
        """Return the student before the first step."""
        ...

    def step(self, k: int, student: Student, gradient: Tensor, rate: Tensor) -> Student:
        """Return the student after step k; differentiable by autograd in every tensor."""
        ...

    def adjoint(self, weights: Tensor) -> Adjoint:
        """Return the way back that starts with ``dJ/dw_T`` ``(P,)``."""
        ...

    def shares(self, rates: Tensor) -> Tensor | None:
        """Return the ``c_k`` ``(T,)`` with ``q_k = -c_k dJ/dw_T`` when the students are held constant.

        ``None``: there are no such numbers.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: ``v <- mu v + g``, ``w <- w - b v``, as :class:`torch.optim.SGD`.

    Args:
        momentum: mu, in [0, 1).

    Raises:
        UsageError: the momentum lies outside.
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must lie in [0, 1), not {self.momentum:g}.")

    def begin(self, weights: Tensor) -> Student:
        """Return the weights, and a velocity of zero if there is momentum."""
        return (weights, torch.zeros_like(weights)) if self.momentum else (weights,)

    def velocity(self, student: Student, gradient: Tensor) -> Tensor:
        """Return ``v_k`` ``(P,)``: the gradient itself without momentum."""
        return self.momentum * student[1] + gradient if self.momentum else gradient

    def step(self, k: int, student: Student, gradient: Tensor, rate: Tensor) -> Student:
        """Return the student after step k."""
        velocity = self.velocity(student, gradient)
        moved = student[0] - rate * velocity
        return (moved, velocity) if self.momentum else (moved,)

    def adjoint(self, weights: Tensor) -> "SGDAdjoint":
        """Return the way back that starts with ``dJ/dw_T`` ``(P,)``."""
        return SGDAdjoint(self, weights)

    def shares(self, rates: Tensor) -> Tensor:
        """Return ``c_k = b_k + mu c_{k+1}``."""
        return torch.stack(list(_backwards_sums(rates, self.momentum))[::-1]) if self.momentum else rates


def _backwards_sums(rates: Tensor, momentum: float) -> Iterator[Tensor]:
    carried = torch.zeros_like(rates[0])
    for rate in reversed(rates.unbind()):
        carried = rate + momentum * carried
        yield carried


PLAIN_SGD = SGD()
"""SGD without momentum, the default of the engine."""


class SGDAdjoint:
    """The way back through :class:`SGD`: ``p <- p - b a``; ``q = p``; then ``a <- a + H q``, ``p <- mu p``."""

    needs_gradient = False

    def __init__(self, optimiser: SGD, weights: Tensor) -> None:
        self.weights = weights
        self._optimiser = optimiser
        self._carried: Tensor | None = None  # p; None stands for zero

    def vector(self, k: int, student: Student, gradient: Tensor | None, rate: Tensor) -> Tensor:
        """Return ``q_k = p`` ``(P,)``."""
        way = -rate * self.weights
        self._carried = way if self._carried is None else self._carried + way
        return self._carried

    def rate_gradient(self, k: int, student: Student, gradient: Tensor) -> Tensor:
        """Return ``dJ/db_k = -<v_k, a>``."""
        return -torch.dot(self._optimiser.velocity(student, gradient), self.weights)

    def step_back(self, curvature: Tensor | None) -> None:
        """Add ``H q`` to a, and multiply p by the momentum."""
        if curvature is not None:
            self.weights = self.weights + curvature
        momentum = self._optimiser.momentum
        self._carried = momentum * self._carried if momentum and self._carried is not None else None


@dataclass(frozen=True)
class Adam:
    """Adam with both bias corrections, as :class:`torch.optim.Adam` (Kingma and Ba, 2015).

    With the moments ``m <- beta1 m + (1 - beta1) g`` and ``s <- beta2 s + (1 - beta2) g^2``, the corrections
    ``c1 = 1 - beta1^(k+1)`` and ``c2 = 1 - beta2^(k+1)``, and ``d = sqrt(s / c2) + eps``, a step is
    ``w <- w - b (m / c1) / d``. With the carried vectors ``lm`` and ``ls`` of the moments, the way back is::

        lm <- lm - b a / (c1 d)
        ls <- ls + b a (m / c1) / d^2 / (2 c2 sqrt(s / c2))
        q  = (1 - beta1) lm + 2 (1 - beta2) g ls
        then  a <- a + H q,   lm <- beta1 lm,   ls <- beta2 ls

    Where ``s = 0`` a parameter has never had a gradient, and the root has no derivative: its share of ls is zero.

    Args:
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: what is added to the root, positive.

    Raises:
        UsageError: a value lies outside.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise UsageError(
                f"Adam needs beta1 and beta2 in [0, 1) and a positive eps, not {self.beta1:g}, {self.beta2:g} and "
                f"{self.eps:g}."
            )

    def begin(self, weights: Tensor) -> Student:
        """Return the weights, and two moments of zero."""
        return weights, torch.zeros_like(weights), torch.zeros_like(weights)

    def corrections(self, k: int) -> tuple[float, float]:
        """Return ``c1`` and ``c2`` of step k."""
        return 1 - self.beta1 ** (k + 1), 1 - self.beta2 ** (k + 1)

    def moments(self, student: Student, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and s after a step with ``gradient``, each ``(P,)``."""
        _, m, s = student
        return self.beta1 * m + (1 - self.beta1) * gradient, self.beta2 * s + (1 - self.beta2) * gradient.square()

    def step(self, k: int, student: Student, gradient: Tensor, rate: Tensor) -> Student:
        """Return the student after step k."""
        c1, c2 = self.corrections(k)
        m, s = self.moments(student, gradient)
        return student[0] - rate * (m / c1) / (_root(s / c2) + self.eps), m, s

    def adjoint(self, weights: Tensor) -> "AdamAdjoint":
        """Return the way back that starts with ``dJ/dw_T`` ``(P,)``."""
        return AdamAdjoint(self, weights)

    def shares(self, rates: Tensor) -> None:
        """Return nothing: a step's share depends on all gradients before it."""
        return


class AdamAdjoint:
    """The way back through :class:`Adam`, whose docstring has the formulas."""

    needs_gradient = True

    def __init__(self, optimiser: Adam, weights: Tensor) -> None:
        self.weights = weights
        self._optimiser = optimiser
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)  # lm and ls

    def vector(self, k: int, student: Student, gradient: Tensor | None, rate: Tensor) -> Tensor:
        """Return ``q_k`` ``(P,)``."""
        assert gradient is not None, "the engine provides what needs_gradient asks for"
        o = self._optimiser
        c1, c2 = o.corrections(k)
        m, s = o.moments(student, gradient)
        root = _root(s / c2)
        way = rate * self.weights / (c1 * (root + o.eps))
        self._first = self._first - way
        self._second = self._second + torch.where(root > 0, way * m / ((root + o.eps) * 2 * c2 * root), 0)
        return (1 - o.beta1) * self._first + 2 * (1 - o.beta2) * gradient * self._second

    def rate_gradient(self, k: int, student: Student, gradient: Tensor) -> Tensor:
        """Return ``dJ/db_k = -<(m / c1) / d, a>``."""
        c1, c2 = self._optimiser.corrections(k)
        m, s = self._optimiser.moments(student, gradient)
        return -torch.dot(m / (c1 * (_root(s / c2) + self._optimiser.eps)), self.weights)

    def step_back(self, curvature: Tensor | None) -> None:
        """Add ``H q`` to a, and let the carried vectors decay."""
        if curvature is not None:
            self.weights = self.weights + curvature
        self._first, self._second = self._optimiser.beta1 * self._first, self._optimiser.beta2 * self._second


def _root(s: Tensor) -> Tensor:
    """Return the square root, with derivative zero at zero, where autograd's own is infinite."""
    positive = s > 0
    return torch.where(positive, torch.where(positive, s, 1).sqrt(), 0)


_PARTS = ("value", "first", "second")


def adam_state(students: Mapping[str, Student]) -> dict[str, Tensor]:
    """Return values that :class:`Adam` updates, by name, and their moments, as a method's checkpoint holds them."""
    return {f"{part}.{name}": t for name, s in students.items() for part, t in zip(_PARTS, s, strict=True)}


def adam_restored(state: Mapping[str, Tensor], names: Iterable[str], *, like: Tensor) -> dict[str, Student]:
    """Return the values ``names`` and their moments from what :func:`adam_state` returned."""
    return {name: tuple(state[f"{part}.{name}"].to(like) for part in _PARTS) for name in names}
