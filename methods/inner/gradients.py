"""The three gradients of trajectory matching, shared by ``mtt``, ``tesla`` and ``tesla-exact``.

A student starts at ``w_0``, takes T plain SGD steps with learning rate ``b`` on the synthetic batches,

    g_k = grad_w l(w_k; x_k, y_k),    w_{k+1} = w_k - b g_k,    k = 0 .. T-1,

and is compared with where an expert arrived:  ``L = ||w_T - w*||^2 / ||w_0 - w*||^2``  (TESLA eq. 1, MTT eq. 2).
Wanted: the gradient of L with respect to every input ``x_k``, the labels ``y_k`` and ``b``.

========  =======================================================  ==================  =============================
mode      what it is                                               exact               kept besides one step's graph
========  =======================================================  ==================  =============================
unrolled  back-propagation through all T steps (MTT)               yes                 T - 1 more graphs
frozen    every ``w_k`` a constant in the images (TESLA)           for T = 1 only      nothing
exact     the adjoint of the recursion, one graph at a time        yes                 T weight vectors, or fewer
========  =======================================================  ==================  =============================

``exact`` walks the steps backwards and needs each ``w_k`` again; the setting ``weights`` says where it comes from:

* ``device``: all T vectors stay on the device, 4 T P bytes in float32, no extra time;
* ``host``: they are kept in main memory (pinned where the device is a GPU), nothing grows on the device, the price
  is one copy each way a step;
* ``restep``: every ceil(sqrt(T))-th is kept and the others are re-stepped, about 2 sqrt(T) vectors on the device,
  the price is one more forward and backward pass a step;
* ``auto`` (the default): ``device`` where the T vectors fit in a tenth of the device's free memory, else ``host``.
  On a CPU device and host are the same memory, so it is ``device`` there.

Memory that is free buys time: with ``keep=K``, pass 1 of ``exact`` and ``frozen`` builds the last K steps with their
graphs, and pass 2 takes these instead of rebuilding them. ``exact`` with K = T does what ``unrolled`` does.

Two forms: :func:`matching_gradient` takes sequences of T tensors and returns T gradients;
:func:`stream_matching_gradient` asks a :class:`Steps` for step k's tensors when it needs them and hands the gradient
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
    """The T inner steps of one iteration: makes step k's tensors on demand and takes their gradients."""

    def __len__(self) -> int:
        """Return the number of matching steps T."""
        ...

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Return step k's input and labels; asked again, the same values. Labels that want a gradient require one."""
        ...

    def accumulate(self, k: int, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        """Take step k's gradients; called once for every k, in any order."""
        ...


@dataclass(frozen=True)
class StreamedGradient:
    """What one streamed matching iteration leaves besides the gradients it handed over.

    ``loss``: L, a scalar. ``lr``: dL/db, a scalar. ``end``: w_T ``(P,)``, detached.
    """

    loss: Tensor
    lr: Tensor
    end: Tensor


@dataclass(frozen=True)
class MatchingGradient:
    """Loss and gradients of one matching iteration.

    ``loss``: L, a scalar. ``inputs``: dL/dx_k for every step. ``labels``: dL/dy_k, ``None`` for labels that do not
    require a gradient. ``lr``: dL/db, a scalar. ``end``: w_T ``(P,)``, detached.
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
    """Return L and its gradient with respect to every step's input, its labels and the student's learning rate.

    Args:
        loss: any scalar function ``loss(theta, x, y)`` of a flat parameter vector, twice differentiable by autograd; or
            the operations made of one (:class:`~dcbench_tesla.methods.inner.step.CompiledStep`).
        start: ``w_0``, ``(P,)``.
        target: ``w*``, ``(P,)``.
        inputs: T tensors ``x_k``.
        labels: T tensors ``y_k``; those that require a gradient get one.
        lr: the student's learning rate b, a scalar.
        mode: ``unrolled``, ``frozen`` or ``exact``, see the module.
        weights: for ``exact`` only, where the w_k are kept: ``auto``, ``device``, ``host`` or ``restep``.
        keep: for ``exact`` and ``frozen``, of how many steps the graphs are kept between the passes (more than T: T).

    Raises:
        UsageError: an unknown mode or place, a ``keep`` that is negative or for ``unrolled``, sequences of different
            length or empty, start and target that are not vectors of one shape, or equal.

    Example:
        >>> import torch
        >>> loss = lambda theta, x, y: ((x @ theta - y) ** 2).mean()
        >>> x, y = [torch.eye(2)] * 3, [torch.ones(2)] * 3
        >>> result = matching_gradient(loss, torch.zeros(2), torch.ones(2), x, y, lr=0.5, mode="exact")
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
    """Compute the same as :func:`matching_gradient`, one step's tensors at a time.

    Every gradient goes to ``steps.accumulate`` as soon as it is known and is not kept. The arguments are those of
    :func:`matching_gradient`, with a :class:`Steps` in place of the two sequences.

    Raises:
        UsageError: as :func:`matching_gradient`.
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
