"""ConvNet-D{n}, and any network as a function of one flat parameter vector.

Shapes: N images, C channels, H = W = side, K classes, P parameters.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.errors import UsageError

_SIDE_OF_MNIST = 28


def convnet_depth(side: int) -> int:
    """Return ConvNet's number of blocks for images of ``side`` pixels: ``log2(side) - 2``, 28 counted as 32.

    Raises:
        UsageError: for images under 8 pixels, which leave nothing to pool.
    """
    if side < 8:
        raise UsageError(f"ConvNet needs images of at least 8 x 8 pixels, not {side} x {side}.")
    return int(math.log2(32 if side == _SIDE_OF_MNIST else side)) - 2


class ConvNet(nn.Module):
    """The field's ConvNet: ``depth`` x [Conv3x3 -> instance norm -> ReLU -> AvgPool 2x2], flatten, one Linear.

    Images ``(N, C, side, side)`` in, logits ``(N, K)`` out. 320,010 parameters for ten classes at 3 x 32 x 32 and
    ``width`` 128. Images of 28 pixels are padded to 32 by the first convolution (padding 3 for 1). ``depth`` 0 takes
    :func:`convnet_depth`. Introduced by Gidaris and Komodakis (2018), used by every paper this harness compares.

    Raises:
        UsageError: where ``depth`` poolings leave no pixel.
    """

    def __init__(self, channels: int, classes: int, side: int, width: int = 128, depth: int = 0) -> None:
        super().__init__()
        depth = depth or convnet_depth(side)
        padded = 32 if side == _SIDE_OF_MNIST else side
        if padded >> depth < 1:
            raise UsageError(f"a ConvNet of depth {depth} pools {side} x {side} images away; use a smaller depth.")
        blocks: list[nn.Module] = []
        for block in range(depth):
            padding = 1 + (padded - side) // 2 if block == 0 else 1
            blocks += [
                nn.Conv2d(channels if block == 0 else width, width, 3, padding=padding),
                nn.GroupNorm(width, width),  # a group a channel: instance norm, with the same parameters
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.classifier = nn.Linear(width * (padded >> depth) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of ``images`` ``(N, C, H, W)``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits ``(N, K)`` with hard ``(N,)`` int64 or soft ``(N, K)`` labels."""
    return F.cross_entropy(logits, labels)


def flatten_parameters(module: nn.Module) -> Tensor:
    """Return a copy of all parameters as one vector ``(P,)``, in the order of ``module.parameters()``."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's global generators for a block, and restore them: for initialisers and dropout.

    CUDA's generator follows ``torch.manual_seed`` too; its state is saved only where CUDA is in use.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


class FlatNetwork:
    """A network as a function ``f(theta, images)`` of one flat parameter vector ``theta`` ``(P,)``.

    Trajectory matching measures distances between whole parameter vectors and differentiates through updates of
    them. ``build`` makes the module; its own parameters are dropped (kept on ``meta``), only names and shapes stay.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self._skeleton = self._make_skeleton()
        named = list(self._skeleton.named_parameters())
        self._names = [name for name, _ in named]
        self._shapes = [p.shape for _, p in named]
        self._sizes = [p.numel() for _, p in named]
        self.parameter_count = sum(self._sizes)

    def _make_skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return self._build()

    def initial(self, seed: int) -> Tensor:
        """Return the flat parameters ``(P,)`` of a freshly initialised network (PyTorch's default initialisation)."""
        with seeded(seed):
            return flatten_parameters(self._build())

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of ``theta`` by parameter name."""
        # one split, not a slice a parameter: its backward is one concatenation, not a zero-padded copy of P each
        parts = theta.split(self._sizes)
        return {n: p.view(s) for n, p, s in zip(self._names, parts, self._shapes, strict=True)}

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` at parameters ``theta`` ``(P,)``."""
        logits: Tensor = torch.func.functional_call(self._skeleton, self.unflatten(theta), (images,))
        return logits

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy at ``theta``: the ``loss(theta, x, y)`` of the matching engine."""
        return cross_entropy(self(theta, images), labels)
