"""The three gradients of trajectory matching, shared by ``mtt``, ``tesla`` and ``tesla-exact``.

A student starts at ``w_0``, takes T plain SGD steps with learning rate ``b`` on the synthetic batches::

    g_k = grad_w l(w_k; x_k, y_k),    w_{k+1} = w_k - b g_k,    k = 0 .. T-1

Then it is compared with the parameters ``w*`` that an expert arrived at (TESLA eq. 1, MTT eq. 2)::

    L = ||w_T - w*||^2 / ||w_0 - w*||^2

Wanted: the gradient of L with respect to every input ``x_k``, the labels ``y_k`` and ``b``.

========  =======================================================  ==================  =============================
mode      what it is                                               exact               kept besides one step's graph
========  =======================================================  ==================  =============================
unrolled  back-propagation through all T steps (MTT)               yes                 T - 1 more graphs
frozen    every ``w_k`` a constant in the images (TESLA)           for T = 1 only      nothing
exact     the adjoint of the recursion, one graph at a time        yes                 T weight vectors, or fewer
========  =======================================================  ==================  =============================

Pass 1 takes the T steps; pass 2 computes the gradients. Pass 2 of ``exact`` walks the steps backwards and needs each
``w_k`` again; the argument ``weights`` says where it comes from:

* ``device``: all T vectors stay on the device: 4 T P bytes in float32, no extra time;
* ``host``: they are kept in main memory (pinned where the device is a GPU): nothing grows on the device, and each
  vector is copied there and back;
* ``restep``: every ceil(sqrt(T))-th vector is kept and the others are computed again: about 2 sqrt(T) vectors on the
  device, and one more forward and backward pass for each step;
* ``auto`` (the default): ``device`` where the T vectors fit in a tenth of the device's free memory, else ``host``.
  On a CPU, where both are the same memory, it is ``device``.

Free memory can save time: with ``keep=K``, pass 1 of ``exact`` and ``frozen`` builds the last K steps with their
graphs, and pass 2 uses these instead of building them again. ``exact`` with K = T takes the memory and the time of
``unrolled``.

There are two forms. :func:`matching_gradient` takes sequences of T tensors and returns T gradients.
:func:`stream_matching_gradient` asks a :class:`Steps` for step k's tensors when it needs them and hands their gradient
over as soon as it is known, so that nothing of size T is kept but what the table says.

Shapes: T matching steps, P parameters; inputs and labels any shape the loss accepts. The derivation, and where the
paper's text differs from it, is in ``docs/gradients.md``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.autograd import grad

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.profilers import origin, phase
from dcbench_tesla.profilers.free import free_bytes

from .step import Back, Built, Loss, MatchingStep, leaves

Mode = Literal["unrolled", "frozen", "exact"]
Weights = Literal["auto", "device", "host", "restep"]

_AUTO_SHARE_OF_FREE_MEMORY = 0.1


class Steps(Protocol):
    """The T inner steps of one iteration: it makes step k's batch when asked for it, and takes its gradients."""

    def __len__(self) -> int:
        """Return the number of matching steps T."""
        ...

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the input ``x_k`` and the labels ``y_k`` of step k, in any shapes that the loss takes.

        Both passes ask for them, so the same k must give the same values. Labels whose gradient is wanted require one
        (``requires_grad``).
        """
        ...

    def accumulate(self, k: int, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        """Take the gradients of step k; called once for every k, in any order.

        Args:
            k: number of the step, 0 .. T-1.
            input_gradient: dL/dx_k, in the shape of the input.
            label_gradient: dL/dy_k, in the shape of the labels; ``None`` for labels that do not require a gradient.
        """
        ...


@dataclass(frozen=True)
class StreamedGradient:
    """The loss and the remaining gradient of a matching iteration whose other gradients went to :class:`Steps`.

    Attributes:
        loss: L, a scalar ``()``.
        lr: dL/db, a scalar ``()``.
        end: the parameters w_T at the end, ``(P,)``, detached.
    """

    loss: Tensor
    lr: Tensor
    end: Tensor


@dataclass(frozen=True)
class MatchingGradient:
    """The loss and the gradients of one matching iteration.

    Attributes:
        loss: L, a scalar ``()``.
        inputs: T gradients dL/dx_k, each in the shape of its input.
        labels: T gradients dL/dy_k, each in the shape of its labels; ``None`` for labels that do not require one.
        lr: dL/db, a scalar ``()``.
        end: the parameters w_T at the end, ``(P,)``, detached.
    """

    loss: Tensor
    inputs: tuple[Tensor, ...]
    labels: tuple[Tensor | None, ...]
    lr: Tensor
    end: Tensor


class _Collected:
    """Steps over two sequences: the plain form of the engine in terms of the streaming one."""

    def __init__(self, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        self._inputs, self._labels = inputs, labels
        self.input_gradients: dict[int, Tensor] = {}
        self.label_gradients: dict[int, Tensor | None] = {}

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        return self._inputs[k], self._labels[k]

    def accumulate(self, k: int, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        self.input_gradients[k] = input_gradient
        self.label_gradients[k] = label_gradient


def matching_gradient(
    loss: Loss | MatchingStep,
    start: Tensor,
    target: Tensor,
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    lr: Tensor | float,
    mode: Mode = "exact",
    *,
    weights: Weights = "auto",
    keep: int = 0,
) -> MatchingGradient:
    """Return the matching loss and its gradients with respect to all inputs, labels and the learning rate.

    A student takes T SGD steps from ``start`` and is compared with ``target`` (TESLA eq. 1, MTT eq. 2)::

        w_0 = start,    w_{k+1} = w_k - b grad_w l(w_k; x_k, y_k),    k = 0 .. T-1
        L = ||w_T - target||^2 / ||start - target||^2

    Args:
        loss: l, a scalar function ``loss(w, x, y)`` of a flat parameter vector ``(P,)``, twice differentiable by
            autograd; or the step made of one, such as a ``CompiledStep``.
        start: the student's first parameters w_0, ``(P,)``. The result has their type and device.
        target: the expert's parameters, ``(P,)``.
        inputs: T tensors x_k, in any shape that the loss takes.
        labels: T tensors y_k, likewise; those that require a gradient get one.
        lr: the student's learning rate b, a scalar.
        mode: ``exact``; ``unrolled``, the same gradient by back-propagation through all steps; or ``frozen``, TESLA's
            approximation.
        weights: where ``exact`` keeps the w_k: ``auto``, ``device``, ``host`` or ``restep``.
        keep: the number of steps whose graphs ``exact`` and ``frozen`` keep between their passes, at most T.

    Raises:
        UsageError: ``mode`` or ``weights`` is unknown; ``keep`` is negative, or is given for ``unrolled``; ``inputs``
            and ``labels`` are empty or differ in length; ``start`` and ``target`` differ in shape, are no vectors, or
            are equal, so that L is undefined.

    Example:
        >>> import torch
        >>> loss = lambda theta, x, y: ((x @ theta - y) ** 2).mean()
        >>> start, target = torch.zeros(2), torch.ones(2)
        >>> x, y = [torch.eye(2)] * 3, [torch.ones(2)] * 3
        >>> result = matching_gradient(loss, start, target, x, y, lr=0.5, mode="exact")
        >>> round(result.loss.item(), 4), len(result.inputs), result.labels[0] is None
        (0.0156, 3, True)
    """
    if len(inputs) != len(labels):
        raise UsageError(f"{len(inputs)} inputs but {len(labels)} labels: each matching step needs one of both.")
    steps = _Collected(inputs, labels)
    streamed = stream_matching_gradient(loss, start, target, steps, lr, mode, weights=weights, keep=keep)
    order = range(len(inputs))
    return MatchingGradient(
        loss=streamed.loss,
        inputs=tuple(steps.input_gradients[k] for k in order),
        labels=tuple(steps.label_gradients[k] for k in order),
        lr=streamed.lr,
        end=streamed.end,
    )


def stream_matching_gradient(
    loss: Loss | MatchingStep,
    start: Tensor,
    target: Tensor,
    steps: Steps,
    lr: Tensor | float,
    mode: Mode = "exact",
    *,
    weights: Weights = "auto",
    keep: int = 0,
) -> StreamedGradient:
    """Compute what :func:`matching_gradient` computes, with the tensors of one step at a time.

    The gradients of a step go to ``steps.accumulate`` as soon as they are known and are not kept.

    Args:
        loss: as for :func:`matching_gradient`.
        start: w_0, ``(P,)``.
        target: the expert's parameters, ``(P,)``.
        steps: the T steps, in place of ``inputs`` and ``labels``.
        lr: the student's learning rate b, a scalar.
        mode: as for :func:`matching_gradient`.
        weights: as for :func:`matching_gradient`.
        keep: as for :func:`matching_gradient`.

    Raises:
        UsageError: as :func:`matching_gradient`; there are no steps.
    """
    _check(start, target, len(steps), mode, weights, keep)
    start, target = start.detach(), target.detach()
    rate = torch.as_tensor(lr, dtype=start.dtype, device=start.device).detach()
    step = loss if isinstance(loss, MatchingStep) else MatchingStep(loss)
    if mode == "unrolled":
        return _unrolled(step.loss, start, target, steps, rate)
    if mode == "frozen":
        return _frozen(step, start, target, steps, rate, keep)
    return _exact(step, start, target, steps, rate, weights, keep)


def _check(start: Tensor, target: Tensor, count: int, mode: str, weights: str, keep: int) -> None:
    if mode not in get_args(Mode):
        raise unknown_name("mode", mode, get_args(Mode))
    if weights not in get_args(Weights):
        raise unknown_name("place for the weights", weights, get_args(Weights))
    if keep < 0:
        raise UsageError(f"keep must not be negative, but is {keep}.")
    if keep and mode == "unrolled":
        raise UsageError("mode unrolled keeps the graphs of all steps: give keep with mode exact or frozen only.")
    if start.ndim != 1 or start.shape != target.shape:
        shapes = f"{tuple(start.shape)} and {tuple(target.shape)}"
        raise UsageError(f"start and target must be vectors of one length, not {shapes}.")
    if count == 0:
        raise UsageError("no matching steps: give at least one input.")
    has_values = type(start.detach()) is Tensor and not start.is_meta  # fake tensors, which predict memory, have none
    if has_values and torch.equal(start, target):
        raise UsageError("start and target are equal, so the matching loss (divided by their distance) is undefined.")


def _distance(start: Tensor, target: Tensor) -> Tensor:
    """D = ||w_0 - w*||^2."""
    return (start - target).square().sum()


def _unrolled(loss: Loss, start: Tensor, target: Tensor, steps: Steps, rate: Tensor) -> StreamedGradient:
    """Keep the graph of all T steps and go back through it once: the original MTT."""
    rate = rate.clone().requires_grad_()
    with origin("trajectory"):
        w = start.clone().requires_grad_()
    wanted: list[Tensor] = []
    owners: list[tuple[int, bool]] = []  # which step a tensor belongs to, and whether it is its input
    with phase("pass 1"):
        for k in range(len(steps)):
            x, y = leaves(*steps.batch(k))
            with torch.enable_grad():
                (g,) = grad(loss(w, x, y), w, create_graph=True)
                with origin("trajectory"):
                    w = w - rate * g
            wanted.append(x)
            owners.append((k, True))
            if y.requires_grad:
                wanted.append(y)
                owners.append((k, False))
        with torch.enable_grad():
            value = (w - target).square().sum() / _distance(start, target)
    with phase("pass 2"):
        rate_gradient, *gradients = grad(value, [rate, *wanted], allow_unused=True, materialize_grads=True)
        by_owner = dict(zip(owners, gradients, strict=True))
        for k in range(len(steps)):
            steps.accumulate(k, by_owner[k, True], by_owner.get((k, False)))
    return StreamedGradient(value.detach(), rate_gradient, w.detach())


def _frozen(
    step: MatchingStep, start: Tensor, target: Tensor, steps: Steps, rate: Tensor, keep: int
) -> StreamedGradient:
    """Run pass 2 forwards with the adjoint of the end, re-stepping w as it goes: nothing of size T is kept.

    The adjoint is the same for every step, so that their order is free. Kept graphs come first: all of them are gone
    before another is built. With the graphs of all steps kept nothing is re-stepped.
    """
    first = max(len(steps) - keep, 0)
    end = start
    with phase("pass 1"):
        for k in range(first):
            end = _advance(step, end, *steps.batch(k), rate)
        kept, end = _keep(step, end, steps, rate, first)
        distance = _distance(start, target)
        with origin("trajectory"):
            adjoint = 2 * (end - target) / distance
    with phase("pass 2"):
        rate_gradient = torch.zeros_like(rate)
        for k in reversed(range(first, len(steps))):
            back = step.back_through(kept.pop(), adjoint, through_weights=False)
            rate_gradient -= back.product
            _hand_over(steps, k, back, rate)
            del back
        w = start
        for k in range(first):
            back = step.back(w, *steps.batch(k), adjoint, through_weights=False)
            rate_gradient -= back.product
            _hand_over(steps, k, back, rate)
            with origin("trajectory"):
                w = w - rate * back.gradient
            del back  # or this step's vectors live on while the next one's graph is built
    return StreamedGradient((end - target).square().sum() / distance, rate_gradient, end)


def _exact(
    step: MatchingStep, start: Tensor, target: Tensor, steps: Steps, rate: Tensor, weights: Weights, keep: int
) -> StreamedGradient:
    """Run the adjoint recursion ``a_k = a_{k+1} - b H_k a_{k+1}`` backwards over the trajectory."""
    with phase("pass 1"):
        trajectory = _Trajectory(step, start, steps, rate, weights, keep)
        end = trajectory.end
        distance = _distance(start, target)
        with origin("trajectory"):
            adjoint = 2 * (end - target) / distance
        value = (end - target).square().sum() / distance
    with phase("pass 2"):
        rate_gradient = torch.zeros_like(rate)
        for k, held in trajectory.backwards():
            # the first step's start is a constant: nothing asks for the adjoint before it
            if isinstance(held, Built):
                back = step.back_through(held, adjoint, through_weights=k > 0)
            else:
                back = step.back(held, *steps.batch(k), adjoint, through_weights=k > 0)
            rate_gradient -= back.product
            _hand_over(steps, k, back, rate)
            if back.curvature is not None:
                with origin("trajectory"):
                    adjoint = adjoint - rate * back.curvature
            del back, held  # or they live on while the next step's graph is built
    return StreamedGradient(value, rate_gradient, end)


def _advance(step: MatchingStep, w: Tensor, x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """Return ``w - b g(w)``, keeping no graph."""
    g = step.gradient(w, x, y)
    with origin("trajectory"):
        return w.detach() - rate * g


def _keep(step: MatchingStep, w: Tensor, steps: Steps, rate: Tensor, first: int) -> tuple[list[Built], Tensor]:
    """Take the steps from ``first`` to the last, starting at ``w``; return their graphs and where they arrive."""
    kept: list[Built] = []
    for k in range(first, len(steps)):
        kept.append(step.build(w, *steps.batch(k)))
        with origin("trajectory"):
            w = w - rate * kept[-1].gradient.detach()
    return kept, w


def _hand_over(steps: Steps, k: int, back: Back, rate: Tensor) -> None:
    with origin("inputs"):
        steps.accumulate(k, -rate * back.inputs, None if back.labels is None else -rate * back.labels)


class _Trajectory:
    """Pass 1 of ``exact``: the students w_0 .. w_T, and their steps handed out backwards.

    The last ``keep`` steps stay built. The others are to be built again, at the w_k that ``weights`` keeps or re-steps.
    """

    def __init__(
        self, step: MatchingStep, start: Tensor, steps: Steps, rate: Tensor, weights: Weights, keep: int
    ) -> None:
        self._step, self._steps, self._rate = step, steps, rate
        self._first = max(len(steps) - keep, 0)  # of the steps that stay built
        place = _resolve(weights, start, self._first)
        self._on_host = place == "host"
        self._stride = math.ceil(math.sqrt(self._first)) if place == "restep" and self._first else 1
        self._kept: dict[int, Tensor] = {}
        w = start
        for k in range(self._first):
            if k % self._stride == 0:
                with origin("trajectory"):
                    self._kept[k] = _to_host(w) if self._on_host else w
            w = self._advance(k, w)
        self._built, self.end = _keep(step, w, steps, rate, self._first)
        self._device = w.device

    def _advance(self, k: int, w: Tensor) -> Tensor:
        return _advance(self._step, w, *self._steps.batch(k), self._rate)

    def backwards(self) -> Iterator[tuple[int, Built | Tensor]]:
        """Yield every ``k = T-1 .. 0``, and its step as built or its w_k; both are let go of as they are handed out."""
        for k in reversed(range(self._first, len(self._steps))):
            yield k, self._built.pop()
        for first in reversed(range(0, self._first, self._stride)):
            segment = {first: self._kept.pop(first)}
            for k in range(first, min(first + self._stride, self._first) - 1):
                segment[k + 1] = self._advance(k, segment[k])
            for k in sorted(segment, reverse=True):
                with origin("trajectory"):
                    w = segment.pop(k).to(self._device, non_blocking=True)
                yield k, w
                del w


def _resolve(weights: Weights, start: Tensor, count: int) -> Weights:
    if weights != "auto":
        return weights
    if start.device.type != "cuda":
        return "device"
    needed = count * start.numel() * start.element_size()
    return "device" if needed <= _AUTO_SHARE_OF_FREE_MEMORY * free_bytes(start.device) else "host"


def _to_host(w: Tensor) -> Tensor:
    if w.is_meta:  # nothing to copy: the empty vector stands for it where memory is predicted
        return torch.empty(w.shape, dtype=w.dtype, device="cpu")
    host = torch.empty(w.shape, dtype=w.dtype, device="cpu", pin_memory=w.device.type == "cuda")
    return host.copy_(w)
