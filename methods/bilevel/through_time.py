"""What ``dd`` and ``rat-bptt`` share: the images are learned through the training of freshly initialised networks.

One iteration draws networks. Each is trained on the synthetic images for T steps, and its loss on real images is
differentiated with respect to the images and whatever else is learned::

    min over S of  E_{w_0} [ mean over real (x, y) of l(w_T(S); x, y) ]        (Wang et al. 2018, eq. 3)

The gradient is exact and takes the memory of one step's graph (:mod:`dcbench_tesla.methods.inner.engine`), where the
authors keep all T graphs. Adam updates everything that is learned.

Shapes: N synthetic images, C channels, H = W = side, K classes, T inner steps.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet, IterationRecord, Problem, Settings
from dcbench_tesla.profilers import origin

from ..inner.engine import stream_inner_gradient
from ..inner.optimisers import PLAIN_SGD, Adam, InnerOptimiser, adam_restored, adam_state
from ..inner.students import Weights
from ..inner.synthetic import SyntheticBatches
from .real_loss import RealLoss


@dataclass(frozen=True, kw_only=True)
class ThroughTimeSettings(Settings):
    """Hyper-parameters that ``dd`` and ``rat-bptt`` share.

    Args:
        iterations: updates of the images.
        lr_images: learning rate of Adam on everything that is learned.
        student_lr: learning rate of the inner steps, or its initial value where it is learned.
        real_batch: real images in the loss at the end, drawn at random.
        networks: networks in an iteration, whose gradients are averaged.
        micro_batch: images in a network at once; memory does not grow with the rest of a batch. 0: on a CPU as many as
            its caches hold, which is the fastest; on a GPU the whole batch.
        weights: where the students of an inner loop are kept: ``auto``, ``device``, ``host`` or ``restep``; see
            :mod:`dcbench_tesla.methods.inner.engine`.
    """

    iterations: int = 1000
    lr_images: float = 0.001
    student_lr: float = 0.01
    real_batch: int = 1024
    networks: int = 1
    micro_batch: int = field(default=0, metadata={"execution": True})
    weights: str = field(default="auto", metadata={"execution": True})

    def __post_init__(self) -> None:
        for name in ("iterations", "real_batch", "networks"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr_images", "student_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be finite and positive, but is {getattr(self, name)}.")
        if self.micro_batch < 0:
            raise UsageError(f"micro_batch must not be negative, but is {self.micro_batch}; 0 lets the device decide.")
        if self.weights not in get_args(Weights):
            raise unknown_name("place for the weights", self.weights, get_args(Weights))


class InnerLoop(NamedTuple):
    """One inner loop: its batches, its rates ``()`` or ``(T,)``, its window W, and what is known of it."""

    batches: SyntheticBatches
    rates: Tensor
    window: int = 0
    facts: Mapping[str, float] = {}


class ThroughTime(RealLoss):
    """Learns images through the training of fresh networks; subclasses say what is learned and how a loop is made."""

    Settings = ThroughTimeSettings
    settings: ThroughTimeSettings
    adam = Adam()

    @property
    def inner_optimiser(self) -> InnerOptimiser:
        """The optimiser of the inner steps."""
        return PLAIN_SGD

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """Return what is learned, by name, as it is before the first iteration; ``images`` ``(N, C, H, W)`` is."""

    @abstractmethod
    def inner_loop(self, iteration: int, number: int) -> InnerLoop:
        """Return the inner loop of network ``number`` in an iteration."""

    def initial(self, iteration: int, number: int) -> Tensor:
        """Return the weights ``(P,)`` of a freshly initialised network."""
        return self.network.initial(self.problem.seed_for("network", iteration, number))

    def learning_rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration's update."""
        return self.settings.lr_images

    def labels(self) -> Tensor:
        """Return the labels of the images: ``(N,)`` int64, or ``(N, K)``."""
        return self._hard

    def setup(self, problem: Problem) -> None:
        """Start as the method says, with Adam's moments at zero.

        Raises:
            UsageError: the network couples the images of a batch, and ``micro_batch`` would cut one.
        """
        super().setup(problem)
        values = {name: value.to(problem.device) for name, value in self.start().items()}
        with origin("optimiser"):
            self.values = {name: self.adam.begin(value) for name, value in values.items()}

    @property
    def images(self) -> Tensor:
        """The images ``(N, C, H, W)``."""
        return self.values["images"][0]

    def iterate(self, iteration: int) -> IterationRecord:
        """Train the iteration's networks, differentiate their loss on real images, and update what is learned."""
        record, gradients = self.gradients(iteration)
        rate = torch.tensor(self.learning_rate(iteration), dtype=self.images.dtype, device=self.images.device)
        with origin("optimiser"):
            for name, gradient in self.limited(gradients).items():
                self.values[name] = self.adam.step(iteration, self.values[name], gradient, rate)
        self.project()
        return record

    def limited(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients as they are used; by default unchanged."""
        return gradients

    def project(self) -> None:
        """Bring what is learned back to where it may be; by default anywhere."""

    def gradients(self, iteration: int) -> tuple[IterationRecord, dict[str, Tensor]]:
        """Return the record of an iteration, and the gradients of its loss by name."""
        total = {name: torch.zeros_like(value[0]) for name, value in self.values.items()}
        loss, networks, facts = 0.0, self.settings.networks, dict[str, float]()
        for number in range(networks):
            loop = self.inner_loop(iteration, number)
            facts |= loop.facts
            result = stream_inner_gradient(
                self._step,
                self.initial(iteration, number).to(self.images),
                loop.batches,
                loop.rates,
                objective=self.objective(iteration, self.images),
                optimiser=self.inner_optimiser,
                window=loop.window,
                micro_batch=self.settings.micro_batch,
                weights=self.settings.weights,  # type: ignore[arg-type]
            )
            loss += float(result.loss) / networks
            for name, gradient in self.pulled_back(loop.batches, result.lr).items():
                total[name] += gradient / networks
        norm = float(total["images"].norm())
        return IterationRecord(loss=loss, metrics={**facts, "image_gradient_norm": norm}), total

    def pulled_back(self, batches: SyntheticBatches, rates: Tensor) -> dict[str, Tensor]:
        """Return the gradient of everything that is learned, from those of images, labels and rates."""
        return {"images": batches.image_gradient}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is learned, and Adam's moments."""
        return adam_state(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.values = adam_restored(state, self.values, like=self.images)

    def distilled(self) -> DistilledSet:
        """Return the images with their labels."""
        return self.problem.distilled(self.images, self.labels())
