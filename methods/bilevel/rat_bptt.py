"""RaT-BPTT: back-propagation through a window of the inner loop whose place is drawn at random."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import Problem

from ..inner.optimisers import SGD, Adam, InnerOptimiser
from ..inner.synthetic import ShuffledBatches, SyntheticBatches
from .through_time import InnerLoop, ThroughTime, ThroughTimeSettings

_OPTIMISERS = ("adam", "sgd")
_LABELS = ("hard", "learned")
_LEAST_PROBABILITY = 1e-6  # not 0, because a row of zeros could not be normalised


@dataclass(frozen=True, kw_only=True)
class RaTBPTTSettings(ThroughTimeSettings):
    """:class:`ThroughTimeSettings`, and RaT-BPTT's own.

    Args:
        steps: T, the longest inner loop.
        window: W, the steps that are differentiated; the others come before them.
        batch_size: synthetic images in a step, drawn anew when all were shown; 0: all.
        inner_optimiser: ``adam`` or ``sgd``.
        inner_momentum: momentum of ``sgd``.
        clip: the gradient is scaled down to this many times the moving average of its norm; 0: never.
        clip_decay: decay of that average.
        labels: ``hard``, or ``learned``: one-hot at the start, and probabilities throughout.
    """

    lr_images: float = 0.001
    student_lr: float = 0.001
    real_batch: int = 5000
    steps: int = 200
    window: int = 60
    batch_size: int = 0
    inner_optimiser: str = "adam"
    inner_momentum: float = 0.0
    clip: float = 2.0
    clip_decay: float = 0.9
    labels: str = "hard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window <= self.steps:
            raise UsageError(f"window must lie in 1 .. steps = {self.steps}, but is {self.window}.")
        if self.batch_size < 0 or not 0 <= self.clip < math.inf or not 0 <= self.clip_decay < 1:
            raise UsageError("batch_size and clip must not be negative, and clip_decay must lie in [0, 1).")
        if self.inner_optimiser not in _OPTIMISERS:
            raise unknown_name("inner optimiser", self.inner_optimiser, _OPTIMISERS)
        if self.labels not in _LABELS:
            raise unknown_name("kind of labels", self.labels, _LABELS)
        SGD(self.inner_momentum)

    def inert(self) -> Mapping[str, str]:
        """Return the settings without effect: SGD's with Adam, and that of clipping where nothing is clipped."""
        inert = {} if self.inner_optimiser == "sgd" else {"inner_momentum": "inner_optimiser is adam"}
        return inert if self.clip else inert | {"clip_decay": "clip is 0"}


class RaTBPTT(ThroughTime):
    """Random truncated back-propagation through time.

    Every iteration trains a fresh network for ``t_0 + W`` steps, ``t_0`` drawn from 0 .. T - W, and differentiates the
    last W of them. The gradient is clipped by the moving average of its norm. Real and synthetic images are mirrored
    (where the data set allows it) and rotated.

    Feng, Vedantam, Kempe, "Embarrassingly Simple Dataset Distillation", ICLR 2024.
    """

    Settings = RaTBPTTSettings
    settings: RaTBPTTSettings
    evaluation_recipe = "rat-bptt"

    @property
    def inner_optimiser(self) -> InnerOptimiser:
        """Adam, or SGD with momentum."""
        return Adam() if self.settings.inner_optimiser == "adam" else SGD(self.settings.inner_momentum)

    @classmethod
    def probe(cls, settings: Any) -> tuple[Any, float]:
        """Return settings without steps before the window, and how many times longer a mean iteration takes.

        A step before the window takes about a quarter of the time of one inside (3 and 12 forward passes).
        """
        before = (settings.steps - settings.window) / 2
        return replace(settings, steps=settings.window), 1 + before / (4 * settings.window)

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings without steps before the window, which keep nothing, and with two pieces of real images."""
        images = min(settings.real_batch, 2 * settings.micro_batch or settings.real_batch)
        return replace(settings, steps=settings.window, real_batch=images)

    @classmethod
    def inner_batch(cls, settings: Any, images: int) -> int:
        """See :meth:`RealLoss.inner_batch`."""
        return min(settings.batch_size or images, images)

    def setup(self, problem: Problem) -> None:
        """See :meth:`ThroughTime.setup`; the average of the gradient's norm is empty."""
        kept = [name for name in ("flip", "rotate") if name in problem.task.augmentation.operations]
        self._augmentations = [Augmentation(name) for name in kept]
        super().setup(problem)
        self._average = torch.zeros(2, dtype=torch.float64)  # the moving average of the norm, and the weight it has

    def start(self) -> dict[str, Tensor]:
        """Return normal noise of norm 1 an image, and one-hot labels if labels are learned."""
        task, ipc = self.problem.task, self.problem.ipc
        shape = (task.classes * ipc, task.channels, task.side, task.side)
        noise = torch.randn(shape, generator=self.problem.generator("start noise"))
        values = {"images": noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)}
        if self.settings.labels == "learned":
            values["labels"] = F.one_hot(self._hard, task.classes).float()
        return values

    def labels(self) -> Tensor:
        """Return hard labels ``(N,)``, or the learned ones ``(N, K)``."""
        return self.values["labels"][0] if self.settings.labels == "learned" else self._hard

    def augment_real(self, images: Tensor, rows: slice, iteration: int) -> Tensor:
        """Return the real images ``rows`` of an iteration, mirrored and rotated."""
        count = min(self.settings.real_batch, len(self.problem.train))
        return self._augmented(images, rows, count, "real augmentation", iteration)

    def inner_loop(self, iteration: int, number: int) -> InnerLoop:
        """Return ``t_0 + W`` steps, the last W of them in the window."""
        s = self.settings
        rng = self.problem.generator("window", iteration, number)
        before = int(torch.randint(s.steps - s.window + 1, (), generator=rng))
        labels = self.labels().detach().requires_grad_(s.labels == "learned")
        batches = _Shuffled(self, labels, before + s.window, iteration, number)
        rate = torch.tensor(s.student_lr, dtype=self.images.dtype, device=self.images.device)
        return InnerLoop(batches, rate, window=s.window, facts={"steps_before_window": before})

    def augmented(self, images: Tensor, rows: slice, count: int, *repetition: int) -> Tensor:
        """Return the images ``rows`` of a synthetic batch of ``count``, mirrored and rotated."""
        return self._augmented(images, rows, count, "inner augmentation", *repetition)

    def _augmented(self, images: Tensor, rows: slice, count: int, role: str, *repetition: int) -> Tensor:
        rng = self.problem.generator(role, *repetition)
        for augmentation in self._augmentations:
            images = augmentation(images, augmentation.draw(count, images.shape[-1], rng).of(rows))
        return images

    def pulled_back(self, batches: SyntheticBatches, rates: Tensor) -> dict[str, Tensor]:
        """Return the gradients of the images, and of the labels if they are learned."""
        found = {"images": batches.image_gradient}
        return found | ({"labels": batches.label_gradient} if self.settings.labels == "learned" else {})

    def limited(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale the gradients down where their norm is over ``clip`` times its moving average, then renew that."""
        norm = torch.stack([g.norm() for g in gradients.values()]).norm().double().cpu()
        decay, (average, weight) = self.settings.clip_decay, self._average
        most = self.settings.clip * average / weight if self.settings.clip and weight else torch.tensor(math.inf)
        scale = float(most / norm) if norm > most else 1.0
        self._average = decay * self._average + (1 - decay) * torch.stack([norm * scale, torch.ones_like(norm)])
        return gradients if scale == 1 else {name: scale * g for name, g in gradients.items()}

    def project(self) -> None:
        """Clip learned labels at 0, as the authors do, and scale them to a sum of 1, as a distilled set needs them."""
        if self.settings.labels == "learned":
            labels = self.values["labels"][0].clamp_(min=_LEAST_PROBABILITY)
            labels.div_(labels.sum(1, keepdim=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is learned, Adam's moments, and the average of the gradient's norm."""
        return super().state_dict() | {"norm_average": self._average}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._average = state["norm_average"].cpu().clone()


class _Shuffled(ShuffledBatches):
    """The batches of one network: chunks of random permutations, and an augmentation for each step."""

    def __init__(self, method: RaTBPTT, labels: Tensor, steps: int, iteration: int, number: int) -> None:
        how: dict[str, Any] = {"steps": steps, "batch_size": method.settings.batch_size}
        super().__init__(method.problem, method.images, labels, **how, repetition=(iteration, number))
        self._method = method

    def augmented(self, k: int, rows: slice, images: Tensor) -> Tensor:
        """See :meth:`SyntheticBatches.augmented`."""
        return self._method.augmented(images, rows, self.size(k), *self._repetition, k)
