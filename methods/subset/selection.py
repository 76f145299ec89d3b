"""Distilled sets of real images as uint8 pixels, which all methods of this family make."""

from torch import Tensor

from dcbench_tesla.interface import DistilledSet, Problem


def real_images(problem: Problem, indices: Tensor) -> DistilledSet:
    """Return the training images at ``indices`` ``(N,)``, unchanged, with their labels."""
    return problem.distilled(problem.train.pixels[indices], problem.train.labels[indices])
