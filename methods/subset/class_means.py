"""Class means: what plain averaging is worth, without any learning."""

import torch
from torch import Tensor

from dcbench_tesla.interface import Condenser, DistilledSet, Problem

_BATCH = 512


class ClassMeans(Condenser):
    """Means of the training images of each class, or of IPC random parts of a class: averaging without learning.

    Image p of class k is the mean of the preprocessed images of part p. The parts are a random partition of the class
    whose sizes differ by at most one.
    """

    uses_network = False

    def setup(self, problem: Problem) -> None:
        """Split every class into IPC parts, and take the mean of each."""
        parts = [part for k in range(problem.task.classes) for part in _parts(problem, k)]
        means = torch.stack([_mean(problem, part) for part in parts])
        self._means = problem.distilled(means, problem.hard_labels())

    def distilled(self) -> DistilledSet:
        """Return the means."""
        return self._means


def _parts(problem: Problem, k: int) -> tuple[Tensor, ...]:
    """Return the indices of the training images of class ``k`` in IPC random parts."""
    members, rng = problem.train.members[k], problem.generator("class parts", k)
    return members[torch.randperm(len(members), generator=rng)].tensor_split(problem.ipc)


def _mean(problem: Problem, part: Tensor) -> Tensor:
    """Return the mean of the preprocessed images of ``part``, float32 ``(C, H, W)``, summed up in float64."""
    sums = [problem.train.inputs(batch).double().sum(0) for batch in part.split(_BATCH)]
    return (torch.stack(sums).sum(0) / len(part)).float()
