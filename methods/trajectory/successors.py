"""What the successors of MTT share: the choice of the gradient, of the student and of the parameters that are matched.

``gradient`` decides between MTT's exact gradient and TESLA's. Both hold the graph of one step.

``student=nearest`` is ATT's matching (Liu et al., "Dataset Distillation by Automatic Training Trajectories", ECCV
2024): of the students w_1 .. w_T the one nearest to the target, ``argmin_k ||w_k - w*||_1``, is matched in place of the
last one, so that the gradient goes back through that many steps only. One more pass finds it.

``left_out`` is one part of PAD (Li et al., "Prioritize Alignment in Dataset Distillation", 2024) as its code does it:
the parameters with the smallest errors ``|w_T - w*|`` are left out of the loss and of its normaliser. PAD's other part,
experts that see images by difficulty, is not there.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.profilers import phase

from ..inner.batches import Batches
from ..inner.engine import Mode, StreamedGradient, stream_inner_gradient
from ..inner.matching import NormalisedDistance
from ..inner.optimisers import PLAIN_SGD
from ..inner.students import Loop
from .matching import ExactSettings, InnerBatches, TrajectoryMatching

Gradient = Literal["exact", "frozen"]
Student = Literal["last", "nearest"]


@dataclass(frozen=True, kw_only=True)
class SuccessorSettings(ExactSettings):
    """Trajectory matching with a choice of the gradient, of the student and of the matched parameters.

    Args:
        gradient: ``exact``, that of MTT in one step's graph, or ``frozen``, that of TESLA.
        student: what is compared with the expert: the ``last`` student, or the ``nearest`` of all (ATT).
        left_out: share of the parameters, those with the smallest errors, that the loss leaves out (PAD).
    """

    gradient: str = "exact"
    student: str = "last"
    left_out: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in get_args(Gradient):
            raise unknown_name("gradient", self.gradient, get_args(Gradient))
        if self.student not in get_args(Student):
            raise unknown_name("student", self.student, get_args(Student))
        if not 0 <= self.left_out < 1:
            raise UsageError(f"left_out must lie in [0, 1), not {self.left_out:g}.")


class WorstDistance(NormalisedDistance):
    """:class:`NormalisedDistance` of the parameters with the largest errors ``|w - w*|``; the others are left out.

    Args:
        start: the student's first weights ``(P,)``.
        target: the expert's weights ``(P,)``.
        left_out: share of the P parameters that is left out, in [0, 1).

    Raises:
        UsageError: as :class:`NormalisedDistance`.
    """

    def __init__(self, start: Tensor, target: Tensor, left_out: float) -> None:
        super().__init__(start, target)
        self._way = (start - target).detach().square()
        self._kept = max(1, round((1 - left_out) * len(target)))

    def __call__(self, weights: Tensor) -> Tensor:
        """Return ``sum over kept p of (w - w*)_p^2 / sum over kept p of (w_0 - w*)_p^2``, a scalar."""
        errors = (weights - self._target).square()
        kept = errors.detach().topk(self._kept, sorted=False).indices
        return errors[kept].sum() / self._way[kept].sum()


class FirstSteps:
    """The first ``count`` steps of an iteration's batches, a :class:`~dcbench_tesla.methods.inner.batches.Steps`."""

    def __init__(self, batches: InnerBatches, count: int) -> None:
        self.size, self.batch, self.accumulate = batches.size, batches.batch, batches.accumulate
        self._count = count

    def __len__(self) -> int:
        return self._count


class SuccessorMatching(TrajectoryMatching):
    """Trajectory matching with :class:`SuccessorSettings`."""

    mode = "exact"
    compiles = True
    Settings = SuccessorSettings
    settings: Any

    @property
    def _mode(self) -> Mode:
        mode: Mode = self.settings.gradient
        return mode

    def _matched(self, start: Tensor, target: Tensor, batches: InnerBatches) -> StreamedGradient:
        s = self.settings
        if s.student == "last" and not s.left_out:
            return super()._matched(start, target, batches)
        objective = WorstDistance(start, target, s.left_out) if s.left_out else NormalisedDistance(start, target)
        return stream_inner_gradient(
            self._step,
            start,
            FirstSteps(batches, self._nearest(start, target, batches)) if s.student == "nearest" else batches,
            self._values["student_lr"],
            objective=objective,
            mode=self._mode,
            weights=s.weights,
            keep=s.keep_graphs,
            micro_batch=self._micro_batch,
        )

    def _nearest(self, start: Tensor, target: Tensor, batches: InnerBatches) -> int:
        """Return ``argmin_k ||w_k - w*||_1``, the number of steps of the student nearest to the target, 1 .. T."""
        rates = self._values["student_lr"].expand(len(batches))
        loop = Loop(Batches(self._step, batches, self._micro_batch), PLAIN_SGD, rates)
        distances: list[Tensor] = []
        with phase("pass 1"):
            student = loop.at(start, 0)
            for k in range(len(batches)):
                student = loop.advance(k, student)
                distances.append((student[0] - target).abs().sum())
        # counted from the end: where memory is predicted there are no values, and the most steps are to count
        return len(distances) - int(torch.stack(distances[::-1]).argmin())
