"""Trajectory matching: the condenser that ``mtt``, ``tesla`` and ``tesla-exact`` share; they differ in its gradient.

``ftd`` and ``datm`` build on it (:mod:`~dcbench_tesla.methods.trajectory.successors`).

One iteration (MTT Algorithm 1, TESLA Algorithm 1, with the corrections of ``docs/gradients.md``) draws an expert and a
start epoch t. A student starts at theta*_t and takes T SGD steps on the synthetic images. The distance of its final
weights to theta*_{t+M} is differentiated with respect to the images, the student's learning rate b and, if they are
learned, the labels. One step of SGD with momentum updates all of them.

Shapes: N synthetic images, C channels, H = W = side, K classes, P parameters, T matching steps. With ``factor`` f each
synthetic image holds f^2 training images (:mod:`~dcbench_tesla.methods.stored`): M = N f^2 of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.networks import FlatNetwork
from dcbench_tesla.compute.precision import check_precision, lowered, tf32_within
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import (
    Condenser,
    DistilledSet,
    ExpertRequest,
    ExpertSource,
    IterationRecord,
    Problem,
    Settings,
    Sizes,
)
from dcbench_tesla.profilers import origin

from ..inner.batches import check_independent, fitting
from ..inner.engine import Mode, StreamedGradient
from ..inner.matching import stream_matching_gradient
from ..inner.step import CompiledStep, InnerStep
from ..inner.students import Weights
from ..inner.synthetic import ShuffledBatches
from ..stored import StoredForm, check_factor, with_stored_form

Labels = Literal["hard", "target", "last", "learned"]
LabelSpace = Literal["logits", "probabilities"]

_SHORT = ("last", "first")
_NEARLY_ONE_HOT = 0.99
_LEAST_PROBABILITY = 1e-6  # not 0, because a row of zeros could not be normalised
_TEACHER_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class MatchingSettings(Settings):
    """Hyper-parameters of trajectory matching, with the papers' symbols where there are any.

    Args:
        iterations: updates of the images.
        steps: T, the student's SGD steps (matching steps).
        expert_epochs: M, the number of epochs between the start and the target on the expert trajectory.
        max_start_epoch: the start epoch is drawn from 0 .. max_start_epoch - 1.
        lr_images: learning rate of the images.
        student_lr: initial value of b, the student's learning rate.
        lr_student_lr: learning rate of b; 0: b is not learned.
        min_student_lr: b is clamped at this value after each update, because it could turn negative.
        momentum: momentum of all these updates.
        batch_size: training images per matching step; 0: all.
        short_batch: which batch of a permutation is the shorter one, if ``batch_size`` does not divide the number of
            images: the ``last`` or, as in released code, the ``first``.
        labels: ``hard``; ``target``: softmax of the drawn expert at the target epoch (TESLA Section 3.4); ``last``: of
            the drawn expert at ``last_epoch``; ``learned``: optimised together with the images.
        label_space: the space of learned labels, ``logits`` or ``probabilities``.
        lr_labels: learning rate of learned labels.
        last_epoch: epoch of the expert that gives labels ``last``.
        precision: precision of the matching steps, ``float32``, ``tf32`` or ``bf16``; see
            :mod:`dcbench_tesla.compute.precision`.
        factor: f; each synthetic image holds f x f smaller ones, each a training image of its own (IDC).
    """

    iterations: int = 5000
    steps: int = 30
    expert_epochs: int = 2
    max_start_epoch: int = 20
    lr_images: float = 100.0
    student_lr: float = 0.01
    lr_student_lr: float = 1e-5
    min_student_lr: float = 1e-6
    momentum: float = 0.5
    batch_size: int = 0
    labels: str = "hard"
    label_space: str = "logits"
    lr_labels: float = 1.0
    last_epoch: int = 50
    precision: str = field(default="float32", metadata={"later": True})
    factor: int = field(default=1, metadata={"later": True})
    short_batch: str = field(default="last", metadata={"later": True})

    def __post_init__(self) -> None:
        check_factor(self.factor)
        for name in ("iterations", "steps", "expert_epochs", "max_start_epoch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr_images", "lr_student_lr", "lr_labels", "batch_size", "last_epoch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be finite and not negative, but is {getattr(self, name)}.")
        if not 0 < self.min_student_lr <= self.student_lr < math.inf:
            raise UsageError(
                f"student_lr must be positive and at least min_student_lr = {self.min_student_lr:g}, "
                f"but is {self.student_lr:g}."
            )
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must lie in [0, 1), not {self.momentum:g}.")
        if self.labels not in get_args(Labels):
            raise unknown_name("kind of labels", self.labels, get_args(Labels))
        if self.label_space not in get_args(LabelSpace):
            raise unknown_name("label space", self.label_space, get_args(LabelSpace))
        if self.short_batch not in _SHORT:
            raise unknown_name("place of the shorter batch", self.short_batch, _SHORT)
        check_precision(self.precision)

    def inert(self) -> Mapping[str, str]:
        """Return the settings without effect: those of learned labels, and of labels ``last``, if labels are others."""
        inert: dict[str, str] = {}
        if self.labels != "learned":
            inert |= dict.fromkeys(("label_space", "lr_labels"), f"labels are {self.labels}, not learned")
        if self.labels != "last":
            inert["last_epoch"] = f"labels are {self.labels}, not last"
        return inert


@dataclass(frozen=True, kw_only=True)
class TwoPassSettings(MatchingSettings):
    """:class:`MatchingSettings`, and how the two passes use memory, which changes the result by rounding only.

    Args:
        keep_graphs: K, the number of the T steps whose graphs are kept, so that pass 2 need not build them again.
        micro_batch: images in the network at once; memory does not grow with the rest of the batch. 0: on a CPU as
            many as its caches hold, which is the fastest; on a GPU the whole batch.
    """

    keep_graphs: int = field(default=0, metadata={"execution": True})
    micro_batch: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_graphs < 0:
            raise UsageError(f"keep_graphs must not be negative, but is {self.keep_graphs}; 0 needs the least memory.")
        if self.micro_batch < 0:
            raise UsageError(f"micro_batch must not be negative, but is {self.micro_batch}; 0 lets the device decide.")


@dataclass(frozen=True, kw_only=True)
class ExactSettings(TwoPassSettings):
    """:class:`TwoPassSettings`, and where the exact gradient keeps its T weight vectors; the result does not change.

    Args:
        weights: ``auto``, ``device``, ``host`` or ``restep``; see :mod:`dcbench_tesla.methods.inner.engine`.
    """

    weights: str = field(default="auto", metadata={"execution": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights not in get_args(Weights):
            raise unknown_name("place for the weights", self.weights, get_args(Weights))


class TrajectoryMatching(Condenser):
    """Trajectory matching; subclasses choose the ``mode`` of the gradient."""

    learns_lr = True
    mode: ClassVar[Mode]
    Settings = MatchingSettings
    settings: MatchingSettings

    @classmethod
    def expert_request(cls, settings: Any) -> ExpertRequest:
        """Request the epochs that are ever read: 0 .. max_start_epoch - 1 + M, and that of the labels' teacher."""
        last_target = settings.max_start_epoch - 1 + settings.expert_epochs
        if settings.labels == "last" and settings.last_epoch > last_target:
            return ExpertRequest(epochs=settings.last_epoch, asked_by=("last_epoch",))
        return ExpertRequest(epochs=last_target, asked_by=("max_start_epoch", "expert_epochs"))

    @classmethod
    def for_device(cls, settings: Any, device: torch.device, sizes: Sizes) -> Any:
        """Return the settings with ``micro_batch`` chosen for the device."""
        if not isinstance(settings, TwoPassSettings) or settings.micro_batch:
            return settings
        images = sizes.images * settings.factor**2
        batch = min(settings.batch_size or images, images)
        return replace(settings, micro_batch=fitting(batch, sizes, device))

    @classmethod
    def stand_in(cls, settings: Any, distilled: DistilledSet) -> DistilledSet:
        """Return the set with the decoder that sets of the method have."""
        return with_stored_form(settings.factor, distilled)

    @classmethod
    def refuses_batch_norm(cls, settings: Any) -> str:
        """Return the reason where a teacher labels the images; students train on the statistics of their batches."""
        if settings.labels in ("hard", "learned"):
            return ""
        return f"labels={settings.labels} asks a teacher, whose running statistics the experts' snapshots do not hold"

    @classmethod
    def probe(cls, settings: Any) -> tuple[Any, float]:
        """Return settings with two of the T steps, and the factor T / 2: time is linear in steps and kept graphs.

        The share of steps whose graphs are kept stays as near to that of ``settings`` as two steps allow.
        """
        steps = min(2, settings.steps)
        few = replace(settings, steps=steps)
        if isinstance(few, TwoPassSettings):
            share = min(few.keep_graphs / settings.steps, 1)
            few = replace(few, keep_graphs=round(steps * share))
        return few, settings.steps / steps

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings with batches of two micro-batches: a third one finds the same memory as the second.

        Kept graphs are those of all micro-batches, so that with them nothing is left out.
        """
        if not isinstance(settings, TwoPassSettings) or not settings.micro_batch or settings.keep_graphs:
            return settings
        two = 2 * settings.micro_batch
        return replace(settings, batch_size=min(settings.batch_size or two, two))

    def setup(self, problem: Problem) -> None:
        """Start from real images, with b and labels as the settings say, and zero momentum.

        Raises:
            UsageError: the device does not support the precision, or the images are too small for the factor.
        """
        s = self.settings
        check_precision(s.precision, problem.device)
        self.problem = problem
        self._network = FlatNetwork(problem.build_network)
        loss = lowered(self._network.loss, s.precision, problem.device)
        self._step = (CompiledStep if problem.compile and self.compiles else InnerStep)(loss)
        self._hard = problem.hard_labels().to(problem.device)
        self._form = StoredForm(s.factor, problem)
        images = self._form.encode(problem.train.inputs(self._start_indices())).clone()
        shown = len(images) * self._form.copies
        self._micro_batch = getattr(s, "micro_batch", 0)
        check_independent(self._network.skeleton, self._micro_batch, min(s.batch_size or shown, shown))
        student_lr = torch.tensor(s.student_lr, dtype=images.dtype, device=problem.device)
        self._values = {"images": images, "student_lr": student_lr}
        if s.labels == "learned":
            self._values["labels"] = self._start_labels()
        with origin("optimiser"):
            self._momentum = {name: torch.zeros_like(value) for name, value in self._values.items()}
        self._done, self._clamps = 0, 0

    @property
    def compiled(self) -> bool:
        """Whether the matching steps are compiled; they are not if the compiler failed."""
        return isinstance(self._step, CompiledStep) and not self._step.given_up

    @property
    def _experts(self) -> ExpertSource:
        experts = self.problem.experts
        assert experts is not None, "the core provides the experts a method requests"
        return experts

    def _start_indices(self) -> Tensor:
        """Return the real images ``(M,)`` to start from, ordered by class."""
        return self.problem.draw_real("start images", per_class=self._form.per_class)

    def _start_labels(self) -> Tensor:
        one_hot = F.one_hot(self._hard, self.problem.task.classes).float()
        if self.settings.label_space == "probabilities":
            return one_hot
        others = self.problem.task.classes - 1
        return one_hot * math.log(_NEARLY_ONE_HOT / (1 - _NEARLY_ONE_HOT) * max(others, 1))

    def _draw_segment(self, iteration: int) -> tuple[int, int]:
        """Draw the expert and the start epoch of an iteration."""
        rng = self.problem.generator("expert segment", iteration)
        expert = int(torch.randint(len(self._experts), (), generator=rng))
        first, bound = self.start_epochs(iteration)
        return expert, first + int(torch.randint(bound - first, (), generator=rng))

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """Return the window that an iteration draws its start epoch from: the first epoch, and the bound after it."""
        return 0, self.settings.max_start_epoch

    def _teacher(self, iteration: int) -> tuple[int, int]:
        """Return the expert that labels the images in an iteration, and its epoch."""
        expert, epoch = self._draw_segment(iteration)
        last = self.settings.labels == "last"
        return expert, self.settings.last_epoch if last else epoch + self.settings.expert_epochs

    def _assign(self, iteration: int, images: Tensor) -> Tensor:
        """Return soft labels of ``images``: the teacher's softmax (temperature 1), not augmented (TESLA eq. 9).

        The label of an image that holds others is the mean of theirs.
        """
        theta = self._experts.snapshot(*self._teacher(iteration))
        with torch.no_grad():
            chunks = self._form.decode(images).split(_TEACHER_CHUNK)
            return self._form.averaged(torch.cat([self._network(theta, chunk).softmax(1) for chunk in chunks]))

    def labels(self, iteration: int, images: Tensor | None = None) -> Tensor:
        """Return the labels in an iteration: ``(N,)`` int64 or ``(N, K)`` probabilities.

        Args:
            iteration: its number, which decides on the teacher.
            images: what a teacher labels; ``None``: the images as they are.
        """
        if self.settings.labels == "hard":
            return self._hard
        if self.settings.labels != "learned":
            return self._assign(iteration, self._values["images"] if images is None else images)
        values = self._values["labels"]
        return values.softmax(1) if self.settings.label_space == "logits" else values

    def iterate(self, iteration: int) -> IterationRecord:
        """Match one segment of one expert trajectory; update images, b and learned labels."""
        record, gradients = self.gradients(iteration)
        self._apply(record.loss, gradients)
        self._done = iteration + 1
        reached = {"student_lr": float(self._values["student_lr"]), "student_lr_clamps": self._clamps}
        return replace(record, metrics={**reached, **record.metrics})

    def _apply(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """Make the updates of one iteration, whose matching loss was ``loss``."""
        s = self.settings
        self._update("images", gradients["images"], s.lr_images)
        self._update("student_lr", gradients["student_lr"], s.lr_student_lr)
        if s.labels == "learned":
            self._update_labels(gradients["labels"])
        self._clamp_student_lr()

    def gradients(self, iteration: int) -> tuple[IterationRecord, dict[str, Tensor]]:
        """Return the record of an iteration, and the gradients of its loss at the present values.

        They are dL/dX ``(N, C, H, W)``, dL/db and, for learned labels, dL/dY ``(N, K)``.
        """
        s = self.settings
        expert, epoch = self._draw_segment(iteration)
        with origin("inputs"):
            images, labels = self._form.decode(self._values["images"]), self._form.repeated(self.labels(iteration))
        batches = InnerBatches(self.problem, images, labels, s, iteration)
        with tf32_within(s.precision):
            start, target = (self._experts.snapshot(expert, e) for e in (epoch, epoch + s.expert_epochs))
            result = self._matched(start, target, batches)
        found = {"images": self._form.pull_back(batches.image_gradient), "student_lr": result.lr}
        if s.labels == "learned":
            found["labels"] = self._form.summed(batches.label_gradient)
        norm = float(found["images"].norm())
        metrics = {"image_gradient_norm": norm, "expert": expert, "start_epoch": epoch}
        return IterationRecord(loss=float(result.loss), metrics=metrics), found

    def _matched(self, start: Tensor, target: Tensor, batches: "InnerBatches") -> StreamedGradient:
        """Match one segment of a trajectory, from ``start`` to ``target`` ``(P,)``."""
        return stream_matching_gradient(
            self._step,
            start,
            target,
            batches,
            self._values["student_lr"],
            self._mode,
            weights=getattr(self.settings, "weights", "auto"),
            keep=getattr(self.settings, "keep_graphs", 0),
            micro_batch=self._micro_batch,
        )

    @property
    def _mode(self) -> Mode:
        return self.mode

    def _update(self, name: str, gradient: Tensor, lr: float) -> None:
        """Make one step of SGD with momentum: v <- momentum v + gradient, value <- value - lr v."""
        velocity = self._momentum[name].mul_(self._momentum_of(name)).add_(gradient)
        with origin("optimiser"):
            self._values[name].sub_(lr * velocity)

    def _momentum_of(self, name: str) -> float:
        return self.settings.momentum

    def _update_labels(self, gradient: Tensor) -> None:
        """Update learned labels by the gradient of the probabilities; keep ``probabilities`` on the simplex."""
        values = self._values["labels"]
        if self.settings.label_space == "logits":
            p = values.softmax(1)
            gradient = p * (gradient - (p * gradient).sum(1, keepdim=True))
        self._update("labels", gradient, self.settings.lr_labels)
        if self.settings.label_space == "probabilities":
            values.clamp_(min=_LEAST_PROBABILITY)
            values.div_(values.sum(1, keepdim=True))

    def _clamp_student_lr(self) -> None:
        """Clamp b at its minimum: a projection, because the published learning rate of b is in units of b itself."""
        b = self._values["student_lr"]
        before = float(b)
        b.clamp_(min=self.settings.min_student_lr)
        self._clamps += float(b) != before and math.isfinite(before)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the images, b, learned labels, their momentum, and the counters."""
        state = {f"value.{name}": value for name, value in self._values.items()}
        state |= {f"momentum.{name}": value for name, value in self._momentum.items()}
        return state | {"counters": torch.tensor([self._done, self._clamps])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: b is not positive, a probability of a label is negative, or a counter is.
        """
        learned = ["value.labels"] if "labels" in self._values and self.settings.label_space == "probabilities" else []
        least = {name: float(state[name].min()) for name in ("value.student_lr", "counters", *learned)}
        if least["value.student_lr"] <= 0 or min(least.values()) < 0:
            raise ValueError("student_lr is not positive, or a counter or a probability is negative")
        for name in self._values:
            self._values[name].copy_(state[f"value.{name}"])
            self._momentum[name].copy_(state[f"momentum.{name}"])
        self._done, self._clamps = (int(n) for n in state["counters"])

    def notes(self) -> list[str]:
        """Report how often b was clamped: a student with a tiny learning rate does not move, and matches nothing."""
        if not self._clamps:
            return []
        often = f"in {self._clamps} of {self._done} iterations"
        return [f"student_lr had to be clamped at {self.settings.min_student_lr:g} {often}: lower lr_student_lr"]

    def _distilled_images(self) -> Tensor:
        """Return the images ``(N, C, H, W)`` to hand over."""
        return self._values["images"]

    def distilled(self) -> DistilledSet:
        """Return images, labels and b; a teacher's labels are those of the last iteration's teacher on these images."""
        last = max(self._done - 1, 0)
        student_lr = float(self._values["student_lr"])
        images = self._distilled_images()
        labels = self.labels(last, images)
        distilled = self.problem.distilled(images, labels, lr=student_lr, decoder=self._form.decoder)
        if self.settings.labels in ("target", "last"):
            expert, epoch = self._teacher(last)
            distilled = distilled.with_provenance(label_teacher={"expert": expert, "epoch": epoch})
        return distilled


class InnerBatches(ShuffledBatches):
    """The T augmented batches of one iteration: chunks of random permutations, and an augmentation for each step."""

    def __init__(
        self, problem: Problem, images: Tensor, labels: Tensor, settings: MatchingSettings, iteration: int
    ) -> None:
        labels = labels.detach().requires_grad_(settings.labels == "learned")
        how = {"steps": settings.steps, "batch_size": settings.batch_size}
        first = settings.short_batch == "first"
        super().__init__(problem, images, labels, **how, repetition=(iteration,), short_first=first)
        self._iteration = iteration

    def augmented(self, k: int, rows: slice, images: Tensor) -> Tensor:
        """See :meth:`ShuffledBatches.augmented`."""
        augmentation = self._problem.task.augmentation
        rng = self._problem.generator("inner augmentation", self._iteration, k)
        draw = augmentation.draw(self.size(k), self._problem.task.side, rng)
        return augmentation(images, draw if rows == slice(None) else draw.of(rows))
