"""DSA: gradient matching with differentiable siamese augmentation."""

from .gradient_matching import GradientMatching


class DSA(GradientMatching):
    """Gradient matching with differentiable siamese augmentation, from real images.

    Zhao, Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021.
    """
