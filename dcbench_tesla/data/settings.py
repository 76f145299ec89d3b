"""How a data set is cut, preprocessed and augmented, as settings."""

from dataclasses import dataclass

from dcbench_tesla.errors import require


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How the data set is cut and preprocessed.

    ``train_images``: use so many training images, the same number of every class, chosen once for all seeds (0: all).
    ``validation``: share of the training images held out from experts and matching, to choose on.
    ``zca``: whiten instead of standardising. ``augmentation``: DSA strategy, ``auto`` for the field's, or ``none``.
    """

    train_images: int = 0
    validation: float = 0.1
    zca: bool = False
    augmentation: str = "auto"

    def __post_init__(self) -> None:
        require(self.train_images >= 0, f"data.train_images must be 0 (all) or more, not {self.train_images}.")
        require(0 <= self.validation < 1, f"data.validation must be a share in [0, 1), not {self.validation}.")
