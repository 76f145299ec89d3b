"""Coresets, which ``herding`` and ``k-center`` share: real images chosen by the features of a trained ConvNet."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Condenser, DistilledSet, ExpertRequest, Problem, Settings

from .selection import real_images
from .trained import trained_network

_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class CoresetSettings(Settings):
    """Settings of coresets.

    Args:
        feature_epochs: the features are those of expert 0 after so many epochs of training on the real images.
    """

    feature_epochs: int = 20

    def __post_init__(self) -> None:
        if self.feature_epochs < 1:
            raise UsageError(f"feature_epochs must be at least 1, not {self.feature_epochs}.")


class Coreset(Condenser):
    """A selection of real images by their features; subclasses define which images of a class are chosen."""

    Settings = CoresetSettings
    settings: CoresetSettings

    @classmethod
    def expert_request(cls, settings: Any) -> ExpertRequest:
        """Request one trained network."""
        return ExpertRequest(epochs=settings.feature_epochs, count=1, asked_by=("feature_epochs",))

    def setup(self, problem: Problem) -> None:
        """Choose IPC images of every class."""
        chosen = []
        for members in problem.train.members:
            features = self._features(problem, members)
            chosen.append(members[self.choose(features, problem.ipc).cpu()])
        self._chosen = real_images(problem, torch.cat(chosen))

    @torch.no_grad()
    def _features(self, problem: Problem, members: Tensor) -> Tensor:
        network = trained_network(problem, self.settings.feature_epochs)
        batches = (network.features(problem.train.inputs(part)).flatten(1) for part in members.split(_BATCH))
        return torch.cat(list(batches))

    @staticmethod
    @abstractmethod
    def choose(features: Tensor, count: int) -> Tensor:
        """Return the positions ``(count,)`` of the chosen images among the features ``(n, F)`` of a class."""

    def distilled(self) -> DistilledSet:
        """Return the chosen images."""
        return self._chosen
