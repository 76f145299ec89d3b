"""KIP: images from which ridge regression with the kernel of a network predicts the labels of real ones."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.kernels import (
    KERNELS,
    Kernel,
    RandomFeatures,
    Ridge,
    default_ridge,
    images_at_once,
    kernel_named,
)
from dcbench_tesla.distilled import CENTRED
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import Condenser, DistilledSet, IterationRecord, Problem, Settings
from dcbench_tesla.profilers import origin

from ..inner.optimisers import Adam, adam_restored, adam_state

_LABELS = ("hard", "learned")


@dataclass(frozen=True, kw_only=True)
class KIPSettings(Settings):
    """Hyper-parameters of KIP; the defaults are those of its authors for fully connected kernels.

    Args:
        iterations: updates of the images.
        kernel: ``fc`` (NTK of a fully connected network), ``conv-vec`` (NTK of convolutions without pooling) or
            ``random-conv`` (features of random ConvNets with pooling, drawn anew in every iteration).
        depth: hidden layers, or blocks of ``random-conv``; 0: 1 of ``fc``, 3 of ``conv-vec``, by image size of
            ``random-conv``.
        ridge: ridge as a share of the kernel's mean diagonal; 0: 1e-6, for ``random-conv`` 5e-3.
        lr_images: learning rate of Adam on the images.
        labels: ``hard``, or ``learned`` with the images.
        lr_labels: learning rate of Adam on learned labels.
        real_batch: real images in an iteration, equally many of every class.
        random_networks: networks of ``random-conv``.
        width: filters of their convolutions.
        micro_batch: images whose kernels are held at once; 0: as many as fit 8 MiB for each map of kernels.
    """

    iterations: int = 1000
    kernel: str = "fc"
    depth: int = 0
    ridge: float = 0.0
    lr_images: float = 0.04
    labels: str = "hard"
    lr_labels: float = 0.04
    real_batch: int = 5000
    random_networks: int = 8
    width: int = 256
    micro_batch: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise unknown_name("kernel", self.kernel, KERNELS)
        if self.labels not in _LABELS:
            raise unknown_name("kind of labels", self.labels, _LABELS)
        for name in ("iterations", "real_batch", "random_networks", "width"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.depth < 0 or self.micro_batch < 0 or not 0 <= self.ridge < math.inf:
            raise UsageError("depth, micro_batch and ridge must not be negative, and ridge must be finite.")
        for name in ("lr_images", "lr_labels"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be finite and positive, but is {getattr(self, name)}.")

    def inert(self) -> Mapping[str, str]:
        """Return the settings without effect: the networks of another kernel, and the rate of labels that stay."""
        found = {} if self.labels == "learned" else {"lr_labels": "labels are hard"}
        if self.kernel != "random-conv":
            found |= dict.fromkeys(("random_networks", "width"), f"kernel is {self.kernel}")
        return found


class KIP(Condenser):
    """Kernel inducing points: images from which kernel ridge regression predicts the labels of real images.

    With the kernel K of a network, synthetic images s with labels y_s and real ones t::

        loss = mean over t of || y_t - K_ts (K_ss + r tr(K_ss)/N I)^-1 y_s ||^2 / 2

    Labels are one-hot minus 1/K. Everything is computed in float64, and the gradient holds the kernels of
    ``micro_batch`` real images at a time. The authors' convolutional kernel has pooling, whose memory is N M (H W)^2;
    here ``conv-vec`` is without, and ``random-conv`` approximates one with it.

    Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021; Nguyen, Novak, Xiao, Lee,
    "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021.
    """

    Settings = KIPSettings
    settings: KIPSettings
    uses_network = False
    evaluation_recipe = "kip"
    adam = Adam()

    def setup(self, problem: Problem) -> None:
        """Start from real images, one-hot labels minus 1/K, and Adam's moments at zero."""
        self.problem, task = problem, problem.task
        images = problem.train.inputs(problem.draw_real("start images")).clone()
        values = {"images": images}
        self._centred = (F.one_hot(problem.hard_labels(), task.classes).float() - 1 / task.classes).to(images)
        if self.settings.labels == "learned":
            values["labels"] = self._centred.clone()
        self._ridge = self.settings.ridge or default_ridge(self.settings.kernel)
        pixels = task.side**2 if self.settings.kernel == "conv-vec" else 1
        self._at_once = self.settings.micro_batch or images_at_once(len(images), pixels)
        with origin("optimiser"):
            self.values = {name: self.adam.begin(value) for name, value in values.items()}

    @property
    def images(self) -> Tensor:
        """The images ``(N, C, H, W)``."""
        return self.values["images"][0]

    @property
    def labels(self) -> Tensor:
        """The centred labels ``(N, K)``."""
        return self.values["labels"][0] if self.settings.labels == "learned" else self._centred

    def kernel(self, iteration: int) -> Kernel:
        """Return the kernel of an iteration; only that of random networks changes."""
        return kernel_named(self.settings.kernel, self.settings.depth, lambda: self._random_features(iteration))

    def _random_features(self, iteration: int) -> RandomFeatures:
        s, task = self.settings, self.problem.task
        with origin("parameters"):
            return RandomFeatures(
                task.channels,
                task.side,
                count=s.random_networks,
                width=s.width,
                depth=s.depth,
                seed=self.problem.seed_for("random networks", iteration),
                device=self.problem.device,
            )

    def iterate(self, iteration: int) -> IterationRecord:
        """Make one step of Adam on the images, and on the labels if they are learned."""
        record, gradients = self.gradients(iteration)
        with origin("optimiser"):
            for name, gradient in gradients.items():
                value, lr = self.values[name][0], getattr(self.settings, f"lr_{name}")
                rate = torch.tensor(lr, dtype=value.dtype, device=value.device)
                self.values[name] = self.adam.step(iteration, self.values[name], gradient.to(value), rate)
        return record

    def gradients(self, iteration: int) -> tuple[IterationRecord, dict[str, Tensor]]:
        """Return the record of an iteration, and the gradients of its loss by name, in float64."""
        kernel, leaf = self.kernel(iteration), self.images.double().requires_grad_()
        pieces = leaf.detach().split(self._at_once)
        with torch.no_grad():
            own = torch.cat([kernel(leaf, piece) for piece in pieces], 1)
        ridge = Ridge(own, self.labels, self._ridge)
        chosen = self._targets(iteration)
        of_images, of_weights, loss = torch.zeros_like(leaf), torch.zeros_like(ridge.weights), 0.0
        for rows in chosen.split(self._at_once):
            cross = kernel(leaf, self._inputs(rows))
            error = (cross.detach().T @ ridge.weights - self._targets_of(rows)) / len(chosen)
            loss += float(error.square().sum()) * len(chosen) / 2
            of_weights += cross.detach() @ error
            of_images += torch.autograd.grad(cross, leaf, ridge.weights @ error.T)[0]
        of_labels = ridge.solve(of_weights)
        of_kernel = ridge.kernel_gradient(of_labels).split(self._at_once, 1)
        for first, part in zip(range(0, len(leaf), self._at_once), of_kernel, strict=True):
            block = kernel(leaf, leaf[first : first + self._at_once])
            of_images += torch.autograd.grad(block, leaf, part)[0]
        found = {"images": of_images} | ({"labels": of_labels} if self.settings.labels == "learned" else {})
        return IterationRecord(loss=loss, metrics={"image_gradient_norm": float(of_images.norm())}), found

    def _targets(self, iteration: int) -> Tensor:
        """Return the real images of an iteration, equally many of every class as far as there are so many."""
        train = self.problem.train
        share = max(1, self.settings.real_batch // len(train.members))

        def drawn() -> Iterator[Tensor]:
            for c, members in enumerate(train.members):
                rng = self.problem.generator("real images", iteration, c)
                yield members[torch.randperm(len(members), generator=rng)[:share]]

        return torch.cat(list(drawn()))

    def _inputs(self, rows: Tensor) -> Tensor:
        with origin("inputs"):
            return self.problem.train.inputs(rows).double()

    def _targets_of(self, rows: Tensor) -> Tensor:
        classes = self.problem.task.classes
        return F.one_hot(self.problem.train.labels[rows], classes).to(self.images.device).double() - 1 / classes

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is learned, and Adam's moments."""
        return adam_state(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.values = adam_restored(state, self.values, like=self.images)

    def distilled(self) -> DistilledSet:
        """Return the images with their hard labels, or with the learned ones, which are centred."""
        if self.settings.labels == "hard":
            return self.problem.distilled(self.images, self.problem.hard_labels())
        return self.problem.distilled(self.images, self.labels, label_space=CENTRED)
