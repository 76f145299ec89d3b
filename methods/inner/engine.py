"""The inner loop's gradient: how an objective of a student's last weights depends on the batches it was trained on.

A student starts at ``w_0`` and takes T steps of an optimiser with rates ``b_k`` on the synthetic batches. For SGD::

    g_k = grad_w l(w_k; x_k, y_k),    w_{k+1} = w_k - b_k g_k,    k = 0 .. T-1

At its end stands any differentiable scalar ``J(w_T)``: the distance to an expert's weights (MTT, TESLA), the loss on
real images (dataset distillation, back-propagation through time). Wanted: the gradient of J with respect to every
input ``x_k``, the labels ``y_k`` and the rates.

========  =======================================================  ==================  =============================
mode      what it is                                               exact               kept besides one step's graph
========  =======================================================  ==================  =============================
unrolled  back-propagation through all T steps (MTT)               yes                 T - 1 more graphs
frozen    every ``w_k`` a constant in the images (TESLA)           for T = 1 only      nothing (Adam: as exact)
exact     the adjoint of the recursion, one graph at a time        yes                 T students, or fewer
========  =======================================================  ==================  =============================

Pass 1 takes the T steps; pass 2 computes the gradients. Pass 2 of ``exact`` walks the steps backwards and needs each
student again (``w_k``, and what the optimiser keeps); the argument ``weights`` says where it comes from:

* ``device``: all T students stay on the device: 4 T P bytes in float32, no extra time;
* ``host``: they are kept in main memory (pinned where the device is a GPU): nothing grows on the device, and each
  vector is copied there and back;
* ``restep``: every ceil(sqrt(T))-th student is kept and the others are computed again: about 2 sqrt(T) students on the
  device, and one more forward and backward pass for each step;
* ``auto`` (the default): ``device`` where the T students fit in a tenth of the device's free memory, else ``host``.
  On a CPU, where both are the same memory, it is ``device``.

With ``micro_batch=m``, m images go through the network at once: one piece's graph exists at a time, and memory is flat
in the batch too (:mod:`~dcbench_tesla.methods.inner.batches`). With ``window=W`` only the last W steps are
differentiated, as RaT-BPTT does; the others are taken and forgotten.

Free memory can save time: with ``keep=K``, pass 1 of ``exact`` and ``frozen`` builds the last K steps with their
graphs, and pass 2 uses these instead of building them again. ``exact`` with K = T takes the memory and the time of
``unrolled``.

There are two forms. :func:`inner_gradient` takes sequences of T tensors and returns T gradients.
:func:`stream_inner_gradient` asks a :class:`Steps` for step k's tensors when it needs them and hands their gradient
over as soon as it is known, so that nothing of size T is kept but what the table says.

Shapes: T inner steps, P parameters; inputs and labels any shape the loss accepts, images first in micro-batches. The
derivation, who found it first, and where TESLA's text differs from it, is in ``docs/gradients.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import grad

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.profilers import origin, phase

from .batches import Batches, Steps
from .objectives import MeanLoss
from .optimisers import PLAIN_SGD, InnerOptimiser, Student
from .step import Built, InnerStep, Loss, leaves, scalar
from .students import Loop, Students, Weights

Mode = Literal["unrolled", "frozen", "exact"]
Objective = Callable[[Tensor], Tensor]
"""``J(w_T)``: a differentiable scalar of the last weights ``(P,)``.

Of a :class:`~dcbench_tesla.methods.inner.objectives.MeanLoss` the gradient is computed some images at a time.
"""


@dataclass(frozen=True)
class StreamedGradient:
    """The objective and the remaining gradient of an inner loop whose other gradients went to :class:`Steps`.

    Attributes:
        loss: J, a scalar ``()``.
        lr: dJ/db, in the shape of the rates: ``()`` or ``(T,)``.
        end: the weights w_T at the end, ``(P,)``, detached.
    """

    loss: Tensor
    lr: Tensor
    end: Tensor


@dataclass(frozen=True)
class InnerGradient:
    """The objective and the gradients of one inner loop.

    Attributes:
        loss: J, a scalar ``()``.
        inputs: T gradients dJ/dx_k, each in the shape of its input.
        labels: T gradients dJ/dy_k, each in the shape of its labels; ``None`` for labels that do not require one.
        lr: dJ/db, in the shape of the rates: ``()`` or ``(T,)``.
        end: the weights w_T at the end, ``(P,)``, detached.
    """

    loss: Tensor
    inputs: tuple[Tensor, ...]
    labels: tuple[Tensor | None, ...]
    lr: Tensor
    end: Tensor


class Collected:
    """Steps over two sequences: the plain form of the engine in terms of the streaming one.

    Raises:
        UsageError: the sequences differ in length.
    """

    def __init__(self, inputs: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        if len(inputs) != len(labels):
            raise UsageError(f"{len(inputs)} inputs but {len(labels)} labels: each inner step needs one of both.")
        self._inputs, self._labels = inputs, labels
        self._input_gradients: dict[int, list[Tensor]] = {}
        self._label_gradients: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        """See :class:`Steps`."""
        return len(self._inputs)

    def size(self, k: int) -> int:
        """See :class:`Steps`."""
        return len(self._inputs[k])

    def batch(self, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        """See :class:`Steps`."""
        whole = rows == slice(None)  # a tensor without dimensions has no rows
        return (self._inputs[k], self._labels[k]) if whole else (self._inputs[k][rows], self._labels[k][rows])

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        """See :class:`Steps`; the pieces of a batch come in order."""
        self._input_gradients.setdefault(k, []).append(input_gradient)
        if label_gradient is not None:
            self._label_gradients.setdefault(k, []).append(label_gradient)

    def result(self, streamed: StreamedGradient) -> InnerGradient:
        """Return all gradients; those of steps outside of the window are zero."""
        inputs = tuple(_joined(self._input_gradients.get(k), x) for k, x in enumerate(self._inputs))
        labels = tuple(
            _joined(self._label_gradients.get(k), y) if y.requires_grad else None for k, y in enumerate(self._labels)
        )
        return InnerGradient(streamed.loss, inputs, labels, streamed.lr, streamed.end)


def _joined(pieces: list[Tensor] | None, like: Tensor) -> Tensor:
    if not pieces:
        return torch.zeros_like(like.detach())
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def inner_gradient(
    loss: Loss | InnerStep,
    start: Tensor,
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    lr: Tensor | float,
    *,
    objective: Objective,
    mode: Mode = "exact",
    optimiser: InnerOptimiser = PLAIN_SGD,
    micro_batch: int = 0,
    window: int = 0,
    weights: Weights = "auto",
    keep: int = 0,
) -> InnerGradient:
    """Return an objective of a student's last weights, and its gradients in all inputs, labels and learning rates.

    The student takes T steps of ``optimiser`` from ``start``; for SGD ``w_{k+1} = w_k - b_k grad_w l(w_k; x_k, y_k)``.

    Args:
        loss: l, a scalar function ``loss(w, x, y)`` of a flat parameter vector ``(P,)``, twice differentiable by
            autograd, and a mean over the batch; or the step made of one, such as a ``CompiledStep``.
        start: the student's first weights w_0, ``(P,)``. The result has their type and device.
        inputs: T tensors x_k, in any shape that the loss takes.
        labels: T tensors y_k, likewise; those that require a gradient get one.
        lr: the learning rate b, a scalar, or a rate for each step, ``(T,)``.
        objective: J, a differentiable scalar function of the last weights ``(P,)``.
        mode: ``exact``; ``unrolled``, the same gradient by back-propagation through all steps; or ``frozen``, TESLA's
            approximation, in which every w_k is a constant where its gradient is taken.
        optimiser: the student's, :class:`~dcbench_tesla.methods.inner.optimisers.SGD` or
            :class:`~dcbench_tesla.methods.inner.optimisers.Adam`.
        micro_batch: images in the network at once; 0: the whole batch. The images of a batch must not depend on each
            other: no batch norm (:func:`~dcbench_tesla.methods.inner.batches.micro_batch_error`).
        window: W, the number of steps at the end that are differentiated; 0: all. The gradients of the others are 0.
        weights: where ``exact`` keeps the students: ``auto``, ``device``, ``host`` or ``restep``.
        keep: the number of steps whose graphs ``exact`` and ``frozen`` keep between their passes, at most T.

    Raises:
        UsageError: ``mode`` or ``weights`` is unknown; ``keep``, ``micro_batch`` or ``window`` is negative; ``keep`` or
            ``micro_batch`` is given for ``unrolled``; ``inputs`` and ``labels`` are empty or differ in length;
            ``start`` is no vector; ``lr`` is neither a scalar nor ``(T,)``; ``loss`` or the objective is no scalar.

    Example:
        >>> import torch
        >>> loss = lambda theta, x, y: ((x @ theta - y) ** 2).mean()
        >>> objective = lambda theta: (theta - 1).square().sum()
        >>> x, y = [torch.eye(2)] * 3, [torch.ones(2)] * 3
        >>> rates = torch.tensor([0.5, 0.25, 0.25])
        >>> result = inner_gradient(loss, torch.zeros(2), x, y, rates, objective=objective)
        >>> round(result.loss.item(), 4), result.lr.shape, result.end
        (0.1582, torch.Size([3]), tensor([0.7188, 0.7188]))
    """
    steps = Collected(inputs, labels)
    return steps.result(
        stream_inner_gradient(
            loss,
            start,
            steps,
            lr,
            objective=objective,
            mode=mode,
            optimiser=optimiser,
            micro_batch=micro_batch,
            window=window,
            weights=weights,
            keep=keep,
        )
    )


def stream_inner_gradient(
    loss: Loss | InnerStep,
    start: Tensor,
    steps: Steps,
    lr: Tensor | float,
    *,
    objective: Objective,
    mode: Mode = "exact",
    optimiser: InnerOptimiser = PLAIN_SGD,
    micro_batch: int = 0,
    window: int = 0,
    weights: Weights = "auto",
    keep: int = 0,
) -> StreamedGradient:
    """Compute what :func:`inner_gradient` computes, with the tensors of one step, or one micro-batch, at a time.

    The gradients of a step go to ``steps.accumulate`` as soon as they are known and are not kept. Steps outside of the
    window get none.

    Args:
        loss: as for :func:`inner_gradient`, like all arguments that are not named here.
        start: w_0, ``(P,)``.
        steps: the T steps, in place of ``inputs`` and ``labels``.
        lr: b, ``()`` or ``(T,)``.
        objective: J.
        mode: of the gradient.
        optimiser: the student's.
        micro_batch: images in the network at once.
        window: W.
        weights: where students are kept.
        keep: number of graphs that are kept.

    Raises:
        UsageError: as :func:`inner_gradient`; there are no steps.
    """
    _check(start, steps, mode, weights, keep, micro_batch, window)
    start = start.detach()
    rate = torch.as_tensor(lr, dtype=start.dtype, device=start.device).detach()
    if rate.shape not in ((), (len(steps),)):
        raise UsageError(f"lr must be a scalar or a rate for each of {len(steps)} steps, not {tuple(rate.shape)}.")
    batches = Batches(loss if isinstance(loss, InnerStep) else InnerStep(loss), steps, micro_batch)
    loop = Loop(batches, optimiser, rate.expand(len(steps)))
    before = len(steps) - min(window or len(steps), len(steps))
    span = range(before, len(steps))
    if mode == "unrolled":
        return _unrolled(loop, start, span, objective, rate)
    by_step = torch.zeros_like(loop.rates, memory_format=torch.contiguous_format)
    shares = optimiser.shares(loop.rates[before:]) if mode == "frozen" else None
    if shares is None:
        held = mode == "frozen"
        value, end = _backwards(loop, start, span, objective, by_step, weights, keep, hold_students=held)
    else:
        value, end = _forwards(loop, start, span, objective, by_step, shares, keep)
    return StreamedGradient(value, by_step if rate.ndim else by_step.sum(), end)


def _check(start: Tensor, steps: Steps, mode: str, weights: str, keep: int, micro_batch: int, window: int) -> None:
    if mode not in get_args(Mode):
        raise unknown_name("mode", mode, get_args(Mode))
    if weights not in get_args(Weights):
        raise unknown_name("place for the weights", weights, get_args(Weights))
    for name, value in (("keep", keep), ("micro_batch", micro_batch), ("window", window)):
        if value < 0:
            raise UsageError(f"{name} must not be negative, but is {value}.")
    if mode == "unrolled" and keep:
        raise UsageError("mode unrolled keeps the graphs of all steps: give keep with mode exact or frozen only.")
    if mode == "unrolled" and micro_batch:
        raise UsageError(
            "mode unrolled keeps the graphs of all steps, so micro_batch would save nothing: give it with mode exact "
            "(the same gradient) or frozen only."
        )
    if start.ndim != 1 or not start.is_floating_point():
        raise UsageError(f"start must be a vector of floating-point numbers, not {start.dtype} {tuple(start.shape)}.")
    if len(steps) == 0:
        raise UsageError("no inner steps: give at least one input.")


def _evaluated(objective: Objective, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``J(w)`` and its gradient ``(P,)``, detached."""
    if isinstance(objective, MeanLoss):
        return objective.value_and_gradient(w)
    w = w.detach().requires_grad_()
    with torch.enable_grad(), origin("trajectory"):
        value = _differentiable(scalar(objective(w), "objective"))
        (gradient,) = grad(value, w, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient


def _differentiable(value: Tensor) -> Tensor:
    if not value.requires_grad:
        raise UsageError("the objective's value has no gradient: it must be differentiable in the last weights.")
    return value


def _unrolled(loop: Loop, start: Tensor, span: range, objective: Objective, rate: Tensor) -> StreamedGradient:
    """Keep the graph of all steps and go back through it once: the original MTT."""
    rate = rate.clone().requires_grad_()
    rates = rate.expand(len(loop.batches.steps))
    wanted: list[Tensor] = []
    owners: list[tuple[int, bool]] = []  # which step a tensor belongs to, and whether it is its input
    with phase("pass 1"):
        student = loop.at(start, span.start)
        with origin("trajectory"):
            student = (student[0].clone().requires_grad_(), *student[1:])
        for k in span:
            x, y = leaves(*loop.batches.steps.batch(k, slice(None)))
            with torch.enable_grad():
                (g,) = grad(loop.batches.step.value(student[0], x, y), student[0], create_graph=True)
                with origin("trajectory"):
                    student = loop.optimiser.step(k, student, g, rates[k])
            wanted.append(x)
            owners.append((k, True))
            if y.requires_grad:
                wanted.append(y)
                owners.append((k, False))
        with torch.enable_grad():
            value = _differentiable(scalar(objective(student[0]), "objective"))
    with phase("pass 2"):
        rate_gradient, *gradients = grad(value, [rate, *wanted], allow_unused=True, materialize_grads=True)
        by_owner = dict(zip(owners, gradients, strict=True))
        for k in span:
            loop.batches.steps.accumulate(k, slice(None), by_owner[k, True], by_owner.get((k, False)))
    return StreamedGradient(value.detach(), rate_gradient, student[0].detach())


def _forwards(
    loop: Loop, start: Tensor, span: range, objective: Objective, by_step: Tensor, shares: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """Run pass 2 of ``frozen`` forwards, re-stepping the student as it goes: nothing of size T is kept.

    Every step's vector is the gradient of the end times a number, so that their order is free. Kept graphs come first:
    all of them are gone before another is built. With the graphs of all steps kept nothing is re-stepped.
    """
    batches, again = loop.batches, span[: max(len(span) - keep, 0)]
    with phase("pass 1"):
        student = end = loop.at(start, span.start)
        for k in again:
            end = loop.advance(k, end)
        kept, end = loop.keep(end, span[len(again) :])
        value, gradient_of_end = _evaluated(objective, end[0])
        adjoint = loop.optimiser.adjoint(gradient_of_end)

    def back(k: int, student: Student, built: list[Built] | None) -> Tensor:
        with origin("trajectory"):
            vector = -shares[k - span.start] * gradient_of_end
        gradient, _ = batches.back(k, student[0], vector, built=built, through_weights=False)
        by_step[k] = adjoint.rate_gradient(k, student, gradient)
        return gradient

    with phase("pass 2"):
        for k in reversed(span[len(again) :]):
            back(k, *kept.pop())
        for k in again:
            student = loop.moved(k, student, back(k, student, None))
    return value, end[0]


def _backwards(
    loop: Loop,
    start: Tensor,
    span: range,
    objective: Objective,
    by_step: Tensor,
    weights: Weights,
    keep: int,
    *,
    hold_students: bool,
) -> tuple[Tensor, Tensor]:
    """Run the optimiser's adjoint backwards over the students; ``hold_students`` leaves the curvature out."""
    batches = loop.batches
    with phase("pass 1"):
        students = Students(loop, loop.at(start, span.start), span, weights, keep)
        end = students.end[0]
        value, gradient = _evaluated(objective, end)
        adjoint = loop.optimiser.adjoint(gradient)
        del gradient
    with phase("pass 2"):
        for k, student, built in students.backwards():
            known = None
            if adjoint.needs_gradient:
                if built is None and batches.step.eager and batches.is_whole(k):
                    built = batches.build(k, student[0])  # its graph serves the way back too
                known = batches.gradient_of(k, built) if built else batches.gradient(k, student[0])
            with origin("trajectory"):
                vector = adjoint.vector(k, student, known, loop.rates[k])
            # the first step's start is a constant: nothing asks for the adjoint before it
            onwards = not hold_students and k > span.start
            found, curvature = batches.back(k, student[0], vector, built=built, through_weights=onwards)
            with origin("trajectory"):
                by_step[k] = adjoint.rate_gradient(k, student, found)
                adjoint.step_back(curvature)
            del student, built, known, vector, found, curvature  # or they live on while the next graph is built
    return value, end
