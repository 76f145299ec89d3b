"""The settings of how a data set is split, preprocessed and augmented."""

from collections.abc import Mapping
from dataclasses import dataclass

from dcbench_tesla.errors import require, unknown_name

WHITENINGS = ("mtt", "frepo", "kip")
"""Whose ZCA whitening there is; :data:`dcbench_tesla.data.preprocessing.WHITENINGS` fits them."""

Moments = tuple[float, ...] | None
"""The mean or the standard deviation of every channel, of pixels in [0, 1]; ``None``: those of the training images."""

COMMON = "common"
"""The value of ``data.statistics`` for the mean and standard deviation that a data set has for most methods."""

STATISTICS: Mapping[str, Mapping[str, tuple[Moments, Moments]]] = {
    "dc": {"cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))},
    "ld": {"cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))},
}
"""The means and standard deviations that only some released code uses, by its name and the data set's."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How the data set is split, preprocessed and augmented.

    Args:
        train_images: number of training images to use, equally many of every class and the same for all seeds; 0 uses
            all.
        validation: fraction of the training images that is held out from experts and matching, to make choices on.
        zca: use ZCA whitening in place of standardisation.
        whitening: whose: ``mtt`` (kornia's, of pixels), ``frepo`` (of standardised images) or ``kip`` (of standardised
            images with zero mean and norm 1 each).
        statistics: whose mean and standard deviation images are standardised with: ``common``; ``dc``, those of DC, DSA
            and DM, which are others for CIFAR-100; or ``ld``, which are others for CIFAR-10.
        augmentation: DSA strategy; ``auto`` is the published one for the data set, ``none`` is no augmentation.
    """

    train_images: int = 0
    validation: float = 0.1
    zca: bool = False
    whitening: str = "mtt"
    augmentation: str = "auto"
    statistics: str = COMMON

    def __post_init__(self) -> None:
        require(self.train_images >= 0, f"data.train_images must be 0 (all) or more, not {self.train_images}.")
        if self.whitening not in WHITENINGS:
            raise unknown_name("data.whitening", self.whitening, WHITENINGS)
        require(0 <= self.validation < 1, f"data.validation must be a share in [0, 1), not {self.validation}.")
        if self.statistics not in (COMMON, *STATISTICS):
            raise unknown_name("data.statistics", self.statistics, (COMMON, *STATISTICS))

    def moments(self, dataset: str, mean: Moments, std: Moments) -> tuple[Moments, Moments]:
        """Return the mean and the standard deviation to standardise with.

        Args:
            dataset: name of the data set.
            mean: its own mean per channel.
            std: its own standard deviation per channel.
        """
        return STATISTICS.get(self.statistics, {}).get(dataset, (mean, std))

    def without_effect(self, dataset: str) -> Mapping[str, str]:
        """Return the settings without effect on the data set of this name, each with the reason."""
        if self.zca:
            return {"statistics": "data.zca whitens, and does not standardise"}
        others = dataset not in STATISTICS.get(self.statistics, {dataset: ()})
        return {"statistics": f"{self.statistics} has no statistics of its own for {dataset}"} if others else {}
