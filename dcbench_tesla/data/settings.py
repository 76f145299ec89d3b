"""The settings of how a data set is split, preprocessed and augmented."""

from dataclasses import dataclass

from dcbench_tesla.errors import require, unknown_name

WHITENINGS = ("mtt", "frepo", "kip")
"""Whose ZCA whitening there is; :data:`dcbench_tesla.data.preprocessing.WHITENINGS` fits them."""


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
        augmentation: DSA strategy; ``auto`` is the published one for the data set, ``none`` is no augmentation.
    """

    train_images: int = 0
    validation: float = 0.1
    zca: bool = False
    whitening: str = "mtt"
    augmentation: str = "auto"

    def __post_init__(self) -> None:
        require(self.train_images >= 0, f"data.train_images must be 0 (all) or more, not {self.train_images}.")
        if self.whitening not in WHITENINGS:
            raise unknown_name("data.whitening", self.whitening, WHITENINGS)
        require(0 <= self.validation < 1, f"data.validation must be a share in [0, 1), not {self.validation}.")
