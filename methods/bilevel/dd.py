"""DD: images in a fixed order, and a learned rate for each step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.compute.networks import flatten_parameters, seeded
from dcbench_tesla.data.augmentation import NO_STRATEGY
from dcbench_tesla.distilled import Steps
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet

from ..inner.optimisers import Adam
from ..inner.synthetic import SyntheticBatches
from .through_time import InnerLoop, ThroughTime, ThroughTimeSettings

_INITS = ("xavier", "default")


@dataclass(frozen=True, kw_only=True)
class DDSettings(ThroughTimeSettings):
    """:class:`ThroughTimeSettings`, and DD's own.

    Args:
        epochs: E, how often the IPC batches of one image a class are gone through: T = E IPC.
        network_init: how networks are initialised: ``xavier`` or PyTorch's ``default``.
        decay: factor of the learning rate after every ``decay_every`` iterations.
        decay_every: see ``decay``; 0: never.
    """

    iterations: int = 4000
    lr_images: float = 0.01
    student_lr: float = 0.02
    networks: int = 4
    epochs: int = 3
    network_init: str = "xavier"
    decay: float = 0.5
    decay_every: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.decay_every < 0 or not 0 < self.decay <= 1:
            raise UsageError("epochs must be at least 1, decay_every not negative, and decay in (0, 1].")
        if self.network_init not in _INITS:
            raise unknown_name("initialisation", self.network_init, _INITS)

    def inert(self) -> Mapping[str, str]:
        """Return the settings without effect."""
        return {} if self.decay_every else {"decay": "decay_every is 0"}


class DD(ThroughTime):
    """Dataset distillation: the loss on real images after T = E IPC steps, each with its own learned rate.

    Step k shows the image number ``k mod IPC`` of every class, and its rate is ``b_k = softplus(r_k)``. The order of
    batches belongs to the set. No augmentation, and images start as normal noise.

    Wang, Zhu, Torralba, Efros, "Dataset Distillation", arXiv 1811.10959, 2018.
    """

    Settings = DDSettings
    settings: DDSettings
    adam = Adam(beta1=0.5)
    learns_lr = True
    evaluation_recipe = "dd"

    def start(self) -> dict[str, Tensor]:
        """Return images of normal noise, and raw rates r ``(T,)`` with ``softplus(r) = student_lr``."""
        task, ipc = self.problem.task, self.problem.ipc
        shape = (task.classes * ipc, task.channels, task.side, task.side)
        raw = torch.full((self.settings.epochs * ipc,), self.settings.student_lr).expm1().log()
        return {"images": torch.randn(shape, generator=self.problem.generator("start noise")), "raw_rates": raw}

    def initial(self, iteration: int, number: int) -> Tensor:
        """Return the weights ``(P,)`` of a fresh network: Xavier-normal, biases zero, or PyTorch's default."""
        seed = self.problem.seed_for("network", iteration, number)
        if self.settings.network_init == "default":
            return self.network.initial(seed)
        with seeded(seed):
            network = self.problem.build_network()
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.xavier_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            return flatten_parameters(network)

    @property
    def rates(self) -> Tensor:
        """The learned rates b ``(T,)``."""
        return F.softplus(self.values["raw_rates"][0])

    def inner_loop(self, iteration: int, number: int) -> InnerLoop:
        """Return E passes through the batches of one image a class, in their fixed order."""
        steps = len(self.values["raw_rates"][0])
        rates = self.rates
        facts = {"student_lr": float(rates.mean())}
        return InnerLoop(InOrder(self.images, self.labels(), steps, self.problem.ipc), rates, facts=facts)

    def pulled_back(self, batches: SyntheticBatches, rates: Tensor) -> dict[str, Tensor]:
        """Return the gradients of the images and of the raw rates: ``dJ/dr = dJ/db sigmoid(r)``."""
        return {"images": batches.image_gradient, "raw_rates": rates * self.values["raw_rates"][0].sigmoid()}

    def learning_rate(self, iteration: int) -> float:
        """Return ``lr_images``, times ``decay`` after every ``decay_every`` iterations."""
        times = iteration // self.settings.decay_every if self.settings.decay_every else 0
        return self.settings.lr_images * self.settings.decay**times

    @classmethod
    def stand_in(cls, settings: Any, distilled: DistilledSet) -> DistilledSet:
        """Return ``distilled`` with T steps at the start's rate."""
        classes = len(distilled.class_names)
        ipc = len(distilled.images) // classes
        return replace(
            distilled, lr=None, steps=_steps(torch.full((settings.epochs * ipc,), settings.student_lr), ipc, classes)
        )

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels, the learned rates, and the batches that these are for."""
        steps = _steps(self.rates, self.problem.ipc, self.problem.task.classes)
        return replace(self.problem.distilled(self.images, self.labels(), steps=steps), augmentation=NO_STRATEGY)


def _shown(k: int, ipc: int, count: int) -> Tensor:
    """Return which of ``count`` images, ordered by class, step k shows: those number ``k mod IPC`` of every class."""
    return torch.arange(k % ipc, count, ipc)


def _steps(rates: Tensor, ipc: int, classes: int) -> Steps:
    return Steps(rates, torch.stack([_shown(k, ipc, ipc * classes) for k in range(len(rates))]))


class InOrder(SyntheticBatches):
    """Batches of one image a class in a fixed order."""

    def __init__(self, images: Tensor, labels: Tensor, steps: int, ipc: int) -> None:
        super().__init__(images, labels, steps)
        self._ipc = ipc

    def indices(self, k: int) -> Tensor:
        """See :meth:`SyntheticBatches.indices`."""
        return _shown(k, self._ipc, len(self.images))
