"""AlexNet in the papers' variant for small images."""

from torch import nn

from .cross_architecture import CrossArchitecture


class AlexNet(CrossArchitecture):
    """The papers' AlexNet for small images: five convolutions, three max-poolings, one Linear.

    1,872,202 parameters for ten classes at 3 x 32 x 32. After Krizhevsky et al., NeurIPS 2012.
    """

    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a freshly initialised AlexNet."""
        return nn.Sequential(
            *(nn.Conv2d(channels, 128, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(192 * (side // 8) ** 2, classes),
        )
