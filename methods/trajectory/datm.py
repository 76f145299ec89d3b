"""DATM: trajectory matching on the part of the trajectories that fits the number of images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import ExpertRequest, IterationRecord, Problem

from .successors import SuccessorMatching, SuccessorSettings

_STARTS = ("classified", "real")
_CHUNK = 256  # images in the network at once
_LOOKED_AT, _LOOKED_AT_AN_IMAGE = 100, 10  # real images of a class that experts look at: so many, and more for each IPC
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True, kw_only=True)
class DATMSettings(SuccessorSettings):
    """:class:`SuccessorSettings`, the window of start epochs, the start of images and labels, and a bound of the loss.

    Args:
        min_start_epoch: the start epoch is drawn from min_start_epoch .. U - 1.
        current_start: U at iteration 0, from which it grows to ``max_start_epoch``; 0: U is max_start_epoch throughout.
        growth_end: the iteration at which U arrives there.
        start: start images: real ones that an expert ``classified`` rightly, or any ``real`` ones.
        label_momentum: momentum of learned labels.
        largest_loss: an iteration with a larger loss updates nothing.
    """

    iterations: int = 10000
    min_start_epoch: int = 0
    current_start: int = 0
    growth_end: int = 1000
    start: str = "classified"
    labels: str = "learned"
    lr_labels: float = 2.0
    label_momentum: float = 0.9
    last_epoch: int = 100
    largest_loss: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_start_epoch < self.max_start_epoch:
            bound = f"max_start_epoch = {self.max_start_epoch}"
            raise UsageError(f"min_start_epoch must be 0 or more and less than {bound}, not {self.min_start_epoch}.")
        if self.current_start and not self.min_start_epoch < self.current_start <= self.max_start_epoch:
            raise UsageError("current_start must be 0, or more than min_start_epoch and at most max_start_epoch.")
        if self.growth_end < 1:
            raise UsageError(f"growth_end must be at least 1, not {self.growth_end}.")
        if self.start not in _STARTS:
            raise unknown_name("start", self.start, _STARTS)
        if not 0 <= self.label_momentum < 1:
            raise UsageError(f"label_momentum must lie in [0, 1), not {self.label_momentum:g}.")
        if not self.largest_loss > 0:
            raise UsageError(f"largest_loss must be positive, not {self.largest_loss:g}.")

    def inert(self) -> Mapping[str, str]:
        """Return the settings without effect: those of labels not learned, and of a bound that does not grow."""
        inert = dict(super().inert())
        if self.labels == "learned" or self.start == "classified":
            inert.pop("last_epoch", None)  # the experts of that epoch choose the images, and give the first labels
        if self.labels != "learned":
            inert["label_momentum"] = f"labels are {self.labels}, not learned"
        if not self.current_start:
            inert["growth_end"] = "current_start is 0: the bound of the start epochs does not grow"
        return inert


class DATM(SuccessorMatching):
    """Difficulty-aligned trajectory matching: late epochs for many images, a growing window, labels from experts.

    Guo, Wang, Cazenavette, Li, Zhang, You, "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory
    Matching", ICLR 2024. The start epoch of iteration i is drawn from min .. U - 1, where the bound grows by
    ``U = min(max, current + floor((max - current) i / end))``. Images start as real ones that an expert classifies
    rightly, and label logits as the mean of what the experts say that do. Labels are learned with the images. The
    method is meant for experts of 100 epochs with GSAM (``experts.gsam_rho``, which all presets set).
    """

    Settings = DATMSettings
    evaluation_recipe = "datm"
    settings: DATMSettings

    @classmethod
    def refuses_batch_norm(cls, settings: Any) -> str:
        """Return the reason where experts choose the images, or give labels."""
        if settings.start == "classified" or settings.labels == "learned":
            return "experts choose its images and labels, and their snapshots do not hold running statistics"
        return super().refuses_batch_norm(settings)

    @classmethod
    def expert_request(cls, settings: Any) -> ExpertRequest:
        """Request the epochs that are matched, and ``last_epoch``, whose experts choose images and give labels."""
        request = super().expert_request(settings)
        if "last_epoch" in settings.inert() or settings.last_epoch <= request.epochs:
            return request
        return ExpertRequest(epochs=settings.last_epoch, asked_by=("last_epoch",))

    def setup(self, problem: Problem) -> None:
        """Start from images and labels that experts chose, as the settings say."""
        self._skipped = self._unclassified = 0
        super().setup(problem)

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """Return ``min_start_epoch`` and the bound U of an iteration."""
        s = self.settings
        first = s.current_start or s.max_start_epoch
        grown = first + (s.max_start_epoch - first) * iteration // s.growth_end
        return s.min_start_epoch, min(s.max_start_epoch, grown)

    # ---- the start -------------------------------------------------------------------------------------------------

    def _start_indices(self) -> Tensor:
        if self.settings.start == "real":
            return super()._start_indices()
        return torch.cat([self._classified(c) for c in range(self.problem.task.classes)])

    def _classified(self, c: int) -> Tensor:
        """Return the images of class ``c`` to start from: those that expert 0 classifies rightly, in random order.

        Where these are too few, those follow that expert 1 does, and so on; in the end come images that none does.
        """
        members, wanted = self.problem.train.members[c], self._form.per_class
        order = members[torch.randperm(len(members), generator=self.problem.generator("start images", c))]
        order = order.repeat(-(-wanted // len(order)))  # more than there are: some more than once
        most = _LOOKED_AT_AN_IMAGE * wanted + _LOOKED_AT
        chosen, left = order[:0], order[:most]
        for expert in range(len(self._experts)):
            if len(chosen) >= wanted:
                break
            right = torch.cat([self._logits(expert, some).argmax(1) == c for some in self._inputs(left)]).cpu()
            chosen, left = torch.cat([chosen, left[right]]), left[~right]
        self._unclassified += max(0, wanted - len(chosen))
        return torch.cat([chosen, left, order[most:]])[:wanted]

    def _inputs(self, indices: Tensor) -> Iterator[Tensor]:
        return (self.problem.train.inputs(some) for some in indices.split(_CHUNK))

    def _logits(self, expert: int, images: Tensor) -> Tensor:
        """Return what an expert of ``last_epoch`` says of ``images``: ``(len(images), K)``."""
        theta = self._experts.snapshot(expert, self.settings.last_epoch)
        with torch.no_grad():
            return torch.cat([self._network(theta, chunk) for chunk in images.split(_CHUNK)])

    def _start_labels(self) -> Tensor:
        logits = self._form.averaged(self._start_logits(self._form.decode(self._values["images"])))
        if self.settings.label_space == "logits":
            return logits
        probabilities = logits.softmax(1).clamp(min=_LEAST_PROBABILITY)
        return probabilities / probabilities.sum(1, keepdim=True)

    def _start_logits(self, images: Tensor) -> Tensor:
        """Return each training image's mean logits ``(M, K)`` over the experts that classify it rightly.

        Of an image that none does, and of all images with ``start=real``, they are those of expert 0.
        """
        first = self._logits(0, images)
        if self.settings.start == "real":
            return first
        total, count, hard = torch.zeros_like(first), torch.zeros_like(first[:, :1]), self._form.repeated(self._hard)
        for expert in range(len(self._experts)):
            logits = self._logits(expert, images)
            right = (logits.argmax(1) == hard)[:, None].to(logits)
            total += right * logits
            count += right
        return torch.where(count > 0, total / count.clamp(min=1), first)

    # ---- the updates -----------------------------------------------------------------------------------------------

    def iterate(self, iteration: int) -> IterationRecord:
        """Match one segment; update images, b and labels unless the loss is larger than ``largest_loss``."""
        record = super().iterate(iteration)
        return replace(record, metrics={**record.metrics, "skipped": self._skipped})

    def _apply(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        if loss > self.settings.largest_loss:
            self._skipped += 1
        else:
            super()._apply(loss, gradients)

    def _momentum_of(self, name: str) -> float:
        momentum: float = self.settings.label_momentum if name == "labels" else self.settings.momentum
        return momentum

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of trajectory matching, and the number of skipped updates."""
        return {**super().state_dict(), "skipped": torch.tensor(self._skipped)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._skipped = int(state["skipped"])

    def notes(self) -> list[str]:
        """Report what :class:`TrajectoryMatching` does, skipped updates, and start images that no expert recognises."""
        notes = super().notes()
        if self._skipped:
            bound = f"their loss was above largest_loss = {self.settings.largest_loss:g}"
            notes.append(f"{self._skipped} of {self._done} iterations updated nothing, because {bound}")
        if self._unclassified:
            total = len(self._values["images"]) * self._form.copies
            notes.append(
                f"{self._unclassified} of {total} images started from real ones that no expert classified rightly"
            )
        return notes
