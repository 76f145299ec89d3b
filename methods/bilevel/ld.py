"""LD: the labels of fixed real images are learned, by one step of a network or by ridge regression on its features.

A network with weights w is trained on the learned labels all the time. In iteration t, with a batch (x, y) of the fixed
images and their labels, and a batch (x', y') of real images::

    step:   w' = w - b grad_w l(w; x, y)                            J = l(w'; x', y')
    ridge:  v' = (1 - s) v + s F^T (F F^T + r I)^-1 y,  F = [phi_w(x), 1]
                                                                    J = CE(a [phi_w(x'), 1] v', y')

    y <- project(Adam(y, dJ/dy)),    w <- Adam(w, grad_w of the same loss on (x, y))

``project`` clips labels to [0, 1] and scales every row to a sum of 1. The network starts anew when the moving average
of J has not fallen for ``patience`` steps. How many steps it had taken at the least average is recorded, and the mean
of the last three such numbers is how long the authors train a network on the labels.

Shapes: N images, B in a batch, K classes, P parameters, D features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.networks import cross_entropy
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import DistilledSet, IterationRecord, Problem, Settings
from dcbench_tesla.profilers import origin

from ..inner.batches import Batches
from ..inner.engine import stream_inner_gradient
from ..inner.optimisers import Adam, Student, adam_restored, adam_state
from ..inner.step import InnerStep
from ..inner.synthetic import ShuffledBatches
from .real_loss import RealLoss

_INNER = ("step", "ridge")
_COUNTS = 3  # how many of the recorded numbers of steps are averaged


@dataclass(frozen=True, kw_only=True)
class LDSettings(Settings):
    """Hyper-parameters of LD.

    Args:
        iterations: updates of the labels.
        inner: how a network depends on the labels: by one ``step``, which is differentiated, or by ``ridge`` regression
            on its features.
        lr_labels: learning rate of Adam on the labels.
        lr_network: learning rate of Adam on the network.
        student_lr: learning rate b of the differentiated step.
        ridge: r, what is added to the diagonal of the Gram matrix.
        local_share: s, the share of a batch's solution in the weights of the last layer.
        lr_calibration: learning rate of Adam on the factor a of the outputs.
        real_batch: real images in the loss, drawn at random.
        batch_size: fixed images in a batch, drawn at random; 0: all.
        patience: steps without a fall of the mean of as many losses, after which the network starts anew.
        micro_batch: images in a network at once; 0: on a CPU as many as its caches hold, on a GPU the whole batch.
    """

    iterations: int = 4000
    inner: str = "step"
    lr_labels: float = 0.001
    lr_network: float = 0.001
    student_lr: float = 0.01
    ridge: float = 1.0
    local_share: float = 0.01
    lr_calibration: float = 0.01
    real_batch: int = 1024
    batch_size: int = 50
    patience: int = 50
    micro_batch: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        for name in ("iterations", "real_batch", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr_labels", "lr_network", "student_lr", "ridge", "lr_calibration"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be finite and positive, but is {getattr(self, name)}.")
        if min(self.batch_size, self.micro_batch) < 0 or not 0 < self.local_share <= 1:
            raise UsageError("batch_size and micro_batch must not be negative, and local_share must lie in (0, 1].")
        if self.inner not in _INNER:
            raise unknown_name("inner solution", self.inner, _INNER)

    def inert(self) -> Mapping[str, str]:
        """Return the settings of the other kind of inner solution."""
        others = ("ridge", "local_share", "lr_calibration") if self.inner == "step" else ("student_lr",)
        return dict.fromkeys(others, f"inner is {self.inner}")


class Restarts:
    """Says when a network starts anew, and remembers after how many steps networks were best.

    Args:
        patience: the number of losses that are averaged, and the number of steps for which their mean may not fall.
    """

    def __init__(self, patience: int) -> None:
        self._losses = torch.zeros(patience, dtype=torch.float64)
        self._best = torch.zeros((), dtype=torch.float64)
        self._numbers = torch.zeros(3 + _COUNTS, dtype=torch.int64)  # age, age at the best, networks, the last counts

    @property
    def age(self) -> int:
        """The steps that the present network has taken."""
        return int(self._numbers[0])

    @property
    def networks(self) -> int:
        """The number of networks before the present one."""
        return int(self._numbers[2])

    @property
    def counts(self) -> list[int]:
        """The last recorded numbers of steps, at most three."""
        return [count for count in self._numbers[3:].tolist() if count]

    @property
    def steps(self) -> int:
        """How long to train on the labels: the mean of the last counts, or the best age so far; at least 1."""
        counts = self.counts
        return max(1, round(sum(counts) / len(counts)) if counts else int(self._numbers[1]) or self.age)

    def after(self, loss: float) -> bool:
        """Count a step with its loss, and return whether the network starts anew."""
        patience = len(self._losses)
        self._losses[self.age % patience] = loss
        self._numbers[0] += 1
        if self.age < patience:
            return False
        mean = self._losses.mean()
        if self._numbers[1] == 0 or mean < self._best:
            self._best, self._numbers[1] = mean, self.age
        if self.age - int(self._numbers[1]) < patience:
            return False
        best, networks = int(self._numbers[1]), self.networks
        self._numbers = torch.tensor([0, 0, networks + 1, *self._numbers[4:].tolist(), best])
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that steps change."""
        return {"losses": self._losses, "best_mean": self._best, "numbers": self._numbers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._losses, self._best, self._numbers = (
            state[name].cpu().clone() for name in ("losses", "best_mean", "numbers")
        )


class LabelBatch(ShuffledBatches):
    """One random batch of the fixed images, as the only step of an inner loop; only labels get a gradient."""

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        """See :meth:`~dcbench_tesla.methods.inner.synthetic.SyntheticBatches.accumulate`."""
        assert label_gradient is not None, "labels are what is learned"
        self.label_gradient.index_add_(0, self._rows(k, rows), label_gradient)


class LD(RealLoss):
    """Label distillation: images stay real ones, and their labels are learned as probabilities.

    Labels start as 1/K. ``inner=step`` differentiates one step of the network, ``inner=ridge`` a ridge regression on
    its features. No augmentation.

    Bohdal, Yang, Hospedales, "Flexible Dataset Distillation: Learn Labels Instead of Images", 2020.
    """

    Settings = LDSettings
    settings: LDSettings
    adam = Adam()
    evaluation_recipe = "ld"

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings with two pieces of real images; more need no more memory."""
        return replace(settings, real_batch=min(settings.real_batch, 2 * settings.micro_batch or settings.real_batch))

    @classmethod
    def inner_batch(cls, settings: Any, images: int) -> int:
        """See :meth:`RealLoss.inner_batch`."""
        return min(settings.batch_size or images, images)

    @property
    def compiled(self) -> bool:
        """Whether the step and the loss on real images are compiled; the ridge version runs eagerly."""
        return self.settings.inner == "step" and super().compiled

    def setup(self, problem: Problem) -> None:
        """Choose the images, make all labels 1/K, and start a network; the ridge version's last layer is zero."""
        super().setup(problem)
        self._chosen = problem.draw_real("start images")
        with origin("inputs"):
            self.images = problem.train.inputs(self._chosen).clone()
        task = problem.task
        labels = torch.full((len(self._chosen), task.classes), 1 / task.classes)
        self.restarts = Restarts(self.settings.patience)
        with origin("optimiser"):
            self._labels = self.adam.begin(labels.to(self.images))
            self._network = self.adam.begin(self._fresh())
            self._factor = self.adam.begin(torch.ones(1).to(self.images))
            size = self.network.unflatten(self._network[0])["classifier.weight"].shape[1]
            self._last = torch.zeros(size + 1, task.classes).to(self.images)

    def _fresh(self) -> Tensor:
        """Return the weights ``(P,)`` of the next network."""
        return self.network.initial(self.problem.seed_for("network", self.restarts.networks)).to(self.images)

    @property
    def labels(self) -> Tensor:
        """The labels ``(N, K)``."""
        return self._labels[0]

    def iterate(self, iteration: int) -> IterationRecord:
        """Update labels and network once, and start a new network where the loss no longer falls."""
        found, s = self._found(iteration), self.settings
        with origin("optimiser"):
            self._labels = self._moved(iteration, self._labels, found.labels, s.lr_labels)
            self._network = self._moved(self.restarts.age, self._network, found.network, s.lr_network)
            if found.factor is not None and found.last is not None:
                self._factor = self._moved(iteration, self._factor, found.factor, s.lr_calibration)
                self._last = found.last
        self._project()
        record = self._record(found)
        if self.restarts.after(record.loss):
            self._network, self._last = self.adam.begin(self._fresh()), torch.zeros_like(self._last)
        return record

    def gradients(self, iteration: int) -> tuple[IterationRecord, dict[str, Tensor]]:
        """Return the record of an iteration, and the gradient of its loss in the labels, and in the factor of ridge."""
        found = self._found(iteration)
        factor = {} if found.factor is None else {"factor": found.factor}
        return self._record(found), {"labels": found.labels, **factor}

    def _record(self, found: "_Found") -> IterationRecord:
        facts = {"label_gradient_norm": float(found.labels.norm()), "network_age": float(self.restarts.age)}
        return IterationRecord(loss=float(found.loss), metrics=facts)

    def _found(self, iteration: int) -> "_Found":
        labels = self.labels.detach().requires_grad_()
        how: dict[str, Any] = {"steps": 1, "batch_size": self.settings.batch_size}
        batch = LabelBatch(self.problem, self.images, labels, **how, repetition=(iteration,))
        return (self._by_step if self.settings.inner == "step" else self._by_ridge)(iteration, batch)

    def _by_step(self, iteration: int, batch: LabelBatch) -> "_Found":
        """Differentiate the real loss after one step of size b, by the engine of the family."""
        theta, pieces = self._network[0], self.settings.micro_batch
        result = stream_inner_gradient(
            self._step,
            theta,
            batch,
            self.settings.student_lr,
            objective=self.objective(iteration, self.images),
            micro_batch=pieces,
        )
        return _Found(result.loss, batch.label_gradient, Batches(self._step, batch, pieces).gradient(0, theta))

    def _by_ridge(self, iteration: int, batch: LabelBatch) -> "_Found":
        """Differentiate the real loss through v', which is linear in the labels: ``dJ/dy = s A^-1 F dJ/dv'``."""
        theta, s = self._network[0], self.settings
        images, labels = batch.batch(0, slice(None))
        with torch.no_grad(), origin("graph"):
            features = self._features(theta, images)
            gram = features @ features.T + s.ridge * torch.eye(len(features)).to(features)
            local = features.T @ torch.linalg.solve(gram, labels)
        last = (1 - s.local_share) * self._last + s.local_share * local

        def of_last(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                known = self._features(theta, x)
            return cross_entropy(vector[-1] * (known @ vector[:-1].view_as(last)), y)

        def of_network(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(self._factor[0] * (self._features(w, x) @ last), y)

        objective = self.objective(iteration, self.images, of_last)
        loss, both = objective.value_and_gradient(torch.cat([last.flatten(), self._factor[0]]))
        of_labels = s.local_share * torch.linalg.solve(gram, features @ both[:-1].view_as(last))
        batch.accumulate(0, slice(None), images, of_labels)
        trained = Batches(InnerStep(of_network), batch, s.micro_batch).gradient(0, theta)
        return _Found(loss, batch.label_gradient, trained, both[-1:], last)

    def _features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return the features and a column of ones, ``(B, D + 1)``."""
        return F.pad(self.network.features(theta, images), (0, 1), value=1.0)

    def _moved(self, k: int, student: Student, gradient: Tensor, rate: float) -> Student:
        return self.adam.step(k, student, gradient, torch.tensor(rate).to(self.images))

    def _project(self) -> None:
        """Clip the labels to [0, 1] and scale them to a sum of 1; a row without any becomes 1/K."""
        labels = self.labels.clamp_(0, 1)
        total = labels.sum(1, keepdim=True)
        labels.copy_(torch.where(total > 0, labels / total, 1 / labels.shape[1]))

    def state_dict(self) -> dict[str, Tensor]:
        """Return labels, network and the last layer of ridge, Adam's moments, and the losses that are averaged."""
        students = {"labels": self._labels, "network": self._network, "factor": self._factor}
        return {**adam_state(students), "last_layer": self._last, **self.restarts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        restored = adam_restored(state, ("labels", "network", "factor"), like=self.images)
        self._labels, self._network, self._factor = restored.values()
        self._last = state["last_layer"].to(self.images)
        self.restarts.load_state_dict(state)

    def notes(self) -> list[str]:
        """Tell how often the network started anew, and how many steps the authors train on the labels."""
        told = ", ".join(map(str, self.restarts.counts)) or "none"
        return [
            f"the network started anew {self.restarts.networks} times (last recorded steps: {told}); by the authors' "
            f"recipe a network is trained for {self.restarts.steps} steps"
        ]

    def distilled(self) -> DistilledSet:
        """Return the real images as pixels, with their learned labels and the number of steps to train on them."""
        pixels = self.problem.train.pixels[self._chosen]
        return self.problem.distilled(pixels, self.labels, training_steps=self.restarts.steps)


class _Found(NamedTuple):
    """What an iteration computes: J, dJ/dy ``(N, K)``, the network's own gradient ``(P,)``, dJ/da ``(1,)``, and v'."""

    loss: Tensor
    labels: Tensor
    network: Tensor
    factor: Tensor | None = None
    last: Tensor | None = None
