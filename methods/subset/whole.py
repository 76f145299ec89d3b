"""The whole training set, whose accuracy condensed sets are compared with."""

import torch

from dcbench_tesla.interface import Condenser, DistilledSet, Problem

from .selection import real_images


class WholeSet(Condenser):
    """The whole training set: the accuracy that condensed sets are compared with."""

    uses_ipc = False
    uses_network = False

    def setup(self, problem: Problem) -> None:
        """Take all training images."""
        self._all = real_images(problem, torch.arange(len(problem.train)))

    def distilled(self) -> DistilledSet:
        """Return all training images."""
        return self._all
