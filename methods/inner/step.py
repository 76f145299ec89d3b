"""One matching step: the student's gradient, and what its product with the adjoint depends on; eager or compiled.

Both passes of :mod:`~dcbench_tesla.methods.inner.gradients` are made of two operations at given weights ``w``, inputs
``x`` and labels ``y`` of a step:

    pass 1:  g = grad_w l(w; x, y)
    pass 2:  s = g . a,  u = ds/dw = H a,  h = ds/dx,  m = ds/dy,   with ``a`` the adjoint

:class:`MatchingStep` computes them by autograd, in reverse over reverse: eager, that keeps the least memory.
:class:`CompiledStep` compiles a graph for each and uses it for all steps of all iterations. There s is the derivative
of the loss along a, and everything else is its gradient, ``g = ds/da`` too (reverse over forward): the fastest order of
those tried on a CPU.

Shapes: P parameters; ``w``, ``a``, ``g`` and ``u`` are ``(P,)``, ``x`` and ``y`` any that the loss accepts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dcbench_tesla.compute.compiling import CompiledFunctions, Function
from dcbench_tesla.errors import UsageError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Built(NamedTuple):
    """One step's gradient with its graph, which ends at the step's own leaves: no step's graph holds another's."""

    weights: Tensor
    inputs: Tensor
    labels: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Back:
    """One step of pass 2: ``g``, ``s = g . a``, and the gradient of s in w (where asked for), x and y (if learned)."""

    gradient: Tensor
    product: Tensor
    curvature: Tensor | None
    inputs: Tensor
    labels: Tensor | None


def leaves(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a step's tensors off from what made them; labels ask for a gradient where they did before."""
    return x.detach().requires_grad_(), y.detach().requires_grad_(y.requires_grad)


class MatchingStep:
    """The operations of one step of ``loss(w, x, y)``, by autograd.

    ``loss``: a scalar function of a flat parameter vector, twice differentiable.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return ``g``, keeping no graph."""
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = grad(self.loss(w, x.detach(), y.detach()), w)
        return g

    def build(self, w: Tensor, x: Tensor, y: Tensor) -> Built:
        """Return ``g`` with its graph."""
        w = w.detach().requires_grad_()
        x, y = leaves(x, y)
        with torch.enable_grad():
            (g,) = grad(self.loss(w, x, y), w, create_graph=True)
        return Built(w, x, y, g)

    def back_through(self, built: Built, adjoint: Tensor, *, through_weights: bool) -> Back:
        """Differentiate the product of a built gradient with the adjoint: a double backward, which uses the graph up.

        ``through_weights``: whether ``u`` is wanted.
        """
        w, x, y, g = built
        with torch.enable_grad():
            product = torch.dot(g, adjoint)
        wanted = [x] + [y] * y.requires_grad + [w] * through_weights
        # a loss that is linear in one of them has no second derivative there: materialised as zeros
        h, *rest = grad(product, wanted, allow_unused=True, materialize_grads=True)
        m = rest.pop(0) if y.requires_grad else None
        u = rest.pop(0) if through_weights else None
        return Back(g.detach(), product.detach(), u, h, m)

    def back(self, w: Tensor, x: Tensor, y: Tensor, adjoint: Tensor, *, through_weights: bool) -> Back:
        """Build the step again and go back through it: :meth:`build`, then :meth:`back_through`."""
        return self.back_through(self.build(w, x, y), adjoint, through_weights=through_weights)


class CompiledStep(MatchingStep):
    """:class:`MatchingStep`, compiled for the shapes of its first call; other shapes are compiled when they come.

    Where the compiler fails the step goes on eagerly, see
    :class:`~dcbench_tesla.compute.compiling.CompiledFunctions`. A meter of live tensors sees none of what compiled code
    allocates, and is refused.

    Raises:
        UsageError: it is called while tensors are counted or made up (a dispatch mode).
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self._functions = CompiledFunctions("the matching step")

    @property
    def given_up(self) -> bool:
        """Whether the compiler failed."""
        return self._functions.given_up

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See :meth:`MatchingStep.gradient`."""
        w, x, y = w.detach(), x.detach(), y.detach()
        found = self._run("gradient", self._gradient, w, x, y)
        return super().gradient(w, x, y) if found is None else found[0]

    def back(self, w: Tensor, x: Tensor, y: Tensor, adjoint: Tensor, *, through_weights: bool) -> Back:
        """See :meth:`MatchingStep.back`."""
        learned = y.requires_grad
        wanted = (3, 1, *([2] if learned else []), *([0] if through_weights else []))  # g, h, m, u
        arguments = (w.detach(), x.detach(), y.detach(), adjoint.detach())
        found = self._run(wanted, torch.func.grad(self._along, argnums=wanted), *arguments)
        if found is None:
            return super().back(w, x, y, adjoint, through_weights=through_weights)
        g, h, *rest = found
        m = rest.pop(0) if learned else None
        return Back(g, torch.dot(g, adjoint), rest.pop(0) if through_weights else None, h, m)

    def _gradient(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (torch.func.grad(self.loss)(w, x, y),)

    def _along(self, w: Tensor, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """The derivative of the loss along ``a``: g . a."""
        derivative: Tensor = torch.func.jvp(lambda v: self.loss(v, x, y), (w,), (a,))[1]
        return derivative

    def _run(self, what: object, function: Function, *arguments: Tensor) -> tuple[Tensor, ...] | None:
        """Run ``function`` compiled; ``None`` where it cannot be."""
        if is_in_torch_dispatch_mode():
            raise UsageError(
                "live tensors of compiled steps cannot be counted: measure the eager program (--compile off), or take "
                "the allocator's peak (--meter cuda)."
            )
        return self._functions.run(what, function, *arguments)
