"""The field's ConvNet, and any network as a function of one flat parameter vector.

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
    """Return ConvNet's default number of blocks for images of ``side`` pixels: ``log2(side) - 2``.

    A side of 28 pixels counts as 32.

    Raises:
        UsageError: the side is less than 8 pixels, which leaves nothing to pool.
    """
    if side < 8:
        raise UsageError(f"ConvNet needs images of at least 8 x 8 pixels, not {side} x {side}.")
    return int(math.log2(32 if side == _SIDE_OF_MNIST else side)) - 2


class ConvNet(nn.Module):
    """The field's ConvNet: ``depth`` x [Conv3x3 -> instance norm -> ReLU -> AvgPool 2x2], flatten, one Linear.

    It maps images ``(N, C, side, side)`` to logits ``(N, K)``. With ``width`` 128 it has 320,010 parameters for ten
    classes of 3 x 32 x 32 images. The first convolution pads images of 28 pixels to 32 (padding 3 in place of 1).
    Introduced by Gidaris and Komodakis (2018); every paper that this harness compares uses it.

    Args:
        channels: image channels C.
        classes: number of classes K.
        side: height and width of the images in pixels.
        width: filters per convolution.
        depth: number of blocks; 0 stands for :func:`convnet_depth`.

    Raises:
        UsageError: ``depth`` poolings leave no pixel.
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
                nn.GroupNorm(width, width),  # one group per channel is instance norm, with the same parameters
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
    """Return a copy of all parameters as one vector ``(P,)``, in the order of ``module.parameters()``, detached."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's global generators within a block and restore them afterwards, for initialisation and dropout.

    ``torch.manual_seed`` also seeds CUDA's generators; their state is saved and restored only if CUDA is in use.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


class FlatNetwork:
    """A network as a function ``f(theta, images)`` of one flat parameter vector ``theta`` ``(P,)``.

    Trajectory matching needs this form: it measures distances between whole parameter vectors and differentiates
    through updates of them.

    Args:
        build: makes the module. Only the names and shapes of its parameters are kept (on device ``meta``), as
            ``skeleton``.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self.skeleton = self._make_skeleton()
        named = list(self.skeleton.named_parameters())
        self._names = [name for name, _ in named]
        self._shapes = [p.shape for _, p in named]
        self._sizes = [p.numel() for _, p in named]
        self.parameter_count = sum(self._sizes)

    def _make_skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return self._build()

    def initial(self, seed: int) -> Tensor:
        """Return the flat parameters ``(P,)`` of a network freshly initialised by PyTorch's defaults with ``seed``."""
        with seeded(seed):
            return flatten_parameters(self._build())

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of ``theta`` ``(P,)`` by parameter name."""
        # one split and not a slice per parameter, whose backward pass would make a zero-padded copy of P for each
        parts = theta.split(self._sizes)
        return {n: p.view(s) for n, p, s in zip(self._names, parts, self._shapes, strict=True)}

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of ``images`` ``(N, C, H, W)`` at parameters ``theta`` ``(P,)``."""
        logits: Tensor = torch.func.functional_call(self.skeleton, self.unflatten(theta), (images,))
        return logits

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy at ``theta``; this is the ``loss(theta, x, y)`` of the matching methods."""
        return cross_entropy(self(theta, images), labels)
