"""What all methods of this family share: the loss on a batch of real images, of networks trained on synthetic ones."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.compute.compiling import LossAndGradient
from dcbench_tesla.compute.networks import FlatNetwork
from dcbench_tesla.interface import Condenser, Problem, Sizes
from dcbench_tesla.profilers import origin

from ..inner.batches import check_independent, fitting
from ..inner.objectives import MeanLoss
from ..inner.step import CompiledStep, InnerStep, Loss


class RealLoss(Condenser):
    """Learns by the loss on real images; the settings have ``real_batch`` and ``micro_batch``."""

    compiles = True

    @classmethod
    def for_device(cls, settings: Any, device: torch.device, sizes: Sizes) -> Any:
        """Return the settings with ``micro_batch`` chosen for the device.

        It is chosen for the batches of the inner steps, or for the real images if those are never cut.
        """
        if settings.micro_batch:
            return settings
        batch = cls.inner_batch(settings, sizes.images)
        of_steps, of_real = fitting(batch, sizes, device), fitting(settings.real_batch, sizes, device)
        return replace(settings, micro_batch=of_steps if of_steps < batch else max(batch, of_real))

    @classmethod
    def inner_batch(cls, settings: Any, images: int) -> int:
        """Return the most synthetic images of ``images`` that an inner step shows."""
        return images

    @classmethod
    def refuses_batch_norm(cls, settings: Any) -> str:
        """Return nothing: students train on the statistics of their batches, and so does the loss on real images."""
        return ""

    def setup(self, problem: Problem) -> None:
        """Take the problem and its network.

        Raises:
            UsageError: the network couples the images of a batch, and ``micro_batch`` would cut one.
        """
        self.problem = problem
        self.network = FlatNetwork(problem.build_network)
        self._hard = problem.hard_labels().to(problem.device)
        most = max(self.inner_batch(self.settings, len(self._hard)), self.settings.real_batch)
        check_independent(self.network.skeleton, self.settings.micro_batch, most)
        self._step = (CompiledStep if problem.compile else InnerStep)(self.network.loss)
        self._real_loss = LossAndGradient(self.network.loss, "the loss on real images", compile=problem.compile)

    @property
    def compiled(self) -> bool:
        """Whether the inner steps and the loss on real images are compiled; they are not if the compiler failed."""
        return isinstance(self._step, CompiledStep) and not self._step.given_up and self._real_loss.compiled

    def augment_real(self, images: Tensor, rows: slice, iteration: int) -> Tensor:
        """Return the real images ``rows`` of an iteration, augmented; by default as they are."""
        return images

    def objective(self, iteration: int, like: Tensor, loss: Loss | None = None) -> MeanLoss:
        """Return the mean loss on an iteration's random batch of real images, in the type and place of ``like``.

        Args:
            iteration: number of the iteration.
            like: any tensor of the computation.
            loss: the loss; by default the cross-entropy of the network as a function of its weights.
        """
        rng, train = self.problem.generator("real images", iteration), self.problem.train
        chosen = torch.randperm(len(train), generator=rng)[: self.settings.real_batch]

        def batch(rows: slice) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), origin("inputs"):
                images = self.augment_real(train.inputs(chosen[rows]).to(like), rows, iteration)
                return images, train.labels[chosen[rows]].to(images.device)

        known = LossAndGradient(loss, "the loss on real images", compile=False) if loss else self._real_loss
        return MeanLoss(known, batch, len(chosen), self.settings.micro_batch or len(chosen))
