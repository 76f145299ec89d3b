"""The networks of condensation: their base, the field's ConvNet, and any of them as a function of one vector.

Shapes: N images, C channels, H = W = side, K classes, P parameters.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.errors import UsageError, unknown_name

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


def padded_side(side: int) -> int:
    """Return the side that the published networks pad images of ``side`` pixels to: 32 for 28, else ``side``."""
    return 32 if side == _SIDE_OF_MNIST else side


class Network(nn.Module):
    """A network of condensation: ``features``, whose output is flattened, and a ``classifier``.

    It maps images ``(N, C, side, side)`` to logits ``(N, K)``. A subclass is registered in the entry-point group
    ``dcbench.networks`` and chosen by ``network.name``; the first line of its docstring is shown in listings. Its
    constructor takes ``channels``, ``classes`` and ``side``, and by name those of the options ``width``, ``depth`` and
    ``norm`` that it has; ``depth`` 0 stands for :meth:`default_depth`.

    Its outputs may depend on its parameters and its input only: no dropout, and no buffers but those of batch norm.

    Attributes:
        features: the part whose output DM matches and the coresets compare.
        classifier: the part from flattened features to logits.
        version: whole number, to be raised whenever the same options give another network; part of keys above 1.
    """

    version: ClassVar[int] = 1
    features: nn.Module
    classifier: nn.Module

    @staticmethod
    def default_depth(side: int) -> int:
        """Return what ``depth`` 0 stands for with images of ``side`` pixels: :func:`convnet_depth`."""
        return convnet_depth(side)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of ``images`` ``(N, C, H, W)``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


NORMS = ("instance", "batch", "group", "none")
"""The norms of :func:`norm_layers`."""
_GROUPS = 4


def norm_layers(norm: str, width: int) -> list[nn.Module]:
    """Return the layers of a norm over ``width`` channels: one with scale and shift, or none for ``none``.

    ``instance`` is a group norm with one group per channel, ``group`` one with four groups, ``batch`` batch norm.

    Raises:
        UsageError: there is no such norm, or ``width`` cannot be cut into four groups.
    """
    if norm not in NORMS:
        raise unknown_name("network.norm", norm, NORMS)
    if norm == "group" and width % _GROUPS:
        raise UsageError(f"norm group has {_GROUPS} groups of channels: width {width} is not a multiple of {_GROUPS}.")
    if norm == "batch":
        return [nn.BatchNorm2d(width)]
    return [] if norm == "none" else [nn.GroupNorm(width if norm == "instance" else _GROUPS, width)]


def checked_blocks(what: str, side: int, depth: int) -> int:
    """Return the number of blocks of a network that halves the side in each: ``depth``, or by the side if it is 0.

    Raises:
        UsageError: so many poolings leave no pixel, or the side is less than 8 pixels.
    """
    depth = depth or convnet_depth(side)
    if padded_side(side) >> depth < 1:
        raise UsageError(f"{what} of depth {depth} pools {side} x {side} images away; use a smaller depth.")
    return depth


class ConvNet(Network):
    """The field's ConvNet: blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then one Linear.

    With ``width`` 128 and instance norm it has 320,010 parameters for ten classes of 3 x 32 x 32 images. The first
    convolution pads images of 28 pixels to 32 (padding 3 in place of 1). Introduced by Gidaris and Komodakis (2018);
    every paper that this harness compares uses it. KIP's networks have ``width`` 1024 and ``norm`` ``none``.

    Args:
        channels: image channels C.
        classes: number of classes K.
        side: height and width of the images in pixels.
        width: filters per convolution.
        depth: number of blocks; 0 stands for :func:`convnet_depth`.
        norm: ``instance``, ``batch``, ``group`` (four groups of channels) or ``none``.

    Raises:
        UsageError: ``depth`` poolings leave no pixel, or there is no such norm.
    """

    features: nn.Sequential

    def __init__(
        self, channels: int, classes: int, side: int, width: int = 128, depth: int = 0, norm: str = "instance"
    ) -> None:
        super().__init__()
        depth, padded = checked_blocks("a ConvNet", side, depth), padded_side(side)
        blocks: list[nn.Module] = []
        for block in range(depth):
            padding = 1 + (padded - side) // 2 if block == 0 else 1
            blocks += [
                nn.Conv2d(channels if block == 0 else width, width, 3, padding=padding),
                *norm_layers(norm, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.classifier = nn.Linear(width * (padded >> depth) ** 2, classes)


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether the outputs for an image depend on the other images of its batch while the network trains."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def largest_activation(skeleton: nn.Module, channels: int, side: int) -> int:
    """Return how many numbers the largest output of a layer holds for one image.

    Args:
        skeleton: a network on device ``meta``, which computes nothing.
        channels: image channels C.
        side: height and width of the images in pixels.
    """
    sizes = [2 * channels * side**2]
    layers = [module for module in skeleton.modules() if not any(module.children())]

    def note(_layer: nn.Module, _given: object, output: object) -> None:
        if isinstance(output, Tensor):  # attention and recurrent layers return more than one
            sizes.append(output.numel())

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        skeleton(torch.empty(2, channels, side, side, device="meta"))  # batch norm takes no single image
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes) // 2


def why_unfit(network: nn.Module) -> str:
    """Return why a network cannot be one of condensation, or an empty text if it can; see :class:`Network`."""
    if not isinstance(network, Network):
        return f"{type(network).__name__} is no subclass of dcbench_tesla.compute.networks.Network"
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            return f"it has dropout ({name}), so the same parameters and images would give other outputs"
        buffers = [buffer for buffer, value in module._buffers.items() if value is not None]
        if buffers and not isinstance(module, nn.modules.batchnorm._BatchNorm):
            where = f"{name}.{buffers[0]}".lstrip(".")
            return f"it has a buffer ({where}) besides its parameters, which experts do not store"
    return ""


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
    through updates of them. Batch norm takes its statistics from the batch at hand, as in training; running statistics
    are neither read nor changed, since they are no part of ``theta``.

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
            network = self._build()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        return network

    def initial(self, seed: int) -> Tensor:
        """Return the flat parameters ``(P,)`` of a fresh network, initialised as it does itself, with ``seed``."""
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

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the features before the classifier ``(N, F)`` of ``images`` ``(N, C, H, W)`` at ``theta`` ``(P,)``."""
        prefix = "features."
        own = {n.removeprefix(prefix): p for n, p in self.unflatten(theta).items() if n.startswith(prefix)}
        found: Tensor = torch.func.functional_call(self.skeleton.get_submodule("features"), own, (images,))
        return found.flatten(1)

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy at ``theta``; this is the ``loss(theta, x, y)`` of the matching methods."""
        return cross_entropy(self(theta, images), labels)
