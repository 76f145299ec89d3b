"""Further published networks of condensation: LeNet and the AlexNet for CIFAR of DD and LD, and FrePo's network.

The ConvNet is in :mod:`~dcbench_tesla.compute.networks`. All are registered in the entry-point group
``dcbench.networks``.

Shapes: N images, C channels, H = W = side, K classes.
"""

import math

from torch import nn

from dcbench_tesla.compute.networks import Network, checked_blocks, norm_layers, padded_side
from dcbench_tesla.errors import UsageError

_WITHIN_TWO = 0.87962566103423978  # standard deviation of a standard normal variable that is cut off at -2 and 2


def _check_side(network: str, side: int, sides: tuple[int, ...]) -> None:
    if side not in sides:
        fitting = " or ".join(f"{s} x {s}" for s in sides)
        raise UsageError(
            f"network {network} takes images of {fitting} pixels, not {side} x {side}: choose network.name=convnet or "
            "frepo, which take any size from 8 x 8 pixels on."
        )


class LeNet(Network):
    """LeNet-5 with ReLU and max pooling, the network of DD and LD for MNIST; 28 or 32 pixels.

    Two 5x5 convolutions of 6 and 16 filters, each with a 2x2 max pooling, and Linear layers of 120, 84 and K; 61,706
    parameters for ten classes at 1 x 28 x 28. Images of 28 pixels are padded to 32. After LeCun et al. (1998).

    Args:
        channels: image channels C.
        classes: number of classes K.
        side: height and width of the images in pixels.

    Raises:
        UsageError: the images have another size.
    """

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        _check_side("lenet", side, (28, 32))
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 6, 5, padding=(padded_side(side) - side) // 2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            *(nn.Linear(16 * 5 * 5, 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU()),
        )
        self.classifier = nn.Linear(84, classes)


class AlexNetCifar(Network):
    """AlexNet for CIFAR, the network of DD and LD; 32 pixels.

    Two 5x5 convolutions of 64 filters with local response normalisation over four channels and 3x3 max pooling of
    stride 2, and Linear layers of 384, 192 and K; 1,756,426 parameters for ten classes at 3 x 32 x 32.

    Args:
        channels: image channels C.
        classes: number of classes K.
        side: height and width of the images in pixels.

    Raises:
        UsageError: the images have another size.
    """

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        _check_side("alexnet-cifar", side, (32,))
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), _response_norm()),
            *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), _response_norm(), nn.MaxPool2d(3, 2, padding=1)),
            nn.Flatten(),
            *(nn.Linear(64 * 8 * 8, 384), nn.ReLU()),
            *(nn.Linear(384, 192), nn.ReLU()),
        )
        self.classifier = nn.Linear(192, classes)


def _response_norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)


class FrePoNet(Network):
    """FrePo's network: blocks of norm, 3x3 convolution, ReLU and pooling, whose width doubles; then one Linear.

    Block i has ``width`` * 2^i filters (128, 256, 512 at 32 pixels), and no norm if i = 0. Weights are drawn as there,
    from a normal distribution of variance 1 / fan-in that is cut off at two standard deviations; biases start at zero.
    Images of 28 pixels are padded to 32. FrePo condenses with batch norm and evaluates with ``norm`` ``none``.

    Args:
        channels: image channels C.
        classes: number of classes K.
        side: height and width of the images in pixels.
        width: filters of the first convolution.
        depth: number of blocks; 0 stands for :func:`~dcbench_tesla.compute.networks.convnet_depth`.
        norm: ``batch``, ``instance``, ``group`` (four groups of channels) or ``none``.

    Raises:
        UsageError: ``depth`` poolings leave no pixel, or there is no such norm.
    """

    def __init__(
        self, channels: int, classes: int, side: int, width: int = 128, depth: int = 0, norm: str = "batch"
    ) -> None:
        super().__init__()
        depth, padded = checked_blocks("FrePo's network", side, depth), padded_side(side)
        blocks: list[nn.Module] = []
        before, padding = channels, 1 + (padded - side) // 2
        for block in range(depth):
            filters = width << block
            blocks += norm_layers(norm, before) if block else []
            blocks += [nn.Conv2d(before, filters, 3, padding=padding), nn.ReLU(), nn.AvgPool2d(2)]
            before, padding = filters, 1
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.classifier = nn.Linear(before * (padded >> depth) ** 2, classes)
        self.apply(_draw_by_fan_in)


def _draw_by_fan_in(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        std = 1 / math.sqrt(module.weight[0].numel()) / _WITHIN_TWO
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        assert module.bias is not None, "layers of this network have a bias"
        nn.init.zeros_(module.bias)
