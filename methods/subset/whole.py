"""The whole training set: what a condensed set is measured against."""

import torch

from dcbench_tesla.interface import Condenser, DistilledSet, Problem

from .selection import real_images


class WholeSet(Condenser):
    """The whole training set, as it is: the accuracy a condensed set is measured against."""

    uses_ipc = False
    uses_network = False

    def setup(self, problem: Problem) -> None:
        """Take all training images."""
        self._all = real_images(problem, torch.arange(len(problem.train)))

    def distilled(self) -> DistilledSet:
        """Return all training images."""
        return self._all
