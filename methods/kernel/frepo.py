"""FrePo: ridge regression on the features of networks that are trained on the synthetic images on the way."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.kernels import Ridge, gram
from dcbench_tesla.distilled import CENTRED
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Condenser, DistilledSet, IterationRecord, Problem, Settings
from dcbench_tesla.profilers import origin

from .lamb import Learned, cosine, lamb_step
from .pool import Pool

_REAL_AT_ONCE = 256  # real images whose features are taken at a time; nothing of them is kept but the features
_FLOOR = 0.1  # the learning rate at the end, as a share


@dataclass(frozen=True, kw_only=True)
class FrePoSettings(Settings):
    """Hyper-parameters of FrePo; the defaults are those of its authors.

    Args:
        iterations: updates of images and labels.
        lr_images: learning rate of LAMB on images and labels, relative to their norms; along a cosine to a tenth.
        real_batch: real images in an iteration, drawn at random.
        ridge: ridge as a share of the kernel's mean diagonal.
        flip: the mirrored images stand beside the images, with the same labels.
        networks: networks in the pool.
        oldest: the age after which a network is drawn anew.
        lr_network: learning rate of Adam on the networks.
        network_batch: synthetic images in a step of a network.
        micro_batch: synthetic images in a network at once; memory does not grow with the others, and the time by a
            third. 0: all. A network's own step with batch norm takes all its images at once.
    """

    iterations: int = 500_000
    lr_images: float = 3e-4
    real_batch: int = 1024
    ridge: float = 1e-6
    flip: bool = False
    networks: int = 10
    oldest: int = 100
    lr_network: float = 3e-4
    network_batch: int = 1000
    micro_batch: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        for name in ("iterations", "real_batch", "networks", "oldest", "network_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr_images", "lr_network", "ridge"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be finite and positive, but is {getattr(self, name)}.")
        if self.micro_batch < 0:
            raise UsageError(f"micro_batch must not be negative, but is {self.micro_batch}; 0 takes all images.")


class FrePo(Condenser):
    """Neural feature regression with pooling: ridge regression on the features of networks of different ages.

    With the features phi of one network of the pool, synthetic images s with labels y_s and real ones t::

        loss = mean over t of || y_t - phi_t phi_s^T (phi_s phi_s^T + r tr/N I)^-1 y_s ||^2 / 2
               - mean over s of min(largest - second largest value of y_s, 1/K)

    Images and labels are learned; real features count as constants. Then the network takes a step on the synthetic
    images, or is drawn anew if it is too old. Features are taken in evaluation mode, so that those of an image do not
    depend on others, and the gradient can be taken piece by piece: first all features without a graph, then their
    gradient in closed form, then one backward pass a piece.

    Zhou, Nezhadarya, Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS 2022.
    """

    Settings = FrePoSettings
    settings: FrePoSettings
    divides_batch_norm = True
    evaluation_recipe = "frepo"

    @classmethod
    def refuses_batch_norm(cls, settings: Any) -> str:
        """Return nothing: the pool keeps running statistics, and features are taken with them."""
        return ""

    def setup(self, problem: Problem) -> None:
        """Start from real images, labels ``(one-hot - 1/K) / sqrt(K / 10)``, and a pool of new networks."""
        self.problem, classes = problem, problem.task.classes
        images = problem.train.inputs(problem.draw_real("start images")).clone()
        labels = (F.one_hot(problem.hard_labels(), classes) - 1 / classes) / math.sqrt(classes / 10)
        with origin("optimiser"):
            self.values = {"images": Learned.begin(images), "labels": Learned.begin(labels.to(images))}
        self.pool = Pool(
            problem.build_network,
            lambda number, iteration: problem.seed_for("network of the pool", number, iteration + 1),
            count=self.settings.networks,
            oldest=self.settings.oldest,
            device=problem.device,
        )

    @property
    def images(self) -> Tensor:
        """The images ``(N, C, H, W)``."""
        return self.values["images"].value

    @property
    def labels(self) -> Tensor:
        """The centred labels ``(N, K)``."""
        return self.values["labels"].value

    def iterate(self, iteration: int) -> IterationRecord:
        """Update images and labels by one network of the pool, then train that network on them or draw it anew."""
        record, gradients = self.gradients(iteration)
        rate = self.settings.lr_images * cosine(iteration, self.iterations, _FLOOR)
        with origin("optimiser"):
            for name, gradient in gradients.items():
                lamb_step(iteration, self.values[name], gradient, rate)
        rng = self.problem.generator("images of the network", iteration)
        chosen = torch.randperm(len(self.images), generator=rng)[: self.settings.network_batch].to(self.images.device)
        batch = (self.images[chosen], self.labels[chosen])
        self.pool.grow(self._network(iteration), iteration, *batch, self.settings.lr_network, self.settings.micro_batch)
        return record

    def _network(self, iteration: int) -> int:
        """Return the network of an iteration: the first one, then one drawn at random."""
        rng = self.problem.generator("choice of the network", iteration)
        return int(torch.randint(self.settings.networks, (), generator=rng))

    def gradients(self, iteration: int) -> tuple[IterationRecord, dict[str, Tensor]]:
        """Return the record of an iteration, and the gradients of images and labels."""
        number, (real, wanted) = self._network(iteration), self._real(iteration)
        with torch.no_grad():
            parts = [self.pool.features(number, self._inputs(rows)) for rows in real.split(self._real_at_once)]
            targets = torch.cat(parts)
        pieces = list(self._pieces())
        kept = [self.pool.features(number, leaf) for leaf in pieces] if len(pieces) == 1 else []
        if kept:
            features = kept[0].detach()
        else:
            with torch.no_grad():
                features = torch.cat([self.pool.features(number, leaf) for leaf in pieces])
        loss, of_features, of_labels = self._regression(features, targets, wanted)
        found, first = [], 0
        for leaf in pieces:
            value = kept.pop() if kept else self.pool.features(number, leaf)
            found.append(torch.autograd.grad(value, leaf, of_features[first : first + len(leaf)])[0])
            first += len(leaf)
        margin, of_margin = self._margin()
        of_images = self._folded(torch.cat(found))
        gradients = {"images": of_images, "labels": self._summed(of_labels) + of_margin}
        metrics = {"regression_loss": loss, "margin_loss": margin, "image_gradient_norm": float(of_images.norm())}
        return IterationRecord(loss=loss + margin, metrics=metrics), gradients

    def _regression(self, features: Tensor, targets: Tensor, wanted: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the loss of the ridge regression, and its gradients in features ``(N, F)`` and labels ``(N, K)``."""
        labels = self.labels.repeat(len(features) // len(self.labels), 1)
        ridge = Ridge(gram(features), labels, self.settings.ridge)
        weights = ridge.weights.to(features)
        error = (targets @ (features.T @ weights) - wanted) / len(wanted)
        of_map = targets.T @ error
        of_labels = ridge.solve(features @ of_map)
        of_features = weights @ of_map.T + ridge.feature_gradient(of_labels, features)
        loss = float(error.square().sum()) * len(wanted) / 2
        return loss, of_features, of_labels.to(features)

    def _margin(self) -> tuple[float, Tensor]:
        """Return the margin's loss ``-mean min(largest - second largest, 1/K)``, and its gradient in the labels."""
        with torch.enable_grad():
            labels = self.labels.detach().requires_grad_()
            largest, second = labels.topk(2, 1).values.unbind(1)
            loss = -(largest - second).clamp(max=1 / labels.shape[1]).mean()
            return float(loss.detach()), torch.autograd.grad(loss, labels)[0]

    @property
    def _real_at_once(self) -> int:
        return self.settings.micro_batch or _REAL_AT_ONCE

    def _real(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the indices of an iteration's real images, and their labels, one-hot minus 1/K."""
        train, classes = self.problem.train, self.problem.task.classes
        rng = self.problem.generator("real images", iteration)
        chosen = torch.randperm(len(train), generator=rng)[: self.settings.real_batch]
        return chosen, F.one_hot(train.labels[chosen], classes).to(self.images) - 1 / classes

    def _inputs(self, rows: Tensor) -> Tensor:
        with origin("inputs"):
            return self.problem.train.inputs(rows).to(self.images)

    def _pieces(self) -> Iterator[Tensor]:
        """Yield the images, and if asked for the mirrored ones after them, in pieces that are leaves of a graph."""
        shown = torch.cat([self.images, self.images.flip(3)]) if self.settings.flip else self.images
        for piece in shown.split(self.settings.micro_batch or len(shown)):
            yield piece.detach().requires_grad_()

    def _folded(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the images from those of all that are shown."""
        own, *mirrored = gradient.split(len(self.images))
        total: Tensor = sum((part.flip(3) for part in mirrored), own)
        return total

    def _summed(self, gradient: Tensor) -> Tensor:
        own, *mirrored = gradient.split(len(self.labels))
        total: Tensor = sum(mirrored, own)
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Return images and labels with LAMB's moments, and the pool."""
        learned = {f"{part}.{name}": t for name, s in self.values.items() for part, t in s._asdict().items()}
        return learned | {f"pool.{name}": t for name, t in self.pool.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in self.values:
            self.values[name] = Learned(*(state[f"{part}.{name}"].to(self.images) for part in Learned._fields))
        of_pool = {name.removeprefix("pool."): t for name, t in state.items() if name.startswith("pool.")}
        self.pool.load_state_dict(of_pool)

    def distilled(self) -> DistilledSet:
        """Return the images with their learned labels, which are centred."""
        return self.problem.distilled(self.images, self.labels, label_space=CENTRED)
