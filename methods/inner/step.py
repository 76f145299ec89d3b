"""One inner step: the student's gradient, and the derivatives of its product with a vector; eager or compiled.

Both passes of :mod:`~dcbench_tesla.methods.inner.engine` consist of two operations, at the weights ``w``, inputs ``x``
and labels ``y`` of a step:

    pass 1:  g = grad_w l(w; x, y)
    pass 2:  s = g . q,  u = ds/dw = H q,  h = ds/dx,  m = ds/dy,   with the vector ``q`` given

:class:`InnerStep` computes them by autograd, reverse over reverse, which needs the least memory in eager mode.
:class:`CompiledStep` compiles one graph for each operation and uses it for all steps of all iterations. There s is the
derivative of the loss along q, and everything else is a gradient of s, including ``g = ds/dq`` (reverse over forward).
This was the fastest order of those tried on a CPU.

Shapes: P parameters; ``w``, ``q``, ``g`` and ``u`` are ``(P,)``, ``x`` and ``y`` have any shape that the loss accepts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd import grad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dcbench_tesla.compute.compiling import CompiledFunctions, Function
from dcbench_tesla.errors import UsageError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Built(NamedTuple):
    """One step's gradient with its graph, which ends at the step's own leaves, so it holds no other step's graph."""

    weights: Tensor
    inputs: Tensor
    labels: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Back:
    """One step of pass 2: ``g``, and the gradients of ``s = g . q`` in w (if wanted), x, and y (if learned)."""

    gradient: Tensor
    curvature: Tensor | None
    inputs: Tensor
    labels: Tensor | None


def leaves(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Detach a step's tensors and make them leaves; labels require a gradient if they did before."""
    return x.detach().requires_grad_(), y.detach().requires_grad_(y.requires_grad)


def scalar(value: Tensor, what: str) -> Tensor:
    """Return ``value``, which ``what`` computed.

    Raises:
        UsageError: it is no scalar.
    """
    if value.shape != ():
        raise UsageError(f"the {what} must return a scalar, not a tensor of shape {tuple(value.shape)}.")
    return value


class InnerStep:
    """The operations of one step for ``loss(w, x, y)``, by autograd.

    ``loss`` is a scalar function of a flat parameter vector, and twice differentiable.
    """

    eager: ClassVar[bool] = True

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def value(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss with its graph.

        Raises:
            UsageError: it is no scalar.
        """
        return scalar(self.loss(w, x, y), "inner loss")

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return ``g`` ``(P,)`` without a graph."""
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = grad(self.value(w, x.detach(), y.detach()), w)
        return g

    def build(self, w: Tensor, x: Tensor, y: Tensor) -> Built:
        """Return ``g`` ``(P,)`` with its graph."""
        w = w.detach().requires_grad_()
        x, y = leaves(x, y)
        with torch.enable_grad():
            (g,) = grad(self.value(w, x, y), w, create_graph=True)
        return Built(w, x, y, g)

    def back_through(self, built: Built, vector: Tensor, *, through_weights: bool) -> Back:
        """Differentiate the product of a built gradient and ``vector`` (double backward), which frees the graph.

        ``through_weights`` says whether ``u`` is wanted.
        """
        w, x, y, g = built
        with torch.enable_grad():
            product = torch.dot(g, vector)
        wanted = [x] + [y] * y.requires_grad + [w] * through_weights
        # if the loss is linear in one of these, the second derivative does not exist in the graph: zeros in its place
        h, *rest = grad(product, wanted, allow_unused=True, materialize_grads=True)
        m = rest.pop(0) if y.requires_grad else None
        u = rest.pop(0) if through_weights else None
        return Back(g.detach(), u, h, m)

    def back(self, w: Tensor, x: Tensor, y: Tensor, vector: Tensor, *, through_weights: bool) -> Back:
        """Build the step again and differentiate through it: :meth:`build`, then :meth:`back_through`."""
        return self.back_through(self.build(w, x, y), vector, through_weights=through_weights)


class CompiledStep(InnerStep):
    """:class:`InnerStep`, compiled; each new combination of shapes is compiled at its first call.

    If the compiler fails, steps run eagerly (:class:`~dcbench_tesla.compute.compiling.CompiledFunctions`). A meter of
    live tensors would see nothing of what compiled code allocates, so calls under a meter are refused.

    Raises:
        UsageError: a step is called in a dispatch mode, which counts tensors or computes shapes only.
    """

    eager = False

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self._functions = CompiledFunctions("the inner step")

    @property
    def given_up(self) -> bool:
        """Whether the compiler failed, so that steps run eagerly."""
        return self._functions.given_up

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See :meth:`InnerStep.gradient`."""
        w, x, y = w.detach(), x.detach(), y.detach()
        found = self._run("gradient", self._gradient, w, x, y)
        return super().gradient(w, x, y) if found is None else found[0]

    def back(self, w: Tensor, x: Tensor, y: Tensor, vector: Tensor, *, through_weights: bool) -> Back:
        """See :meth:`InnerStep.back`."""
        learned = y.requires_grad
        wanted = (3, 1, *([2] if learned else []), *([0] if through_weights else []))  # g, h, m, u
        arguments = (w.detach(), x.detach(), y.detach(), vector.detach())
        found = self._run(wanted, torch.func.grad(self._along, argnums=wanted), *arguments)
        if found is None:
            return super().back(w, x, y, vector, through_weights=through_weights)
        g, h, *rest = found
        m = rest.pop(0) if learned else None
        return Back(g, rest.pop(0) if through_weights else None, h, m)

    def _gradient(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (torch.func.grad(self.loss)(w, x, y),)

    def _along(self, w: Tensor, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """Return the derivative of the loss along ``q``: g . q."""
        derivative: Tensor = torch.func.jvp(lambda v: self.loss(v, x, y), (w,), (q,))[1]
        return derivative

    def _run(self, what: object, function: Function, *arguments: Tensor) -> tuple[Tensor, ...] | None:
        """Run ``function`` compiled; return ``None`` if it cannot be compiled."""
        if is_in_torch_dispatch_mode():
            raise UsageError(
                "live tensors of compiled steps cannot be counted: measure the eager program (--compile off), or take "
                "the allocator's peak (--meter cuda)."
            )
        return self._functions.run(what, function, *arguments)
