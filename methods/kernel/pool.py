"""FrePo's pool: networks of different ages, which are trained on the synthetic images and drawn anew when they are old.

Shapes: P parameters, S running statistics of batch norm, N images, K classes, F features.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor

from dcbench_tesla.compute.compiling import squared_error
from dcbench_tesla.compute.networks import Network, has_batch_norm, seeded
from dcbench_tesla.profilers import origin

from ..inner.optimisers import Adam

_PARTS = ("weights", "first", "second")


class Pool:
    """Networks as rows of weights, Adam's moments and running statistics, each with its age and number of steps.

    Network j begins with age ``j oldest / count`` and new weights, so that they do not all grow old at once.

    Args:
        build: makes a freshly initialised network.
        seed_for: returns the seed of network ``number`` as it is drawn in an iteration (-1: at the start).
        count: number of networks.
        oldest: the age after which a network is drawn anew.
        device: where they are.
    """

    adam = Adam()

    def __init__(
        self,
        build: Callable[[], Network],
        seed_for: Callable[[int, int], int],
        *,
        count: int,
        oldest: int,
        device: torch.device,
    ) -> None:
        self._build, self._seed_for, self._oldest, self._device = build, seed_for, oldest, device
        with torch.device("meta"):
            self._skeleton = build()
        self._weights = {name: p.shape for name, p in self._skeleton.named_parameters()}
        self._statistics = {name: b.shape for name, b in self._skeleton.named_buffers() if b.is_floating_point()}
        self.coupled = has_batch_norm(self._skeleton)
        begun = [self._fresh(number, -1) for number in range(count)]
        with origin("parameters"):
            self.statistics = [statistics for _, statistics in begun]
        with origin("optimiser"):
            self.students = [self.adam.begin(weights) for weights, _ in begun]
        ages = torch.arange(count) * oldest // count
        self.counts = torch.stack([ages, torch.zeros_like(ages)], 1)  # on the CPU: the program asks for them

    def _fresh(self, number: int, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the weights ``(P,)`` and running statistics ``(S,)`` of a freshly initialised network."""
        with seeded(self._seed_for(number, iteration)), origin("parameters"):
            network = self._build()
            floating = (b for b in network.buffers() if b.is_floating_point())
            return self._flat(p.detach() for p in network.parameters()), self._flat(floating)

    def _flat(self, tensors: Iterator[Tensor]) -> Tensor:
        parts = [t.reshape(-1) for t in tensors]
        return (torch.cat(parts) if parts else torch.zeros(0)).to(self._device)

    def _state(self, number: int, weights: Tensor) -> dict[str, Tensor]:
        """Return what a network consists of by name: views of ``weights`` and of its statistics."""
        flat = ((weights, self._weights), (self.statistics[number], self._statistics))
        return dict(chain.from_iterable(_named(vector, shapes) for vector, shapes in flat))

    def features(self, number: int, images: Tensor) -> Tensor:
        """Return the features ``(N, F)`` of network ``number`` in evaluation mode, differentiable in ``images``."""
        prefix = "features."
        state = self._state(number, self.students[number][0])
        own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        found: Tensor = torch.func.functional_call(self._skeleton.features.eval(), own, (images,))
        return found.flatten(1)

    def grow(self, number: int, iteration: int, images: Tensor, labels: Tensor, rate: float, micro_batch: int) -> None:
        """Train a network for one step of Adam on the squared error, or draw it anew if it is too old.

        Args:
            number: the network.
            iteration: the iteration, for its seed.
            images: synthetic images ``(N, C, H, W)``.
            labels: their centred labels ``(N, K)``.
            rate: learning rate.
            micro_batch: images in the network at once; with batch norm all of them.
        """
        age, steps = self.counts[number].tolist()
        if age > self._oldest:
            weights, self.statistics[number] = (t.to(images) for t in self._fresh(number, iteration))
            with origin("optimiser"):
                self.students[number] = self.adam.begin(weights)
            self.counts[number] = 0
            return
        size = len(images) if self.coupled else micro_batch or len(images)
        gradient = self._gradient(number, images, labels, size)
        with origin("optimiser"):
            lr = torch.tensor(rate, dtype=gradient.dtype, device=gradient.device)
            self.students[number] = self.adam.step(steps, self.students[number], gradient, lr)
        self.counts[number] += 1

    def _gradient(self, number: int, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """Return the gradient ``(P,)`` of the mean squared error; running statistics move on the way."""
        weights = self.students[number][0].detach().requires_grad_()
        total = torch.zeros_like(weights)
        self._skeleton.train()
        for part, wanted in zip(images.split(size), labels.split(size), strict=True):
            logits = torch.func.functional_call(self._skeleton, self._state(number, weights), (part,))
            loss = squared_error(logits, wanted) * (len(part) / len(images))
            total += torch.autograd.grad(loss, weights)[0]
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that changes, stacked over the networks."""
        parts = {name: torch.stack([s[i] for s in self.students]) for i, name in enumerate(_PARTS)}
        return {**parts, "statistics": torch.stack(self.statistics), "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: a network is older than any can be, or made a negative number of steps.
        """
        counts = state["counts"].cpu()
        if bool((counts < 0).any()) or int(counts[:, 0].max()) > self._oldest + 1:
            raise ValueError(f"ages and steps of networks are {counts.tolist()}")
        self.counts = counts.clone()
        self.statistics = [t.to(self._device).clone() for t in state["statistics"]]
        self.students = list(zip(*([t.to(self._device).clone() for t in state[name]] for name in _PARTS), strict=True))


def _named(vector: Tensor, shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    parts = vector.split([shape.numel() for shape in shapes.values()])
    return ((name, part.view(shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True))
