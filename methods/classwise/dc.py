"""DC: gradient matching without augmentation."""

from dataclasses import dataclass, replace

from dcbench_tesla.data.augmentation import NO_STRATEGY, Augmentation
from dcbench_tesla.interface import DistilledSet

from .gradient_matching import GradientMatching, GradientMatchingSettings


@dataclass(frozen=True, kw_only=True)
class DCSettings(GradientMatchingSettings):
    """:class:`GradientMatchingSettings` that start from noise, like DC."""

    start: str = "noise"


class DC(GradientMatching):
    """Gradient matching without augmentation, from noise.

    Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021.
    """

    Settings = DCSettings

    @property
    def augmentation(self) -> Augmentation:
        """No augmentation: DC matches plain images."""
        return Augmentation(NO_STRATEGY)

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels, for training without augmentation, as DC is evaluated."""
        return replace(super().distilled(), augmentation=NO_STRATEGY)
