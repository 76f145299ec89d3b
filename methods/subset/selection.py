"""What ``random`` and ``whole`` share: distilled sets of real images, as uint8 pixels."""

from torch import Tensor

from dcbench_tesla.interface import DistilledSet, Problem


def real_images(problem: Problem, indices: Tensor) -> DistilledSet:
    """Return the training images at ``indices`` ``(N,)``, as they are, with their labels."""
    return problem.distilled(problem.train.pixels[indices], problem.train.labels[indices])
