"""VGG11 with instance norm, in the papers' variant for small images."""

from torch import nn

from .cross_architecture import CrossArchitecture

_LAYERS = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG11(CrossArchitecture):
    """VGG11 with instance norm, an average over the last feature map, and one Linear.

    9,231,114 parameters for ten classes at 3 x 32 x 32. After Simonyan, Zisserman, ICLR 2015.
    """

    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised VGG11."""
        layers: list[nn.Module] = []
        for layer in _LAYERS:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, layer, 3, padding=1), nn.GroupNorm(layer, layer), nn.ReLU()]
                channels = layer
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
