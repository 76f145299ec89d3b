"""The batch of an inner step, whole or in micro-batches: the network sees ``micro_batch`` images at once.

The inner loss is a mean over the N images of a batch, and the field's ConvNet (instance norm) couples no two of them.
With the weights ``n_i / N`` of pieces of n_i images, both operations of a step are therefore sums over pieces::

    g = sum_i (n_i / N) g_i,    H q = sum_i (n_i / N) H_i q,    dJ/dx and dJ/dy of a piece: (n_i / N) times its own

The graph of one piece exists at a time, so memory is flat in the batch too. With SGD no operation is done twice; Adam
needs g before q, and so takes one more gradient a step. Batch norm in training mode couples the images of a batch:
:func:`check_independent` refuses it, and :func:`micro_batch_error` measures what pieces of another loss are worth.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Sizes
from dcbench_tesla.profilers import origin

from .step import Back, Built, InnerStep, Loss

_CACHED_BYTES = 5 * 2**20  # of a micro-batch's largest activation on a CPU: ten images of 32 x 32 at width 128


class Steps(Protocol):
    """The T inner steps of one iteration: it makes step k's batch when asked for it, and takes its gradients.

    ``rows`` is the part of a batch that is asked for: ``slice(None)``, or in micro-batches a slice of its images.
    """

    def __len__(self) -> int:
        """Return the number of inner steps T."""
        ...

    def size(self, k: int) -> int:
        """Return the number of images in the batch of step k; asked for with micro-batches only."""
        ...

    def batch(self, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the inputs ``x_k`` and the labels ``y_k`` of the images ``rows`` of step k, in shapes the loss takes.

        Both passes ask for them, so the same k must give the same values: what is random is drawn for the whole batch.
        Labels whose gradient is wanted require one (``requires_grad``).
        """
        ...

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        """Take the gradients of the images ``rows`` of step k; called once for each, in any order.

        Args:
            k: number of the step, 0 .. T-1.
            rows: the images.
            input_gradient: dJ/dx_k of these images, in the shape of the inputs.
            label_gradient: dJ/dy_k likewise; ``None`` for labels that do not require a gradient.
        """
        ...


class Batches:
    """The two operations of an inner step on the batches of ``steps``; see :mod:`~dcbench_tesla.methods.inner.step`.

    Args:
        step: the operations.
        steps: makes the batches.
        micro_batch: images in the network at once; 0: all.
    """

    def __init__(self, step: InnerStep, steps: Steps, micro_batch: int) -> None:
        self.step, self.steps = step, steps
        self._micro_batch = micro_batch

    def is_whole(self, k: int) -> bool:
        """Whether step k's batch goes through the network at once."""
        return not 0 < self._micro_batch < self.steps.size(k) if self._micro_batch else True

    def gradient(self, k: int, w: Tensor) -> Tensor:
        """Return ``g_k`` ``(P,)`` at ``w``, without a graph."""
        total: Tensor | None = None
        for rows, share in self._pieces(k):
            total = _added(total, share, self.step.gradient(w, *self.steps.batch(k, rows)))
        assert total is not None, "a batch has at least one piece"
        return total

    def build(self, k: int, w: Tensor) -> list[Built]:
        """Return the gradients of step k's pieces at ``w``, with their graphs."""
        return [self.step.build(w, *self.steps.batch(k, rows)) for rows, _ in self._pieces(k)]

    def gradient_of(self, k: int, built: list[Built]) -> Tensor:
        """Return ``g_k`` ``(P,)`` from the pieces as built, detached."""
        total: Tensor | None = None
        for piece, (_, share) in zip(built, self._pieces(k), strict=True):
            total = _added(total, share, piece.gradient.detach())
        assert total is not None, "a batch has at least one piece"
        return total

    def back(
        self, k: int, w: Tensor, vector: Tensor, *, built: list[Built] | None = None, through_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``g_k`` and ``H_k q`` (if wanted) at ``w``, and hand the gradients of inputs and labels over.

        ``built`` has the pieces with their graphs, if they were kept; each is let go of as it is used.
        """
        gradient: Tensor | None = None
        curvature: Tensor | None = None
        for number, (rows, share) in enumerate(self._pieces(k)):
            if built is None:
                back = self.step.back(w, *self.steps.batch(k, rows), vector, through_weights=through_weights)
            else:
                piece, built[number] = built[number], None  # type: ignore[call-overload]
                back = self.step.back_through(piece, vector, through_weights=through_weights)
                del piece
            self._hand_over(k, rows, share, back)
            gradient = _added(gradient, share, back.gradient)
            if back.curvature is not None:
                curvature = _added(curvature, share, back.curvature)
            del back  # or this piece's vectors live on while the next one's graph is built
        assert gradient is not None, "a batch has at least one piece"
        return gradient, curvature

    def _pieces(self, k: int) -> Iterator[tuple[slice, float]]:
        """Yield the rows of each piece, and its share of the batch."""
        if self.is_whole(k):
            yield slice(None), 1.0
            return
        count = self.steps.size(k)
        for begin in range(0, count, self._micro_batch):
            end = min(begin + self._micro_batch, count)
            yield slice(begin, end), (end - begin) / count

    def _hand_over(self, k: int, rows: slice, share: float, back: Back) -> None:
        with origin("inputs"):
            self.steps.accumulate(k, rows, _times(share, back.inputs), _times(share, back.labels))


def _times(share: float, gradient: Tensor | None) -> Tensor:
    """Return ``gradient`` times ``share``, itself if that is 1."""
    return gradient if gradient is None or share == 1 else share * gradient  # type: ignore[return-value]


def _added(total: Tensor | None, share: float, part: Tensor) -> Tensor:
    """Add ``share * part`` to the total, in place; the first part becomes the total, if possible without a copy."""
    if total is None:
        return part if share == 1 else share * part
    with torch.no_grad():
        return total.add_(part, alpha=share)


def fitting(batch: int, sizes: Sizes, device: torch.device) -> int:
    """Return how many images of a batch go through a network at once if the user leaves it to the device.

    On a CPU as many as its caches hold, a divisor of the batch if one is near: a divisor leaves no shorter piece, for
    which another graph would be compiled. On a GPU, or if the network couples the images of a batch, all of them.
    """
    most = max(1, _CACHED_BYTES // (4 * sizes.activation))
    if device.type != "cpu" or sizes.coupled or most >= batch:
        return batch
    divisors = [size for size in range(1, most + 1) if batch % size == 0]
    return divisors[-1] if 2 * divisors[-1] >= most else most


def check_independent(network: nn.Module, micro_batch: int, batch: int) -> None:
    """Check that a network treats the images of a batch one by one, if micro-batches cut the batch.

    Raises:
        UsageError: ``0 < micro_batch < batch``, and the network has batch norm in training mode, whose statistics are
            of the whole batch.
    """
    coupled = [name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    training = [name for name in coupled if network.get_submodule(name).training]
    if 0 < micro_batch < batch and training:
        raise UsageError(
            f"micro_batch={micro_batch} cannot be used with batch norm ({training[0]}): its mean and variance are "
            "those of the whole batch, so pieces would give another gradient. Use micro_batch=0 or another norm."
        )


def micro_batch_error(loss: Loss, theta: Tensor, x: Tensor, y: Tensor, micro_batch: int) -> float:
    """Return by how much the gradient from micro-batches differs from that of the whole batch, relative to its norm.

    It is of the size of rounding (1e-15 in float64, 1e-6 in float32) if ``loss`` is a mean over images of which none
    sees another; anything larger says that micro-batches must not be used with this loss.

    Args:
        loss: ``loss(theta, x, y)``, a scalar.
        theta: parameters ``(P,)``.
        x: inputs, images first.
        y: labels, images first.
        micro_batch: images in a piece, at least 1.

    Raises:
        UsageError: ``micro_batch`` is less than 1.

    Example:
        >>> import torch
        >>> mean = lambda theta, x, y: ((x @ theta - y) ** 2).mean()
        >>> coupled = lambda theta, x, y: ((x @ theta - x.mean() - y) ** 2).mean().sqrt()
        >>> x, y = torch.arange(8.0).view(4, 2), torch.ones(4)
        >>> [micro_batch_error(loss, torch.ones(2), x, y, 2) < 1e-5 for loss in (mean, coupled)]
        [True, False]
    """
    if micro_batch < 1:
        raise UsageError(f"micro_batch must be at least 1, not {micro_batch}.")
    whole = InnerStep(loss).gradient(theta, x, y)
    parts = zip(x.split(micro_batch), y.split(micro_batch), strict=True)
    pieces = sum(len(a) / len(x) * InnerStep(loss).gradient(theta, a, b) for a, b in parts)
    difference = float((pieces - whole).norm())
    return difference / float(whole.norm()) if difference else 0.0
