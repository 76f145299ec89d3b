"""ResNet18 in the papers' variant: a stem for small images, and instance norm."""

from dataclasses import dataclass

from torch import nn

from dcbench_tesla.errors import UsageError

from .cross_architecture import CrossArchitecture, CrossSettings, default_initialisation


@dataclass(frozen=True, kw_only=True)
class ResNet18Settings(CrossSettings):
    """:class:`CrossSettings`, and the width of the network.

    Args:
        epochs: passes over the distilled set.
        lr: learning rate.
        width: channels of the first stage; each further stage has twice as many (published: 64).
    """

    epochs: int = 300
    lr: float = 1e-3
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise UsageError(f"resnet18.width must be at least 1, not {self.width}.")


def instance_norm(channels: int, **_: object) -> nn.GroupNorm:
    """Return an instance norm with scale and shift: a group norm with one group per channel."""
    return nn.GroupNorm(channels, channels)


class ResNet18(CrossArchitecture):
    """ResNet18 (timm) with a 3 x 3 stem, no max-pooling and instance norm, as in the papers' Table 3.

    11,173,962 parameters for ten classes at 3 x 32 x 32 and ``width`` 64. He et al., CVPR 2016.
    """

    Settings = ResNet18Settings
    settings: ResNet18Settings

    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised ResNet18; its average pool accepts any size."""
        from timm.models.resnet import BasicBlock, ResNet

        width = self.settings.width
        network = ResNet(
            BasicBlock,
            (2, 2, 2, 2),
            num_classes=classes,
            in_chans=channels,
            channels=(width, 2 * width, 4 * width, 8 * width),
            norm_layer=instance_norm,
            zero_init_last=False,
        )
        network.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        network.bn1, network.maxpool = instance_norm(width), nn.Identity()
        # timm's stem always has 64 channels; at the published width this block equals the one timm made
        network.layer1[0] = BasicBlock(width, width, norm_layer=instance_norm)
        return default_initialisation(network)
